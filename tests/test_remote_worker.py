"""A worker and a remote embedder: what each failure costs, and that no key is left anywhere."""

import logging

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from embedsync.embedders import get_embedder
from embedsync.models import Ledger, WorkerState
from embedsync.worker import Worker
from tests.books import KEY as BOOKS
from tests.books import BookEmbedding, make_due
from tests.library.models import Book, Parcel
from tests.openai_provider import JSON, KEY, OpenAIProvider
from tests.provider import running_provider
from tests.sync import expected_vectors, stored_vectors
from tests.workers import work

pytestmark = pytest.mark.django_db(transaction=True)

ParcelEmbedding = Parcel.embedding.model


@pytest.fixture
def provider():
    with running_provider(OpenAIProvider) as provider:
        yield provider


@pytest.fixture
def options(settings, provider):
    """Settings whose books are embedded by the provider; a test may change its OPTIONS."""
    options = {"base_url": provider.url, "api_key": KEY, "timeout": 0.5}
    entry = {
        "BACKEND": "embedsync.embedders.openai.OpenAIEmbedder",
        "MODEL": "hashed",
        "DIMENSIONS": 64,
        "OPTIONS": options,
    }
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
    return options


def started():
    worker = Worker()
    worker.start()
    work(worker)
    return worker


def said_anywhere(worker, log):
    """All that is kept or told of what went wrong."""
    tables = ["embedsync_ledger", "embedsync_worker", "embedsync_sidecar", "embedsync_inbox"]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(f"SELECT to_jsonb(t)::text FROM {t} t" for t in tables))
        kept = [row for (row,) in cursor.fetchall()]
    return "\n".join([*kept, str(worker.errors), log])


def test_rows_get_their_vectors_and_searches_find_them(options, provider):
    titles = [f"Book number {n}" for n in range(300)]
    Book.objects.bulk_create(Book(title=title) for title in titles)
    started()
    assert [len(texts) for texts in provider.texts] == [128, 128, 44]
    assert stored_vectors(BookEmbedding) == expected_vectors(BookEmbedding)
    nearest = Book.objects.similar("Book number 217", min_similarity=0.999)
    assert "Book number 217" in [book.title for book in nearest]


def test_one_bad_text_among_many(options, provider, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    provider.refuses("too long")
    worker = started()
    Book.objects.bulk_create(Book(title=f"Book {n}") for n in range(63))
    bad = Book.objects.create(title="too long")
    work(worker)
    assert BookEmbedding.objects.count() == 63
    owed = Ledger.objects.get()
    assert (owed.source_pk, owed.run_at) == (str(bad.pk), None)
    assert "maximum context length" in owed.last_error
    # Halved six times, and the harmless one.
    assert len(provider.calls) <= 1 + 2 * 6 + 1


def test_a_request_that_is_refused_for_all_parks_nobody(options, provider, settings, capsys):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    provider.fails(400, "The model `hashed` does not support dimensions.")
    Book.objects.bulk_create(Book(title=f"Book {n}") for n in range(64))
    Parcel.objects.create(label="of another provider")
    worker = started()
    worker.heartbeat.hurry()
    worker.round()
    assert "does not support dimensions" in WorkerState.objects.get().errors[BOOKS]
    with pytest.raises(CommandError, match=f"Not served: .*{BOOKS}"):
        call_command("embed_status")
    assert "does not support dimensions" in capsys.readouterr().out
    assert all(row.attempts == 0 and row.run_at is not None for row in Ledger.objects.all())
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)


TROUBLES = {
    "401": (401, f"Incorrect API key provided: {KEY}."),
    "403": (403, f"{KEY} may not do this"),
    "404": (404, f"no such model for {KEY[:8]}****{KEY[-4:]}"),
    "429": (429, f"Rate limit reached for {KEY}"),
    "500": (500, f"Traceback: key={KEY}"),
    "503": (503, f"'{KEY}' is overloaded"),
    "a text": (400, f"{KEY} sent too much"),
    "a page": (200, f"<html>{KEY}</html>"),
}


@pytest.mark.parametrize(("status", "message"), TROUBLES.values(), ids=TROUBLES)
def test_a_key_is_left_nowhere(options, provider, caplog, status, message):
    caplog.set_level(logging.DEBUG)
    if status == 200:
        provider.answer = lambda body: (200, {}, message)
    elif status == 400:

        def answer(body):
            if body["input"] == ["word"]:
                return provider.works(body)
            return 400, JSON, {"error": {"message": message}}

        provider.answer = answer
    else:
        provider.fails(status, message)
    Book.objects.create(title="A")
    Parcel.objects.create(label="of another provider")
    worker = started()
    worker._tell_troubles()
    worker.heartbeat.hurry()
    worker.round()
    everything = said_anywhere(worker, caplog.text)
    assert Ledger.objects.get().last_error
    assert status == 200 or "***" in everything
    for secret in (KEY, KEY[:8], KEY[-4:]):
        assert secret not in everything
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)


def test_no_key_at_all(options, provider, monkeypatch):
    monkeypatch.delenv("KEY_OF_FILMS", raising=False)
    options.update(api_key=None, api_key_env="KEY_OF_FILMS")
    Book.objects.create(title="A")
    Parcel.objects.create(label="of another provider")
    worker = started()
    assert "environment variable KEY_OF_FILMS" in worker.errors[BOOKS]
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)
    assert all(row.attempts == 0 for row in Ledger.objects.all())
    assert provider.calls == []


def test_a_provider_that_comes_back(options, provider, clock):
    Book.objects.bulk_create(Book(title=f"Book {n}") for n in range(9))
    provider.fails(429, Retry_After="120")
    worker = started()
    clock.now += 119.0
    work(worker)
    assert len(provider.calls) == 1
    provider.recovers()
    clock.now += 2.0
    work(worker)
    assert stored_vectors(BookEmbedding) == expected_vectors(BookEmbedding)


def test_usage_is_what_the_provider_says(options, provider):
    Book.objects.bulk_create(Book(title=f"one two {n}") for n in range(10))
    started()
    usage = get_embedder("scripted").usage
    words = sum(len(text.split()) for texts in provider.texts for text in texts)
    assert (usage.calls, usage.tokens) == (len(provider.calls), words)


def test_rows_of_a_text_that_recovers_are_tried_again(options, provider):
    provider.refuses("long")
    Book.objects.create(title="long")
    worker = started()
    assert Ledger.objects.get().attempts == 1
    provider.recovers()
    make_due()
    work(worker)
    assert stored_vectors(BookEmbedding) == expected_vectors(BookEmbedding)
