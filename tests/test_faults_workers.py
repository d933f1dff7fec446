"""Workers that die, stop, lose their connection or their clock in the middle of something."""

import signal
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F

from embedsync.models import Ledger, WorkerState
from embedsync.worker import Worker
from tests.application import Application, begin, is_settled
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.sync import assert_in_step
from tests.workers import until, work_off

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = (
    "INSERT INTO library_book (id, title, body, year, published)"
    " SELECT n, 'Book ' || n, '', 2000, true FROM generate_series(1, %s) AS n"
)
UPDATE = "UPDATE library_book SET title = %s"
SHORT = {"DJANGO_SETTINGS_MODULE": "tests.short_lease"}
A_DAY = 86_400


def now():
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]


def ledger():
    return list(Ledger.objects.order_by("source_pk").values())


def kill(worker):
    worker.send(signal.SIGKILL)
    worker.process.wait()


@pytest.mark.parametrize(
    ("step", "calls_before", "calls"),
    [
        ("after_fold", 0, 1),
        ("after_read", 0, 1),
        ("mid_embed", 1, 2),
        ("before_complete", 1, 2),
        ("mid_complete", 1, 2),
    ],
)
def test_a_killed_workers_rows_wait_for_the_end_of_its_lease(
    drain, stepping, step, calls_before, calls
):
    """Faults 1, 2 and 3: nobody claims them before, whoever does after counts the death."""
    drain()
    worker = stepping(HOLD_AT=step)
    with Application() as application:
        application.execute(INSERT, [3])
        worker.says(f"holds {step}")
        kill(worker)
        leased = ledger()
        assert [(row["source_pk"], row["attempts"]) for row in leased] == [
            ("1", 1),
            ("2", 1),
            ("3", 1),
        ]
        assert len({row["token"] for row in leased} - {None}) == 1
        assert len(stepping.calls()) == 3 * calls_before
        drain()
        assert ledger() == leased
        assert not BookEmbedding.objects.exists()
        make_due()
        other = Worker()
        other.start()
        [claim] = other.queue.due([KEY], 100)
        assert claim.attempts == {"1": 2, "2": 2, "3": 2}
        work_off(other, claim)
    assert sorted(stepping.calls()) == sorted([f"Book {n}. " for n in (1, 2, 3)] * calls)
    assert_in_step(BookEmbedding)


def test_a_killed_workers_rows_are_taken_over_when_its_lease_ends(drain, stepping, worker_process):
    """Fault 1: by a worker that waits, and not a moment before."""
    drain()
    # Long enough for the other to be there before it ends.
    worker = stepping(HOLD_AT="after_fold", SHORT_LEASE="6", **SHORT)
    with Application() as application:
        application.execute(INSERT, [1])
        worker.says("holds after_fold")
        kill(worker)
        ends = Ledger.objects.get().run_at
        begin(worker_process, **SHORT)
        until(is_settled)
    assert ends < BookEmbedding.objects.get().embedded_at < ends + timedelta(seconds=20)
    assert_in_step(BookEmbedding)


def test_a_worker_killed_after_its_commit_owes_nothing(drain, stepping):
    """Fault 4: nothing is embedded a second time."""
    drain()
    worker = stepping(HOLD_AT="after_commit")
    with Application() as application:
        application.execute(INSERT, [3])
        worker.says("holds after_commit")
        kill(worker)
    assert is_settled()
    drain()
    assert sorted(stepping.calls()) == ["Book 1. ", "Book 2. ", "Book 3. "]
    assert_in_step(BookEmbedding)


class Other:
    """A worker in this process that has taken rows over."""

    def __init__(self):
        self.worker = Worker()
        self.worker.start()
        [self.claim] = until(lambda: self.worker.queue.due([KEY], 100))

    def assert_undisturbed(self):
        assert not BookEmbedding.objects.exists()
        assert {row["token"] for row in ledger()} == {self.claim.token}

    def finish(self):
        work_off(self.worker, self.claim)


@pytest.mark.parametrize("step", ["mid_embed", "before_complete"])
def test_a_worker_that_was_stopped_for_longer_than_its_lease_writes_nothing(drain, stepping, step):
    """Fault 7: another has taken over, the late one says that it has lost, and goes on."""
    drain()
    worker = stepping(HOLD_AT=step, **SHORT)
    with Application() as application:
        application.execute(INSERT, [2])
        worker.says(f"holds {step}")
        worker.send(signal.SIGSTOP)
        application.execute(UPDATE, ["new"])
        other = Other()
        worker.send(signal.SIGCONT)
        worker.goes_on()
        worker.says("lost the lease of 2 rows")
        other.assert_undisturbed()
        other.finish()
        until(is_settled)
        assert_in_step(BookEmbedding)
        application.execute(UPDATE, ["newer"])
        until(is_settled)
    assert_in_step(BookEmbedding)


@pytest.fixture
def impatient(transactional_db):
    """Or else a test whose own moves are held up would never end."""
    before = connection.settings_dict["OPTIONS"]
    connection.settings_dict["OPTIONS"] = {**before, "options": "-c lock_timeout=5s"}
    connection.close()
    yield
    connection.settings_dict["OPTIONS"] = before
    connection.close()


@pytest.mark.parametrize("step", ["mid_fold", "mid_complete"])
def test_a_worker_that_was_stopped_in_a_move_holds_up_nobody(drain, stepping, step, impatient):
    """Fault 7: the server takes its locks away, when a lease would have ended."""
    drain()
    worker = stepping(HOLD_AT=step, **SHORT)
    with Application() as application:
        application.execute(INSERT, [2])
        worker.says(f"holds {step}")
        worker.send(signal.SIGSTOP)
        application.execute(UPDATE, ["new"])
        until(lambda: drain() and is_settled())
        assert_in_step(BookEmbedding)
        worker.send(signal.SIGCONT)
        worker.goes_on()
        worker.says("the database failed")
        application.execute(UPDATE, ["newer"])
        until(is_settled)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("off", [-A_DAY, A_DAY])
def test_the_clock_of_a_workers_host_decides_nothing(drain, worker_process, off):
    """Fault 27: leases, retries and what is written have the database's time."""
    drain()
    Ledger.objects.create(
        sidecar=KEY,
        source_pk="77",
        token="b6a1b5a6-6f0a-4a3c-9d3e-0e5a3f1f2c11",
        run_at=now() + timedelta(hours=1),
        queued_at=now(),
        worker="somebody alive",
    )
    Ledger.objects.create(sidecar=KEY, source_pk="88", run_at=now(), queued_at=now())
    others = Ledger.objects.filter(source_pk="77")
    before = others.values().get()
    worker = worker_process(steps=True, HOLD_AT="after_fold", CLOCK_OFF=str(off))
    began = now()
    worker.says(f"its clock says {began + timedelta(seconds=off):%Y-%m-%d}")
    worker.says("serving")
    with Application() as application:
        application.execute(INSERT, [1])
        worker.says("holds after_fold")
        leased = Ledger.objects.get(source_pk="1").run_at
        assert began + timedelta(seconds=60) <= leased <= now() + timedelta(seconds=60)
        worker.goes_on()
        until(lambda: not Ledger.objects.exclude(source_pk="77").exists())
        until(WorkerState.objects.exists)
    assert others.values().get() == before
    assert began <= BookEmbedding.objects.get().embedded_at <= now()
    assert began - timedelta(minutes=1) <= WorkerState.objects.get().seen_at <= now()
    others.delete()
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("hours", [-1, 1])
def test_leases_that_move_by_an_hour_write_nothing_wrong(drain, stepping, hours):
    """Fault 28: as if the database's clock had jumped, while a worker is about to write."""
    drain()
    worker = stepping(HOLD_AT="before_complete")
    with Application() as application:
        application.execute(INSERT, [2])
        worker.says("holds before_complete")
        Ledger.objects.update(run_at=F("run_at") + timedelta(hours=hours))
        application.execute(UPDATE, ["new"])
        if hours < 0:
            other = Other()
            worker.goes_on()
            worker.says("lost the lease of 2 rows")
            other.assert_undisturbed()
            other.finish()
        else:
            drain()
            assert [row["dirty"] for row in ledger()] == [True, True]
            worker.goes_on()
        until(is_settled)
    assert_in_step(BookEmbedding)


def test_leases_that_move_to_and_fro_write_nothing_wrong(drain, worker_process):
    """Fault 28: while all are at work."""
    drain()
    workers = [begin(worker_process) for _ in range(2)]
    # As workers lock, or the test itself would be one half of a deadlock.
    jump = (
        "WITH locked AS (SELECT ctid FROM embedsync_ledger"
        ' ORDER BY sidecar COLLATE "C", source_pk COLLATE "C" FOR UPDATE)'
        " UPDATE embedsync_ledger SET run_at = run_at + %s * interval '1 hour'"
        " WHERE ctid = ANY(ARRAY(SELECT ctid FROM locked))"
    )
    with Application(writers=2) as application:
        for hours in (-1, 1, -1, -1, 1, 1, -1, 1, -1, -1):
            application.work(5)
            execute(jump, [hours])
    until(lambda: make_due() or is_settled(), every=0.5)
    assert [worker.process.poll() for worker in workers] == [None, None]
    assert_in_step(BookEmbedding)


def deadlocks():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]


@pytest.fixture
def written(transactional_db):
    """How often each book's vector has been written so far, by key."""
    execute(
        "CREATE TABLE written (source_id bigint);"
        "CREATE FUNCTION note_written() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO written VALUES (NEW.source_id); RETURN NEW; END $$;"
        "CREATE TRIGGER written AFTER INSERT OR UPDATE ON library_bookembedding"
        " FOR EACH ROW EXECUTE FUNCTION note_written();"
    )

    def counts():
        with connection.cursor() as cursor:
            cursor.execute("SELECT source_id, count(*) FROM written GROUP BY source_id")
            return dict(cursor.fetchall())

    yield counts
    execute("DROP FUNCTION note_written() CASCADE; DROP TABLE written")


def test_twenty_workers_write_each_row_once(drain, worker_process, written):
    """Fault 29: and never wait for one another in a circle."""
    drain()
    before = deadlocks()
    workers = [worker_process() for _ in range(20)]
    for worker in workers:
        worker.says("serving")
    with Application() as application:
        application.execute(INSERT, [10])
        until(is_settled)
        for round_ in range(2, 8):
            application.execute(UPDATE, [f"round {round_}"])
            until(is_settled)
            assert written() == dict.fromkeys(range(1, 11), round_)
    for worker in workers:
        worker.send(signal.SIGTERM)
    ended = [worker.wait() for worker in workers]
    assert [status for status, _ in ended] == [0] * 20
    assert not any("deadlock" in output for _, output in ended)
    # A connection tells its statistics when it ends.
    assert deadlocks() == before
    assert_in_step(BookEmbedding)
