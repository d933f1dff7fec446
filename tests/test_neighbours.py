"""What one row, sidecar or provider does to the others that a worker serves: nothing."""

import signal
import time
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone

from embedsync import pipeline
from embedsync.models import Inbox, Ledger, SidecarState
from embedsync.queue import HOPS_AT_ONCE, ROWS_OF_A_HOP, Queue
from embedsync.worker import Worker
from tests.application import uncommitted
from tests.books import KEY, BookEmbedding, execute, make_due, renamed
from tests.cinema.models import Film, Genre
from tests.library.models import Book, Parcel
from tests.sync import assert_in_step
from tests.workers import until, work_off

pytestmark = pytest.mark.django_db(transaction=True)

FILM_KEY = "cinema.filmembedding"


def test_what_is_due_is_claimed_by_the_batch(drain):
    """However many other sidecars there are."""
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(1000)])
    worker = Worker()
    worker.start()
    while worker.queue.fold([KEY], 1000)[0]:
        pass
    Ledger.objects.update(token=None, run_at=timezone.now(), attempts=0)
    claims = worker.queue.due(list(worker.services), 500)
    assert len(worker.services) > 5
    assert sum(len(claim.attempts) for claim in claims) == 500


def test_a_sidecar_that_goes_while_its_fill_is_due_stops_no_other(drain):
    drain()
    genre = Genre.objects.create(name="western")
    drain()
    genre.name = "Western"
    genre.save()
    SidecarState.objects.filter(key=FILM_KEY).update(backfilled_at=None)
    Parcel.objects.create(label="healthy")
    with renamed(Film.genres.through._meta.db_table):
        worker = drain()
    assert FILM_KEY in worker.errors
    assert Parcel.embedding.model.objects.count() == 1


def test_a_wait_for_related_rows_is_shortened_only_as_long_as_need_be():
    queue = Queue("default", "me")
    for _ in range(20):
        queue.hurry()
    assert queue._share <= ROWS_OF_A_HOP


def test_what_has_been_parked_has_not_waited(drain, settings):
    """A row that changes, or is tried again, waits from then on."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    drain()
    Book.objects.create(id=1, title="FAIL 1")
    Book.objects.create(id=2, title="FAIL 2")
    drain()
    long_ago = timezone.now() - timedelta(days=30)
    Ledger.objects.update(queued_at=long_ago)
    Book.objects.filter(id=1).update(title="FAIL again")
    Queue("default", "me").fold([KEY], 10)
    call_command("embed_retry", "library.Book", "--pk", "2", verbosity=0)
    assert all(row.queued_at > timezone.now() - timedelta(hours=1) for row in Ledger.objects.all())


def test_rows_whose_lease_is_lost_are_not_counted_as_settled(drain):
    drain()
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 11)])
    told = []
    worker = Worker(progress=told.append)
    worker.start()
    _, [claim] = worker.queue.fold([KEY], 10)
    Ledger.objects.update(token=None)
    work_off(worker, claim)
    assert sum(told) == 0
    assert worker.heartbeat.settled == 0


def test_one_lane_does_not_wait_for_anothers_timeouts(drain, monkeypatch, settings):
    """What cannot be read comes back in halves, a few at a time."""
    drain()
    reads = []
    original = pipeline.read

    def read(sidecar, pks, *more, **options):
        if sidecar is BookEmbedding:
            reads.append(len(pks))
            execute("SET statement_timeout = '20ms'")
            try:
                execute("SELECT pg_sleep(1)")
            finally:
                execute("RESET statement_timeout")
        return original(sidecar, pks, *more, **options)

    monkeypatch.setattr("embedsync.pipeline.read", read)
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(64)])
    worker = Worker()
    worker.start()
    while not reads:
        worker.round()
    Parcel.objects.create(label="meanwhile")
    until(lambda: worker.round() and Parcel.embedding.model.objects.exists())
    assert len(reads) < 30


def test_the_alive_file_grows_old_while_a_call_hangs(drain, worker_process, tmp_path):
    drain()
    alive = tmp_path / "alive"
    worker = worker_process("--alive-file", str(alive), SCRIPTED_SLEEP="600")
    Book.objects.create(title="SLEEP")
    worker.says("asleep")
    until(lambda: alive.exists() and time.time() - alive.stat().st_mtime > 5)


@pytest.mark.parametrize("table", ["library_book", "library_bookembedding"])
def test_a_table_that_is_locked_for_long_holds_up_no_other(drain, worker_process, table):
    """Whatever timeouts the worker's role has, or has not; and a signal ends it, too."""
    drain()
    worker = worker_process()
    Book.objects.create(title="before")
    until(BookEmbedding.objects.exists)
    with uncommitted(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"):
        execute(
            "INSERT INTO embedsync_inbox (sidecar, kind, source_pk) VALUES (%s, 'row', '1')", [KEY]
        )
        until(lambda: Ledger.objects.filter(sidecar=KEY).exists())
        Parcel.objects.create(label="meanwhile")
        until(Parcel.embedding.model.objects.exists)
        worker.send(signal.SIGTERM)
        assert worker.wait()[0] == 0
    make_due()
    drain()
    assert_in_step(BookEmbedding)


def test_rare_events_of_one_sidecar_do_not_stand_before_those_of_another(drain):
    """As they would where its tables are locked for long."""
    drain()
    for number in range(2 * HOPS_AT_ONCE):
        Inbox.objects.create(sidecar=FILM_KEY, kind="hop", hop="genres", source_pk=str(number))
    Inbox.objects.create(sidecar=KEY, kind="truncate")
    truncated, hops = Queue("default", "me").rare([FILM_KEY, KEY])
    assert (truncated, hops) == ([KEY], [(FILM_KEY, "genres")])
