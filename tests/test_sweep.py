"""What the sweep calls drift, and what it leaves to the workers."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.management import call_command
from django.db import transaction

import embedsync
from embedsync import queue
from embedsync import sweep as module
from embedsync.declaration import source_of
from embedsync.models import Ledger, SidecarState
from embedsync.queue import Queue
from embedsync.sweep import Pace, sweep
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, execute, make_due, renamed
from tests.cinema.models import Film, Genre
from tests.library.models import Book, Parcel
from tests.sweeping import (
    ROADS,
    SIDECARS,
    behind_the_triggers,
    counts,
    events,
    in_a_thread,
    is_waited_for,
    swept,
    write_library,
)
from tests.sync import assert_in_step, stored_vectors, unpacked
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

FilmEmbedding = Film.embedding.model
FILM_KEY = "cinema.filmembedding"


@pytest.fixture
def library(drain):
    """Rows of every kind of key, in step; their number by sidecar."""
    drain()
    rows = write_library()
    drain()
    return rows


def drain_elsewhere():
    """A worker with a connection of its own, until nothing is due."""
    worker = Worker()
    worker.start()
    worker.run(drain=True)


@pytest.mark.parametrize("page", [1, 3, 7, 100])
def test_a_sidecar_in_step_has_no_drift(library, page):
    for sidecar in SIDECARS:
        found = swept(sidecar, page=page)
        assert (found.compared, counts(found), found.finished) == (library, {}, True)
        assert found.ok


@pytest.mark.parametrize("road", ROADS)
def test_each_kind_of_drift_is_found_and_repaired(library, drain, road):
    with behind_the_triggers(road):
        Book.objects.create(id=50, title="new")
        Book.objects.create(id=51, title="unpublished", published=False)
        Book.objects.filter(id=1).update(title="changed")
        Book.objects.filter(id=2).update(year=1)  # which is not embedded
        Book.objects.filter(id=3).update(published=False)
        Book.objects.filter(id=4).delete()
        Book.objects.filter(id=5).update(id=60)
    found = swept()
    assert found.examples == {
        "missing": ["50", "60"],
        "stale": ["1"],
        "orphaned": ["3", "4", "5"],
    }
    assert counts(found) == {"missing": 2, "stale": 1, "orphaned": 3}
    assert (found.drift, found.ok, events()) == (6, False, [])
    repaired = swept(repair=True)
    assert (counts(repaired), repaired.enqueued) == (counts(found), 6)
    assert repaired.ok
    drain()
    assert_in_step(BookEmbedding)
    assert counts(swept()) == {}


@pytest.mark.parametrize("sidecar", SIDECARS, ids=lambda sidecar: sidecar.__name__)
def test_a_sidecar_that_somebody_wrote_to_is_repaired(library, drain, sidecar):
    """Whatever the type of its key, and whatever the names of its columns."""
    rows = list(sidecar.objects.order_by("pk"))
    sidecar.objects.filter(pk=rows[0].pk).delete()
    sidecar.objects.filter(pk=rows[2].pk).update(digest=b"x" * 16)
    with behind_the_triggers():
        gone = source_of(sidecar)._base_manager.filter(pk=unpacked(*rows[4].pk))
        gone._raw_delete("default")
    found = swept(sidecar, page=2, repair=True)
    assert counts(found) == {"missing": 1, "stale": 1, "orphaned": 1}
    assert {key for _, key in events()} == {key_of_row(rows[n]) for n in (0, 2, 4)}
    drain()
    assert_in_step(sidecar)
    assert counts(swept(sidecar, page=2)) == {}


def key_of_row(row):
    """The key of a sidecar's row as the queue has it."""
    *key, _ = map(str, row.pk)
    return key[0] if len(key) == 1 else json.dumps(key, ensure_ascii=False)


def test_drift_of_related_rows_is_found(library, drain):
    """The text of a row is what it would be now, wherever it comes from."""
    with behind_the_triggers():
        Genre.objects.update(name="Farce")
        Film.objects.order_by("pk")[3].genres.clear()
    found = swept(FilmEmbedding, repair=True)
    assert counts(found) == {"stale": library}
    drain()
    assert_in_step(FilmEmbedding)


def test_blank_text_has_no_vector(library, drain):
    first, second, *_ = Parcel.objects.order_by("pk")
    with behind_the_triggers():
        Parcel.objects.filter(pk=first.pk).update(label=None)
        Parcel.objects.filter(pk=second.pk).update(label=" \n")
        Parcel.objects.create(label="")
    found = swept(Parcel.embedding.model, repair=True)
    assert counts(found) == {"orphaned": 2}
    drain()
    assert_in_step(Parcel.embedding.model)


def test_repair_writes_events_in_the_order_of_the_keys_and_nothing_else(library, drain):
    vectors, ids = stored_vectors(BookEmbedding), [2, 100, 20, 3]
    with behind_the_triggers():
        Book.objects.bulk_create([Book(id=id_, title="new") for id_ in ids[1:3]])
        Book.objects.filter(id__in=ids).update(title="changed")
    for page in (1000, 2):
        swept(repair=True, page=page)
        assert events() == [("row", key) for key in ("2", "3", "20", "100")]
        assert stored_vectors(BookEmbedding) == vectors
        assert not Ledger.objects.exists()
    drain()
    assert_in_step(BookEmbedding)


def test_an_event_is_no_drift(library):
    Book.objects.create(id=50, title="new")
    Book.objects.filter(id=1).update(title="changed")
    Book.objects.filter(id=2).delete()
    found = swept(repair=True)
    assert counts(found) == {"waiting": 3}
    assert found.examples == {"waiting": ["1", "2", "50"]}
    assert len(events()) == 3


def test_work_in_the_ledger_is_no_drift(library, drain, settings):
    """Leased, or waiting for a retry; parked rows are counted apart."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 2
    settings.EMBEDSYNC_BACKOFF = 600.0
    Book.objects.filter(id=1).update(title="FAIL")
    drain()
    assert counts(swept()) == {"waiting": 1}
    make_due()
    drain()
    assert Ledger.objects.get().run_at is None
    Book.objects.filter(id=2).update(title="leased")
    Queue("default", "somebody").fold([KEY], 10)
    found = swept(repair=True)
    assert found.examples == {"waiting": ["2"], "parked": ["1"]}
    assert (found.ok, events()) == (True, [])


def test_what_a_related_row_owes_is_no_drift(library, drain, monkeypatch):
    """Also when a worker has found only some of the rows that it belongs to."""
    Genre.objects.update(name="Farce")
    assert counts(swept(FilmEmbedding, repair=True)) == {"waiting": library}
    monkeypatch.setattr(queue, "ROWS_OF_A_HOP", 3)
    Queue("default", "somebody").expand(FilmEmbedding, "genres")
    assert Ledger.objects.filter(sidecar=FILM_KEY).count() == 3
    assert counts(swept(FilmEmbedding, repair=True)) == {"waiting": library}
    drain()
    assert_in_step(FilmEmbedding)
    assert counts(swept(FilmEmbedding)) == {}


def test_what_a_truncation_owes_is_no_drift(library, drain):
    execute("TRUNCATE library_book")
    assert counts(swept(repair=True)) == {"waiting": library}
    Queue("default", "somebody").rare([KEY])
    assert counts(swept(repair=True)) == {"waiting": library}
    assert events() == []
    drain()
    assert_in_step(BookEmbedding)
    assert counts(swept()) == {}


def test_what_a_failed_trigger_owes_is_no_drift(library, drain):
    with renamed("embedsync_inbox"):
        Book.objects.create(id=50, title="not captured")
    assert counts(swept()) == {"waiting": 1}
    until(lambda: drain() and BookEmbedding.objects.filter(source_id=50).exists())
    assert counts(swept()) == {}


def test_what_a_fill_has_before_it_is_no_drift(library, drain):
    BookEmbedding.objects.all().delete()
    SidecarState.objects.filter(key=KEY).update(backfill_after="3", backfilled_at=None)
    found = swept()
    assert found.examples == {"missing": ["1", "2", "3"], "waiting": ["4", "5", "6", "7"]}
    SidecarState.objects.filter(key=KEY).delete()  # as flush does
    assert counts(swept()) == {"waiting": library}


def test_a_row_that_cannot_be_read_harms_one_row(library, drain, settings, monkeypatch):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1

    def from_db_value(self, value, *_):
        return {"five": None}[value] if value == "two" else value

    monkeypatch.setattr(type(Book._meta.get_field("title")), "from_db_value", from_db_value, False)
    found = swept(repair=True)
    assert found.examples == {"stale": ["2"]}
    drain()
    assert counts(swept()) == {"parked": 1}


def after_each_read(monkeypatch, move):
    """Let something happen, and be committed, after a page's texts and digests have been read."""

    def read(*arguments):
        found = real(*arguments)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(in_a_thread, move).result()
        return found

    real = module.read
    monkeypatch.setattr(module, "read", read)


def test_a_page_is_read_in_one_snapshot(library, monkeypatch):
    """What workers settle while a page is read is owed there, or is in the vector."""
    Book.objects.filter(id__lt=4).update(title="changed")
    after_each_read(monkeypatch, drain_elsewhere)
    assert counts(swept()) == {"waiting": 3}
    monkeypatch.undo()
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize(
    ("table", "sidecar"),
    [("library_book", BookEmbedding), ("cinema_film_genres", FilmEmbedding)],
)
def test_a_truncation_while_a_page_begins_is_no_drift(library, table, sidecar):
    """TRUNCATE is seen by snapshots that are older than it is."""
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            execute(f"TRUNCATE {table}")
            sweeping = pool.submit(in_a_thread, swept, sidecar)
            until(is_waited_for)
        found = sweeping.result()
    assert counts(found) == {"waiting": library}


def write_books(which, n):
    if n % 50 == 0 and which == 0:
        execute("TRUNCATE library_book")
        return
    mine = [100 + (n * 7 + k * 3 + which * 30) % 60 for k in range(3)]
    Book.objects.filter(id=mine[0]).delete()
    Book.objects.bulk_create(
        [Book(id=id_, title=f"{which} {n}") for id_ in mine],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["title"],
    )
    Book.objects.filter(id=mine[1]).update(published=n % 2)


def write_films(which, n):
    films = list(Film.objects.order_by("pk"))
    film = films[(2 * n + which) % len(films)]
    if n % 3 == 0:
        Genre.objects.filter(name__startswith=str(which)).update(name=f"{which} {n}")
    if n % 3 == 1:
        film.genres.set(Genre.objects.filter(name__startswith=str((n + which) % 2)))
    if n % 3 == 2:
        Film.objects.filter(pk=film.pk).update(title=f"{which} {n}")


@pytest.mark.parametrize(
    ("write", "sidecar"), [(write_books, BookEmbedding), (write_films, FilmEmbedding)]
)
def test_no_false_alarm_on_a_busy_system(library, write, sidecar):
    """Writers and workers at work while sweep after sweep runs."""
    Book.objects.bulk_create([Book(id=100 + n, title=f"Book {n}") for n in range(60)])
    Film.objects.bulk_create([Film(title=f"Film {n}") for n in range(60)])
    Genre.objects.bulk_create([Genre(name=f"{n % 2} {n}") for n in range(4)])
    pace, workers = Pace(), [Worker() for _ in range(2)]

    def writer(which):
        for n in range(10**9):
            if pace.stopping:
                return n
            with transaction.atomic():
                write(which, n)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(in_a_thread, writer, which) for which in range(2)]
        running += [pool.submit(in_a_thread, worker.run) for worker in workers]
        try:
            alarms = [found for _ in range(50) if (found := swept(sidecar, page=20)).drift]
        finally:
            pace.stop()
            for worker in workers:
                worker.stop()
        written = [future.result() for future in running[:2]]
        [future.result() for future in running[2:]]
    assert alarms == []
    assert min(written) > 10
    drain_elsewhere()
    assert_in_step(sidecar)
    assert counts(swept(sidecar)) == {}


def test_no_sweep_inside_a_transaction():
    """Its own would have to be another one."""
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        sweep(BookEmbedding)


@pytest.mark.django_db(transaction=False)
def test_a_sweep_inside_a_test_case(db):
    """Whose transaction is around everything."""
    Book.objects.create(id=1, title="A")
    found = swept(repair=True)
    assert (found.compared, counts(found)) == (1, {"waiting": 1})


def test_what_was_loaded_in_a_pause_is_put_right(drain):
    drain()
    Book.objects.create(title="Before")
    drain()
    with embedsync.paused():
        Book.objects.update(title="Changed")
        Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(10)])
    drain()
    assert BookEmbedding.objects.count() == 1
    call_command("embed_sweep", "library.Book", repair=True, verbosity=0)
    drain()
    assert_in_step(BookEmbedding)
