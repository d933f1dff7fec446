"""Faults 16 to 23 once more: worker processes beside an application, and a provider over HTTP."""

import signal
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from embedsync.models import Ledger
from tests.application import Application, begin, is_settled
from tests.books import KEY, BookEmbedding
from tests.library.models import Book, Parcel
from tests.openai_provider import OpenAIProvider
from tests.provider import running_provider
from tests.sync import assert_in_step, expected_vectors, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

ParcelEmbedding = Parcel.embedding.model


@pytest.fixture
def provider():
    with running_provider() as provider:
        yield provider


@pytest.fixture
def serve(drain, worker_process):
    """Have a worker process embed the books by a provider."""

    def start(provider, **more):
        settings = {"DJANGO_SETTINGS_MODULE": "tests.provider_settings"}
        return begin(worker_process, PROVIDER_OF_TESTS=provider.url, **settings, **more)

    drain()
    return start


def of_the_books():
    return Ledger.objects.filter(sidecar=KEY)


def test_a_worker_process_outlives_its_providers_troubles(provider, serve):
    """Faults 16, 17 and 18."""
    provider.fails(503)
    worker = serve(provider)
    with Application(writers=2) as application:
        for status, headers in ((503, {}), (429, {"Retry_After": "1"}), (401, {})):
            provider.fails(status, **headers)
            asked = len(provider.calls)
            application.work(20)
            until(lambda asked=asked: len(provider.calls) > asked + 1)
        assert not Ledger.objects.filter(token=None).exclude(attempts=0, run_at__isnull=False)
        Parcel.objects.create(label="of another provider")
        until(lambda: stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding))
        provider.recovers()
        application.work(20)
    until(is_settled)
    assert_in_step(BookEmbedding)
    worker.send(signal.SIGTERM)
    assert worker.wait()[0] == 0


def with_first(vectors, value):
    return [[value, *vectors[0][1:]], *vectors[1:]]


# What is answered instead, and what is said of it before any SQL.
WRONG = {
    "UNSPEAKABLE": (lambda vectors: None, "HTTP Error 400"),
    "NAN": (lambda vectors: with_first(vectors, float("nan")), "not finite"),
    "INFINITE": (lambda vectors: with_first(vectors, float("inf")), "not finite"),
    "ENORMOUS": (lambda vectors: with_first(vectors, 1e300), "not finite"),
    "ZERO": (lambda vectors: [[0.0] * 64, *vectors[1:]], "zero"),
    "FEW": (lambda vectors: vectors[1:], "returned 0 vectors for 1"),
    "MANY": (lambda vectors: [*vectors, vectors[0]], "returned 2 vectors for 1"),
}


def test_one_bad_text_in_a_batch_is_parked_and_no_other(provider, serve):
    """Faults 19, 21 and 22. A bad vector is that of the first text of a call."""

    def answer(texts):
        status, headers, vectors = provider.works(texts)
        for word, (change, _) in WRONG.items():
            if any(word in text for text in texts):
                vectors = change(vectors)
                return (200, {}, vectors) if vectors is not None else (400, {}, {"error": "no"})
        return status, headers, vectors

    provider.answer = answer
    worker = serve(provider)
    with Application(writers=2) as application:
        for word in WRONG:
            # Calls begin with the longest text.
            Book.objects.create(title=f"{word} {'and the longest of all ' * 5}")
            application.work(10)
        until(lambda: of_the_books().filter(run_at=None).count() == len(WRONG))
    parked = of_the_books().filter(run_at=None)
    bad = Book.objects.filter(title__contains="and the longest of all")
    assert {row.source_pk for row in parked} == {str(book.pk) for book in bad}
    for book in bad:
        said = parked.get(source_pk=str(book.pk)).last_error
        assert WRONG[book.title.partition(" ")[0]][1] in said
    bad.delete()
    until(is_settled)
    assert_in_step(BookEmbedding)
    assert worker.process.poll() is None


def test_a_refusal_is_told_as_long_as_it_lasts(provider, serve, settings):
    """Fault 20."""
    entry = {"BACKEND": "tests.provider.HttpEmbedder", "DIMENSIONS": 64}
    entry["OPTIONS"] = {"url": provider.url}
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
    provider.fails(401)
    serve(provider)
    Book.objects.create(title="A")
    for command in ("embed_status", "embed_sweep"):
        until(lambda command=command: exit_status(command) == 1)
    assert not of_the_books().exclude(attempts__lte=1, run_at__isnull=False)
    Parcel.objects.create(label="of another provider")
    until(lambda: stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding))
    provider.recovers()
    until(is_settled)
    assert_in_step(BookEmbedding)
    for command in ("embed_status", "embed_sweep"):
        until(lambda command=command: exit_status(command) == 0)


def exit_status(command):
    try:
        call_command(command, "--json", stdout=StringIO(), stderr=StringIO())
    except (CommandError, SystemExit):
        return 1
    return 0


def test_vectors_of_another_length_stop_one_sidecar_until_they_are_right(provider, serve):
    """Fault 23."""
    provider.answer = lambda texts: (200, {}, [[1.0] * 32 for _ in texts])
    worker = serve(provider)
    with Application(writers=2) as application:
        application.work(10)
        worker.says("is not served")
        application.work(10)
        Parcel.objects.create(label="of another provider")
        until(lambda: stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding))
        assert not BookEmbedding.objects.exists()
        assert not of_the_books().filter(run_at=None).exists()
        provider.recovers()
        application.work(10)
    until(is_settled)
    assert_in_step(BookEmbedding)
    worker.says("is served again")


def test_indexes_decide_which_vector_is_whose(serve):
    """Fault 21. Where there are too few for a call, nothing of it is written."""

    def change(items):
        return items[::-1] if len(items) < 10 else items[1:]

    with running_provider(OpenAIProvider) as provider:
        provider.change = change
        serve(provider, PROTOCOL_OF_TESTS="openai")
        Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(50)])
        with Application(writers=2) as application:
            application.work(20)
        until(is_settled)
    assert max(len(texts) for texts in provider.texts) >= 10
    assert_in_step(BookEmbedding)
