"""Faults 16 to 23: a provider in trouble costs no row an attempt, and holds up no other's rows."""

import itertools
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from embedsync import tasks
from embedsync.embedders import RefusedError
from embedsync.embedders.trouble import HARMLESS
from embedsync.lane import Lane
from embedsync.models import Ledger, WorkerState
from embedsync.worker import Worker
from tests.application import uncommitted
from tests.books import KEY, BookEmbedding
from tests.library.models import Book, Parcel
from tests.provider import running_provider
from tests.sync import assert_in_step, expected_vectors, stored_vectors
from tests.workers import work

pytestmark = pytest.mark.django_db(transaction=True)

ParcelEmbedding = Parcel.embedding.model


@pytest.fixture
def provider():
    with running_provider() as provider:
        yield provider


@pytest.fixture
def worker(transactional_db, settings, provider):
    """A worker whose books' embedder is the provider; nothing is owed."""
    backend = "tests.provider.HttpEmbedder"
    entry = {"BACKEND": backend, "DIMENSIONS": 64, "OPTIONS": {"url": provider.url, "timeout": 0.5}}
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
    worker = Worker()
    worker.start()
    work(worker)
    return worker


def drip(texts):
    time.sleep(1.0)
    return 200, {}, []


TROUBLES = {
    "refuses connections": None,
    "too many requests": lambda texts: (429, {}, {}),
    "server error": lambda texts: (500, {}, {}),
    "bad gateway": lambda texts: (502, {}, {}),
    "unavailable": lambda texts: (503, {}, {}),
    "answers too late": drip,
    "wrong key": lambda texts: (401, {}, {}),
    "forbidden": lambda texts: (403, {}, {}),
    "unknown model": lambda texts: (404, {}, {}),
}


@pytest.mark.parametrize("answer", TROUBLES.values(), ids=TROUBLES)
def test_trouble_costs_no_attempt_and_holds_up_nobody_else(worker, provider, clock, answer):
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(200)])
    Parcel.objects.create(label="of another provider")
    if answer is None:
        # A port that nobody listens at.
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        worker.services[KEY].embedder.url = f"http://127.0.0.1:{port}/"
    else:
        provider.answer = answer
    before = len(provider.calls)
    work(worker)
    assert len(provider.calls) - before == (0 if answer is None else 1)
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)
    owed = Ledger.objects.all()
    assert owed.count() == 200
    assert {(row.attempts, row.token, row.run_at is None) for row in owed} == {(0, None, False)}
    assert all(row.last_error for row in owed)
    assert worker.errors == {}

    worker.services[KEY].embedder.url = provider.url
    provider.recovers()
    clock.now += 30.0
    work(worker)
    assert_in_step(BookEmbedding)
    assert not Ledger.objects.exists()


def test_an_hour_of_outage_is_one_probe_an_interval(worker, provider, clock):
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(100)])
    provider.fails(503)
    for second in range(0, 3600, 10):
        if second == 600:
            Book.objects.create(title="Meanwhile")
            Parcel.objects.create(label="of another provider")
        clock.now += 10.0
        work(worker)
    # Those before the interval has grown to its length come sooner.
    assert 3600 / 30 - 1 <= len(provider.calls) <= 3600 / 30 + 5
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)
    assert all(row.attempts == 0 and row.run_at is not None for row in Ledger.objects.all())
    provider.recovers()
    clock.now += 30.0
    work(worker)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("date", [False, True], ids=["seconds", "HTTP date"])
def test_retry_after_is_waited_for(worker, provider, clock, date):
    Book.objects.create(title="Patience")
    at = datetime.now(UTC) + timedelta(seconds=300)
    provider.fails(429, Retry_After=format_datetime(at, usegmt=True) if date else "300")
    work(worker)
    assert len(provider.calls) == 1
    provider.recovers()
    clock.now += 290.0
    work(worker)
    assert len(provider.calls) == 1
    clock.now += 11.0
    work(worker)
    assert len(provider.calls) == 2
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("bad", [0, 17, 63])
def test_one_bad_text_is_found_and_the_others_are_embedded(worker, provider, settings, bad):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1

    def answer(texts):
        if any("unspeakable" in text for text in texts):
            return 400, {}, {"error": "no"}
        return provider.works(texts)

    provider.answer = answer
    titles = [f"Book {n:02}" for n in range(64)]
    titles[bad] += " unspeakable"
    Book.objects.bulk_create([Book(title=title) for title in titles])
    work(worker)
    assert 1 < len(provider.calls) <= 1 + 2 * 6  # 64 = 2 ** 6
    owed = Ledger.objects.get()
    assert owed.run_at is None  # parked
    assert "400" in owed.last_error
    assert BookEmbedding.objects.count() == 63
    assert owed.source_pk == str(Book.objects.get(title__contains="unspeakable").pk)


@pytest.mark.parametrize("status", [500, 504, 403])
def test_a_text_that_makes_its_provider_fail_is_found(worker, provider, clock, settings, status):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 3

    def answer(texts):
        if any("poison" in text for text in texts):
            return status, {}, {}
        return provider.works(texts)

    provider.answer = answer
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(40)])
    Book.objects.create(title="poison")
    for n in range(40):
        work(worker)
        clock.now += 31.0
        Ledger.objects.filter(run_at__isnull=False).update(run_at=timezone.now())
        Book.objects.create(title=f"Meanwhile {n}")
    work(worker)
    assert BookEmbedding.objects.count() == Book.objects.count() - 1
    owed = Ledger.objects.get()
    assert (owed.run_at, owed.attempts) == (None, 3)


def test_a_bad_message_of_a_provider_is_kept_as_it_can_be(worker, provider):
    works = worker.services[KEY].embedder.embed_documents

    def answer(texts):
        if texts == [HARMLESS]:
            return works(texts)
        raise RuntimeError("half \0 of a \ud800 message")

    worker.services[KEY].embedder.embed_documents = answer
    Book.objects.create(title="A")
    Parcel.objects.create(label="of another provider")
    work(worker)
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)
    assert Ledger.objects.get().last_error == "RuntimeError: half \\0 of a \\ud800 message"


def test_a_drain_that_a_provider_ends_says_so(worker, provider):
    Book.objects.create(title="A")
    provider.fails(429, Retry_After="60")
    with pytest.raises(CommandError, match="its provider is in trouble: HTTPError: HTTP Error 429"):
        call_command("embed_worker", "--drain", verbosity=0)
    assert "429" in tasks.process_pending()["errors"][KEY]


def test_an_embedder_that_cannot_be_made_holds_up_nobody_else(drain, settings):
    entry = {"BACKEND": "tests.provider.NeedsAKey", "DIMENSIONS": 64}
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
    Parcel.objects.create(label="of another provider")
    worker = drain()
    assert "KeyError: 'SECRET_KEY_OF_A_PROVIDER'" in worker.errors[KEY]
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)


def test_trouble_while_the_bad_text_is_sought_leaves_the_rest(worker, provider, clock):
    def answer(texts):
        if len(texts) < 64:
            return 503, {}, {}
        return 400, {}, {}

    provider.answer = answer
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(64)])
    work(worker)
    assert len(provider.calls) == 2
    assert set(Ledger.objects.values_list("attempts", flat=True)) == {0}
    assert Ledger.objects.count() == 64


WRONG = {
    "too few": lambda vectors: vectors[:-1],
    "too many": lambda vectors: [*vectors, vectors[0]],
    "a zero vector": lambda vectors: [[0.0] * 64, *vectors[1:]],
    "not a number": lambda vectors: [[float("nan")] * 64, *vectors[1:]],
    "infinite": lambda vectors: [[float("inf")] * 64, *vectors[1:]],
    "out of range": lambda vectors: [[1e300] * 64, *vectors[1:]],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_vectors_are_never_written(worker, provider, settings, change):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1

    def answer(texts):
        status, headers, vectors = provider.works(texts)
        if any("odd" in text for text in texts):
            vectors = change(vectors)
        return status, headers, vectors

    provider.answer = answer
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(9)])
    Book.objects.create(title="odd one, and the longest of them, so that it is the first in a call")
    work(worker)
    assert BookEmbedding.objects.count() == 9
    assert Ledger.objects.get().run_at is None


def test_vectors_of_another_length_stop_the_sidecar_and_nothing_else(worker, provider):
    provider.answer = lambda texts: (200, {}, [[1.0] * 32 for _ in texts])
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(9)])
    Parcel.objects.create(label="of another provider")
    work(worker)
    assert "32 dimensions" in worker.errors[KEY]
    assert BookEmbedding.objects.count() == 0
    assert all(row.attempts == 0 and row.run_at is not None for row in Ledger.objects.all())
    assert stored_vectors(ParcelEmbedding) == expected_vectors(ParcelEmbedding)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda texts: (401, {}, {}), "HTTPError: HTTP Error 401: Unauthorized"),
        (lambda texts: (200, {}, [[1.0] * 32 for _ in texts]), "HttpEmbedder::64 returns"),
    ],
    ids=["wrong key", "another length"],
)
def test_what_a_scheduled_run_was_refused_is_told_when_it_is_gone(worker, provider, answer, said):
    """Fault 20: where ``process_pending`` is all there is, no worker lives to tell of it."""
    provider.answer = answer
    Book.objects.create(title="A")
    assert tasks.process_pending()["errors"]
    assert not WorkerState.objects.exists()
    (status, error), swept = told_of("embed_status"), told_of("embed_sweep")
    assert (status, error[: len(said)]) == (1, said)
    assert swept == (1, error)
    # A worker that serves it knows better.
    one = WorkerState.objects.create(name="one", serves=dict.fromkeys(worker.services, "f"))
    assert told_of("embed_status") == (0, "")
    one.delete()
    provider.recovers()
    Ledger.objects.update(run_at=timezone.now())
    assert tasks.process_pending()["errors"] == {}
    assert told_of("embed_status") == told_of("embed_sweep") == (0, "")


def told_of(command):
    """The exit status of a command, and why it says that books are not embedded."""
    output, status = StringIO(), 0
    try:
        call_command(command, "--json", stdout=output, stderr=StringIO())
    except (CommandError, SystemExit):
        status = 1
    told = json.loads(output.getvalue())
    errors = told.get("errors") or {one["sidecar"]: one.get("error") for one in told["sidecars"]}
    return status, errors.get(KEY) or ""


@pytest.mark.parametrize("alone", [False, True])
def test_a_text_that_makes_its_provider_fail_holds_up_no_other(
    worker, provider, clock, settings, alone
):
    """Neither those of another sidecar of its embedder, nor those that are tried one by one."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 3

    def answer(texts):
        if any("poison" in text for text in texts):
            return 500, {}, {}
        return provider.works(texts)

    provider.answer = answer
    entry = settings.EMBEDSYNC_EMBEDDERS["scripted"]
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "hashing": entry}
    worker = Worker()
    worker.start()
    # Both sidecars are of one provider, as if they named the same embedder.
    worker.pipeline._lane = lambda service: worker.pipeline._lanes.setdefault(
        "scripted", Lane("scripted", 1)
    )
    for service in worker.services.values():
        object.__setattr__(service, "breaker", worker.breakers["scripted"])
    Book.objects.create(id=1, title="poison")
    Parcel.objects.bulk_create([Parcel(label=f"parcel {n}") for n in range(40)])
    if alone:
        worker.queue.fold(list(worker.services), 100)
        Ledger.objects.update(token=None, run_at=timezone.now())
    for _ in range(60):
        work(worker)
        clock.now += 31.0
        Ledger.objects.filter(run_at__isnull=False).update(run_at=timezone.now())
    assert ParcelEmbedding.objects.count() == 40


def test_a_refusal_is_told_in_a_line_that_can_be_stored(worker, provider):
    provider.answer = lambda texts: (403, {}, {})
    Book.objects.create(title="A")
    work(worker)
    worker.breakers["scripted"].trouble = RefusedError("half \0 of a \ud800 message\nand a text")
    worker.heartbeat.hurry()
    worker.round()
    said = WorkerState.objects.get().errors[KEY]
    assert said == "half \\0 of a \\ud800 message"


def test_a_provider_that_fails_now_and_then_has_no_row_parked(worker, provider, clock, settings):
    """As one of two servers behind a balancer that is down: no text is to blame."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 2
    turns = itertools.count()

    def answer(texts):
        return provider.works(texts) if next(turns) % 2 else (503, {}, {})

    provider.answer = answer
    for _ in range(20):
        Book.objects.bulk_create([Book(title=f"Book {next(turns)}") for _ in range(20)])
        work(worker)
        clock.now += 31.0
        Ledger.objects.update(run_at=timezone.now())
        assert set(Ledger.objects.values_list("attempts", flat=True)) <= {0}
    provider.recovers()
    clock.now += 31.0
    work(worker)
    assert_in_step(BookEmbedding)


def test_nobody_is_paid_for_vectors_that_could_not_be_written(worker, provider):
    """While somebody builds an index of the sidecar, say."""
    Book.objects.create(title="A")
    with uncommitted("LOCK TABLE library_bookembedding IN SHARE MODE"):
        work(worker)
    assert provider.calls == []
    assert Ledger.objects.get().attempts == 0
    Ledger.objects.update(run_at=timezone.now())
    work(worker)
    assert_in_step(BookEmbedding)
