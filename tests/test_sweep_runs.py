"""Runs of the sweep: going on, going slowly, two at once, and what cannot be compared."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import OperationalError, connection, transaction

from embedsync import sweep as module
from embedsync import tasks
from embedsync.declaration import sidecars
from embedsync.models import Inbox, SidecarState
from embedsync.sweep import Pace, Run, sweep, sweep_all
from tests.books import KEY, BookEmbedding, execute, renamed
from tests.cinema.models import Film
from tests.library.models import Book, Memo, Parcel, Seat
from tests.sweeping import (
    SIDECARS,
    behind_the_triggers,
    counts,
    events,
    in_a_thread,
    is_waited_for,
    swept,
    write_library,
)
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

MemoEmbedding = Memo.embedding.model
FilmEmbedding = Film.embedding.model


@pytest.fixture
def drifted(drain):
    """Seven books, all changed behind the triggers' back."""
    drain()
    write_library()
    drain()
    with behind_the_triggers():
        Book.objects.update(title="changed")


def stopped_after(pages, **options):
    """Sweep so many pages, of two rows each if not told otherwise."""
    pace, done = Pace(rate=0), []

    def progress(rows):
        done.append(rows)
        if len(done) == pages:
            pace.stop()

    return swept(pace=pace, progress=progress, **{"page": 2, **options})


def state():
    return SidecarState.objects.get(key=KEY)


def test_a_sweep_goes_on_where_the_last_one_stopped(drifted):
    first = stopped_after(2)
    assert (first.compared, first.examples, first.finished) == (
        4,
        {"stale": ["1", "2", "3", "4"]},
        False,
    )
    assert (state().swept_after, state().swept_at) == ("4", None)
    found = {**state().swept_found, "noted by another release": 1}
    SidecarState.objects.filter(key=KEY).update(swept_found=found)
    second = swept()
    assert (second.resumed, second.compared, second.stale) == (4, 7, 7)
    assert second.examples == {"stale": ["1", "2", "3", "4", "5", "6", "7"]}
    assert second.seconds > first.seconds
    assert second.finished
    assert state().swept_after is None
    assert state().swept_at is not None
    third = swept()
    assert (third.resumed, third.compared) == (0, 7)


def test_a_sweep_begins_anew_if_asked_to_or_if_the_declaration_has_changed(drifted):
    stopped_after(2)
    assert swept(restart=True).resumed == 0
    stopped_after(2)
    found = {**state().swept_found, "declaration": "an earlier one"}
    SidecarState.objects.filter(key=KEY).update(swept_found=found)
    assert swept().resumed == 0


def test_a_repair_begins_anew_where_drift_was_only_reported(drifted, drain):
    stopped_after(1)
    found = stopped_after(2, repair=True)
    assert (found.resumed, found.enqueued) == (0, 4)
    found = swept(repair=True)
    assert (found.resumed, found.enqueued, found.ok) == (4, 7, True)
    assert [key for _, key in events()] == ["1", "2", "3", "4", "5", "6", "7"]
    drain()
    assert_in_step(BookEmbedding)


def test_a_page_is_noted_and_enqueued_both_or_neither(drifted):
    stopped_after(1, repair=True)
    execute("ALTER TABLE embedsync_inbox ADD CONSTRAINT full_up CHECK (source_pk <> '4')")
    try:
        assert "full_up" in sweep(BookEmbedding, repair=True, page=2).error
    finally:
        execute("ALTER TABLE embedsync_inbox DROP CONSTRAINT full_up")
    assert (state().swept_after, len(events())) == ("2", 2)
    assert swept(repair=True).compared == 7
    assert [key for _, key in events()] == ["1", "2", "3", "4", "5", "6", "7"]


def test_two_sweeps_at_once_count_and_enqueue_each_row_once(drifted):
    """The one finds its page noted by the other, and goes on behind it."""
    Book.objects.bulk_create([Book(id=n, title="B") for n in range(100, 300)])
    BookEmbedding.objects.all().delete()
    Inbox.objects.all().delete()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(in_a_thread, swept, repair=True, page=3) for _ in range(2)]
        found = [run.result() for run in runs]
    assert sorted(int(key) for _, key in events()) == [*range(1, 8), *range(100, 300)]
    assert {(each.compared, each.missing, each.enqueued) for each in found} == {(207, 207, 207)}


def test_a_sweep_that_was_overtaken_reports_what_the_other_found(drifted, monkeypatch):
    def read(*arguments):
        monkeypatch.setattr(module, "read", real)
        with ThreadPoolExecutor(1) as pool:
            other.append(pool.submit(in_a_thread, swept, repair=True, page=3).result())
        return real(*arguments)

    real, other = module.read, []
    monkeypatch.setattr(module, "read", read)
    found = swept(repair=True, page=2)
    assert (found.compared, found.stale, found.enqueued) == (7, 7, 7)
    assert found.finished
    assert other[0].enqueued == len(events()) == 7


def test_a_sweep_keeps_its_pace_and_its_time(drifted):
    started = time.monotonic()
    assert swept(page=2, pace=Pace(rate=20)).finished
    # After each of the three full pages.
    assert time.monotonic() - started >= 6 / 20
    found = swept(page=1, pace=Pace(rate=1, seconds=0.1))
    assert (found.compared, found.finished) == (1, False)


@pytest.mark.parametrize(
    ("sidecar", "locked", "wanted"),
    [
        (BookEmbedding, "library_bookembedding", "library_book"),
        (FilmEmbedding, "cinema_genre", "cinema_film"),
        (FilmEmbedding, "embedsync_inbox", "cinema_filmembedding"),
    ],
)
def test_a_sweep_that_waits_for_a_table_holds_up_nobody(drifted, sidecar, locked, wanted):
    """A statement that waits for a table holds up all that come to it later."""
    sidecar.objects.all().delete()
    pace = Pace(rate=0)
    with ThreadPoolExecutor(2) as pool, transaction.atomic():
        execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE")
        sweeping = pool.submit(in_a_thread, swept, sidecar, pace=pace)
        until(is_waited_for)
        for _ in range(3):
            pool.submit(in_a_thread, lock_at_once, wanted).result()
            until(is_waited_for)
        pace.stop()
        found = sweeping.result(timeout=20)
        assert (found.finished, found.compared) == (False, 0)
    assert swept(sidecar).finished


def lock_at_once(table):
    with transaction.atomic():
        execute("SET LOCAL lock_timeout = 500")
        execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")


def test_short_runs_come_to_all_sidecars(drifted):
    """In turn: what is in hand first, then what was swept longest ago."""
    reached = []
    for _ in range(2 * len(SIDECARS)):
        pace = Pace(rate=0)
        for found in sweep_all(
            SIDECARS, "default", pace=pace, page=4, progress=lambda rows, pace=pace: pace.stop()
        ):
            reached.append((found.sidecar, found.finished))
    labels = sorted(sidecar._meta.label for sidecar in SIDECARS)
    assert [label for label, finished in reached if finished] == labels
    assert [label for label, finished in reached if not finished] == labels


def test_a_task_repairs_and_goes_on_next_time(drifted, drain):
    first = tasks.sweep(max_seconds=0)
    assert (first["finished"], first["sidecars"]) == (False, [])
    assert len(first["not_begun"]) == len(sidecars())
    found = tasks.sweep(rate=0)
    assert (found["ok"], found["finished"], found["drift"]) == (True, True, 7)
    assert found["enqueued"] == len(events()) == 7
    drain()
    assert_in_step(BookEmbedding)


def test_a_task_says_what_it_could_not_compare(drifted, caplog):
    SidecarState.objects.filter(key=KEY).update(fingerprint="newer")
    found = tasks.sweep(repair=False)
    assert not found["ok"]
    assert "library.BookEmbedding was not compared: Workers serve" in caplog.text
    SidecarState.objects.filter(key=KEY).update(fingerprint="")
    tasks.sweep(repair=False)
    assert "7 stale" in caplog.text


def test_a_column_that_is_gone_is_named_and_the_others_go_on(drifted):
    MemoEmbedding.objects.all().delete()
    with renamed("library_memo", column="text"):
        found = {
            each.sidecar: each
            for each in sweep_all(SIDECARS, "default", pace=Pace(rate=0), repair=True)
        }
    broken = found.pop("library.MemoEmbedding")
    assert broken.error == (
        "column library_memo.text does not exist. Run makemigrations and migrate."
    )
    assert not broken.ok
    assert all(each.ok and each.finished for each in found.values())
    assert Inbox.objects.filter(sidecar=MemoEmbedding._meta.label_lower).count() == 0


def test_a_sidecar_without_its_table_is_no_source_that_is_gone(drifted):
    with renamed("library_memoembedding"):
        found = sweep(MemoEmbedding, purge=True)
    assert found.error == (
        'relation "library_memoembedding" does not exist. Run makemigrations and migrate.'
    )
    assert not found.source_is_gone


@pytest.mark.parametrize("source", [Memo, Seat], ids=lambda source: source.__name__)
def test_vectors_without_a_source_stay_until_they_are_purged(drifted, source):
    sidecar, label = source.embedding.model, source._meta.label
    with renamed(source._meta.db_table):
        found = sweep(sidecar, repair=True)
        assert (found.source_is_gone, counts(found), found.ok) == (True, {"orphaned": 7}, False)
        assert str(found).endswith(f"{label} is gone; 7 vectors left")
        assert events() == []
        assert sidecar.objects.count() == 7

        pace = Pace(rate=0)
        pace.stop()
        assert sweep(sidecar, purge=True, pace=pace).purged == 0

        found = sweep(sidecar, purge=True, page=2)
        assert (found.purged, found.finished, found.ok) == (7, True, True)
        assert str(found).endswith(f"{label} is gone; 7 vectors removed")
        assert sidecar.objects.count() == 0
        assert sweep(sidecar).ok


def test_purge_leaves_alone_what_has_a_source(drifted):
    """Also where it came back after it was found to be gone."""
    swept(purge=True)
    run = Run(BookEmbedding, "default", repair=False, size=9, pace=Pace(), progress=print)
    assert run.without_source(purge=True).purged == 0
    assert BookEmbedding.objects.count() == 7


def test_another_embedder_is_named_with_the_cure(drifted, settings):
    embedders = settings.EMBEDSYNC_EMBEDDERS
    settings.EMBEDSYNC_EMBEDDERS = {
        **embedders,
        "scripted": {**embedders["scripted"], "MODEL": "newer"},
    }
    found = sweep(BookEmbedding, repair=True)
    assert "made by another embedder" in found.error
    assert "ScriptedEmbedder::64" in found.error
    assert "ScriptedEmbedder:newer:64" in found.error
    assert (found.compared, events()) == (0, [])


def test_another_declaration_is_named_with_the_cure(drifted):
    SidecarState.objects.filter(key=KEY).update(fingerprint="newer")
    found = sweep(BookEmbedding, repair=True)
    assert "under another declaration" in found.error
    assert (found.compared, events()) == (0, [])


def test_a_declaration_that_changes_under_a_sweep_ends_it(drifted):
    """Before rows of another text are taken for drift."""

    def progress(rows):
        SidecarState.objects.filter(key=KEY).update(fingerprint="newer")

    found = sweep(BookEmbedding, repair=True, page=2, progress=progress)
    assert "under another declaration" in found.error
    assert len(events()) == 2


def test_an_embedder_that_is_not_there_is_named(drifted, settings):
    settings.EMBEDSYNC_EMBEDDERS = {"hashing": settings.EMBEDSYNC_EMBEDDERS["hashing"]}
    assert "no embedder 'scripted'" in sweep(BookEmbedding).error
    assert swept(Parcel.embedding.model).ok


def test_rows_that_the_role_may_not_see_are_not_taken_for_deleted(drifted):
    execute("CREATE ROLE sweeper")
    execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO sweeper")
    execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO sweeper")
    execute("ALTER TABLE library_book ENABLE ROW LEVEL SECURITY")
    try:
        execute("SET ROLE sweeper")
        found = sweep(BookEmbedding, repair=True)
    finally:
        execute("RESET ROLE")
        execute("ALTER TABLE library_book DISABLE ROW LEVEL SECURITY")
        execute("DROP OWNED BY sweeper")
        execute("DROP ROLE sweeper")
    assert "row-level security" in found.error
    assert events() == []


def test_a_database_that_fails_is_not_the_sidecars_fault(drifted):
    stopped_after(1)
    with pytest.raises(OperationalError):
        swept(page=1, progress=lambda rows: execute("SELECT pg_terminate_backend(%s)", [pid()]))
    connection.close()
    assert swept().resumed >= 2


def test_a_timeout_of_the_role_ends_one_sweep_and_no_other(drifted):
    stopped_after(1)
    execute("SET statement_timeout = 1")
    try:
        found = sweep(BookEmbedding, page=1, progress=lambda rows: execute("SELECT pg_sleep(1)"))
    finally:
        execute("RESET statement_timeout")
    assert "statement timeout" in found.error
    assert swept().resumed >= 2


def pid():
    return connection.connection.info.backend_pid
