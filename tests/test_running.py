"""Running workers: their options, their idleness, tasks for schedulers, and retries."""

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from embedsync import tasks
from embedsync.declaration import sidecars
from embedsync.embedders import get_embedder
from embedsync.models import Inbox, Ledger, SidecarState
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.cinema.models import Film, Genre
from tests.library.models import Book, Letter, Parcel
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

ParcelEmbedding = Parcel.embedding.model
FILM_KEY = "cinema.filmembedding"


def test_a_worker_may_serve_some_and_hold_up_no_others(drain, transactional_db):
    drain()
    Parcel.objects.create(label="one")
    Book.objects.create(title="A")
    Letter.objects.create(text="Dear")
    call_command("embed_worker", "--drain", "--only", "library.Book", verbosity=0)
    call_command("embed_worker", "--drain", "--only", "library.ParcelEmbedding", verbosity=0)
    assert [row.sidecar for row in Ledger.objects.all()] == ["library.letterembedding"]
    drain()
    assert_in_step(BookEmbedding, ParcelEmbedding, Letter.embedding.model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "library.Ghost"], "no model 'library.Ghost'"),
        (["--only", "library.Hall"], "library.Hall has no embedding"),
        (["--batch-size", "0"], "--batch-size: '0' is not a whole number from 1"),
        (["--max-seconds", "nan"], "--max-seconds: 'nan' is not a number of seconds above 0"),
        (["--poll-interval", "-1"], "--poll-interval: '-1' is not a number of seconds above 0"),
        (["--concurrency", "x"], "--concurrency: 'x' is not a whole number from 1"),
        (["--database", "elsewhere"], "no database 'elsewhere'"),
    ],
)
def test_wrong_options_are_named(transactional_db, arguments, words):
    with pytest.raises(CommandError, match=words):
        call_command("embed_worker", *arguments)


def test_the_last_line_of_a_drain_is_true(transactional_db, caplog, monkeypatch):
    """Also of a first fill whose rows were written after the triggers were made."""
    caplog.set_level("INFO", "embedsync")
    monkeypatch.setattr("embedsync.progress.SECONDS_BETWEEN_LINES", 0)
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(5)])
    call_command("embed_worker", "--drain", "--only", "library.Book", verbosity=0)
    assert caplog.messages[-1].startswith("5 rows embedded in ")
    assert not [line for line in caplog.messages if line.startswith("0 of")]
    caplog.clear()
    Book.objects.filter(title="Book 1").update(title="Another")
    call_command("embed_worker", "--drain", "--only", "library.Book", verbosity=0)
    assert caplog.messages[-1].startswith("1 row embedded in ")
    assert caplog.messages[-1].endswith(" s, 0 rows looked at that needed no embedding")


def test_who_calls_the_command_has_his_signal_handlers_again(transactional_db):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    call_command("embed_worker", "--drain", verbosity=0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_command_may_be_called_in_a_thread(drain):
    drain()
    Book.objects.create(title="A")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call_command, "embed_worker", "--drain", verbosity=0).result()
        thread.submit(lambda: connections.close_all()).result()
    assert_in_step(BookEmbedding)


def test_a_batch_holds_what_it_is_asked_to(drain):
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(9)])
    worker = Worker(batch_size=4)
    worker.start()
    worker.round()
    assert 1 <= BookEmbedding.objects.count() <= 4


def test_a_worker_ends_in_time_and_hands_back_the_rest(drain, worker_process):
    drain()
    Book.objects.bulk_create([Book(title=f"SLEEP {n}") for n in range(2000)])
    status, output = worker_process("--max-seconds", "2", SCRIPTED_SLEEP="0.01").wait()
    assert status == 0, output
    assert 0 < BookEmbedding.objects.count() < 2000
    assert not Ledger.objects.filter(token__isnull=False).exists()
    assert set(Ledger.objects.values_list("attempts", flat=True)) <= {0}


def test_an_idle_worker_asks_one_question_and_takes_no_transaction_id(drain):
    worker = drain()
    worker.round()
    worker._housekeeping_at = time.monotonic() + 60
    with CaptureQueriesContext(connection) as queries:
        for _ in range(20):
            assert not worker.round()
    assert len(queries) == 20
    with transaction.atomic(), connection.cursor() as cursor:
        assert not worker.round()
        cursor.execute("SELECT pg_current_xact_id_if_assigned()")
        assert cursor.fetchone() == (None,)
    Book.objects.create(title="At last")
    assert worker.round()
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("work", ["row", "hop", "truncate", "due"])
def test_an_idle_worker_sees_all_kinds_of_work(drain, work):
    worker = drain()
    worker.round()
    worker._housekeeping_at = time.monotonic() + 60
    assert not worker.round()
    if work == "due":
        Ledger.objects.create(
            sidecar=KEY, source_pk="1", run_at="2020-01-01T00:00Z", queued_at="2020-01-01T00:00Z"
        )
    else:
        Inbox.objects.create(sidecar=KEY, kind=work, hop="author" if work == "hop" else None)
    # What became due before it last looked is seen by the next look at all.
    until(worker.round, seconds=5)


def test_an_idle_worker_sees_what_was_committed_late(drain):
    worker = drain()
    execute("INSERT INTO embedsync_inbox (seq, sidecar, kind) VALUES (1000000000, 'gone', 'row')")
    while worker.round():
        pass
    assert worker.queue.low == 1_000_000_000
    Book.objects.create(title="Late")  # with a smaller seq
    worker.queue._next_full_look = 0.0
    assert worker.round()
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize(("took", "wait"), [(0.001, 0.05), (0.02, 1.0), (60.0, 2.0)])
def test_the_whole_inbox_is_looked_at_now_and_then(transactional_db, monkeypatch, took, wait):
    """A fiftieth of the time, and every two seconds at least."""
    now = 1000.0
    monkeypatch.setattr("embedsync.queue.time.monotonic", lambda: now)
    queue = Worker().queue
    assert queue._look()[:2] == (True, 0)
    queue.low = 5
    now += took
    queue._looked(1000.0)
    now = 1000.0 + wait - 0.001
    assert queue._look()[:2] == (False, 5)
    now = 1000.0 + wait + 0.001
    assert queue._look()[:2] == (True, 0)


def test_a_scheduler_can_do_a_workers_work(drain):
    drain()
    Book.objects.bulk_create([Book(title="good"), Book(title="FAIL")])
    Parcel.objects.create(label="one")
    found = tasks.process_pending(max_seconds=30)
    assert found["settled"] >= 2
    assert (found["waiting"], found["parked"], found["errors"]) == (1, 0, {})
    assert len(stored_vectors(BookEmbedding)) == 1


def test_a_scheduler_with_nothing_to_do_asks_little(drain):
    drain()
    with CaptureQueriesContext(connection) as queries:
        found = tasks.process_pending()
    assert found == {"settled": 0, "waiting": 0, "parked": 0, "errors": {}}
    assert len(queries) < 30 * len(sidecars())


def test_calls_that_overlap_share_the_work(drain, monkeypatch):
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(1200)])
    embedder, asked = get_embedder("scripted"), Counter()
    both, embed = threading.Barrier(2), embedder.embed_documents

    def counted(texts):
        if not asked:
            both.wait(30)
        asked.update(texts)
        return embed(texts)

    monkeypatch.setattr(embedder, "embed_documents", counted)

    def call(_):
        try:
            return tasks.process_pending(max_seconds=60)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(call, range(2)))
    assert [told["errors"] for told in found] == [{}, {}]
    assert all(told["settled"] > 0 for told in found)
    assert sum(told["settled"] for told in found) == 1200
    assert set(asked.values()) == {1}
    assert_in_step(BookEmbedding)


def test_waits_for_a_database_grow_and_are_jittered(drain, monkeypatch):
    """Fault 8: so that workers which were cut off together do not return together."""
    drain()
    waits = []

    def fails():
        raise OperationalError("it does not answer")

    for _ in range(50):
        worker, own = Worker(), []

        def wait(seconds, worker=worker, own=own):
            own.append(seconds)
            worker.stopping = len(own) == 5

        monkeypatch.setattr(worker, "start", fails)
        monkeypatch.setattr(worker, "_wait", wait)
        worker.run()
        waits.append(own)
    for waited, longest in zip(zip(*waits, strict=True), (2, 4, 5, 5, 5), strict=True):
        assert 0 <= min(waited) < 0.3 * longest
        assert 0.7 * longest < max(waited) <= longest


@pytest.fixture
def slow_writes(transactional_db):
    """Each vector takes 20 ms to write, and a statement of this session 250 ms at most."""
    execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON library_bookembedding"
        " FOR EACH ROW EXECUTE FUNCTION slow();"
    )
    yield
    execute("RESET statement_timeout; DROP FUNCTION slow() CASCADE")


def test_what_takes_too_long_to_write_is_written_in_halves(drain, slow_writes, caplog):
    """Fault 14."""
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(64)])
    execute("SET statement_timeout = '250ms'")
    drain()
    execute("RESET statement_timeout")
    assert_in_step(BookEmbedding)
    assert "64 rows took too long" in caplog.text


@pytest.fixture
def another():
    """A second session."""
    with psycopg.connect(**connection.get_connection_params()) as session:
        yield session


@pytest.mark.parametrize("owed", ["a related row", "a row", "a page of a fill"])
def test_a_locked_table_holds_up_no_other_sidecar(drain, another, owed):
    """Where the worker's role has a lock_timeout."""
    genre = Genre.objects.create(name="Drama")
    film = Film.objects.create(title="One")
    film.genres.add(genre)
    drain()
    another.execute("LOCK cinema_film")
    if owed == "a related row":
        Genre.objects.update(name="Farce")
    elif owed == "a row":
        Inbox.objects.create(sidecar=FILM_KEY, kind="row", source_pk=str(film.pk))
    else:
        SidecarState.objects.filter(key=FILM_KEY).update(backfilled_at=None)
    Parcel.objects.create(label="one")
    worker = Worker()
    execute("SET lock_timeout = '100ms'")
    worker.start()
    for _ in range(5):
        worker.round()
    assert len(stored_vectors(ParcelEmbedding)) == 1
    assert worker.errors == {}
    another.rollback()
    execute("RESET lock_timeout")
    make_due()
    drain()
    assert_in_step(ParcelEmbedding, Film.embedding.model)


def park(*titles):
    Book.objects.bulk_create([Book(id=n, title=title) for n, title in enumerate(titles, start=1)])


def parked():
    return sorted(Ledger.objects.filter(run_at=None).values_list("source_pk", flat=True))


def test_parked_rows_are_tried_again(drain, settings, capsys):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    park("FAIL", "FAIL too", "NAN", "good")
    drain()
    assert parked() == ["1", "2", "3"]
    call_command("embed_retry", "library.Book", pk=["2", "77"])
    assert parked() == ["1", "3"]
    call_command("embed_retry", error="UNWELL")
    assert parked() == ["3"]
    call_command("embed_retry", "library.Parcel")
    assert parked() == ["3"]
    call_command("embed_retry", "library.BookEmbedding")
    assert parked() == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "1",
        "1",
        "0",
        "1",
    ]
    assert set(Ledger.objects.values_list("attempts", flat=True)) == {0}
    Book.objects.update(title="mended")
    make_due()
    drain()
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"models": ["library.Ghost"]}, "no model 'library.Ghost'"),
        (
            {"models": ["library.Book", "library.Memo"], "pk": ["1"]},
            "that the keys are of: name it, of library.BookEmbedding, library.MemoEmbedding",
        ),
        ({"database": "elsewhere"}, "no database 'elsewhere'"),
    ],
)
def test_what_cannot_be_retried_is_named(transactional_db, arguments, words):
    with pytest.raises(CommandError, match=words):
        call_command("embed_retry", *arguments.pop("models", []), **arguments)


def test_a_retry_without_tables_is_told_what_to_do(drain):
    execute("ALTER TABLE embedsync_ledger RENAME TO elsewhere")
    try:
        with pytest.raises(CommandError, match=r"does not exist\. Run makemigrations and migrate"):
            call_command("embed_retry")
    finally:
        execute("ALTER TABLE elsewhere RENAME TO embedsync_ledger")
