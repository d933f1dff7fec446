"""A database that cuts connections, is full, is locked, or may only be read for a while."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.db import connection

from embedsync.models import Ledger
from tests.application import Application, begin, is_settled, is_waited_for, uncommitted
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = (
    "INSERT INTO library_book (id, title, body, year, published)"
    " SELECT n, 'Book ' || n, '', 2000, true FROM generate_series(1, %s) AS n"
)
SHORT = {"DJANGO_SETTINGS_MODULE": "tests.short_lease"}
ROLE = "embedsync_test_worker"


def terminate(name):
    """End the connections of a worker; how many there were."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
            [name],
        )
        return cursor.rowcount


@pytest.mark.parametrize("step", ["mid_fold", "mid_complete"])
def test_a_worker_whose_connection_is_cut_in_a_move_goes_on(drain, stepping, step):
    """Fault 8: the move is rolled back, the worker comes back by itself."""
    drain()
    worker = stepping(HOLD_AT=step, PGAPPNAME="victim")
    with Application() as application:
        application.execute(INSERT, [3])
        worker.says(f"holds {step}")
        assert terminate("victim") > 0
        worker.goes_on()
        worker.says("the database failed")
        until(is_settled)
    # What had been embedded by then is remembered.
    assert len(stepping.calls()) == 3
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


def test_a_worker_whose_connections_are_cut_in_a_call_keeps_its_lease(drain, worker_process):
    """Fault 8: its own, and that of the thread that extends leases; nobody else takes the row."""
    drain()
    more = {"SCRIPTED_SLEEP": "4", "PGAPPNAME": "victim", **SHORT}
    with Application() as application:
        worker = begin(worker_process, **more)
        Book.objects.create(title="SLEEP")
        worker.says("asleep")
        begin(worker_process, **SHORT)
        held = Ledger.objects.values_list("token", "attempts")
        [first] = held
        for _ in range(6):
            terminate("victim")
            application.execute("SELECT pg_sleep(0.3)")
            assert [*held] == [first]
    until(is_settled)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize(("timeout", "captured"), [("50ms", False), ("5s", True)])
def test_the_applications_own_timeout_ends_its_statement(drain, timeout, captured):
    """Fault 15: where it is shorter than the wait of a trigger for a locked inbox; a limit."""
    drain()
    with Application(forgiven=(psycopg.errors.QueryCanceled,)) as application:
        application.execute(f"SET statement_timeout = '{timeout}'")
        with uncommitted("LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE"):
            if captured:
                application.execute(INSERT, [1])
            else:
                with pytest.raises(psycopg.errors.QueryCanceled):
                    application.execute(INSERT, [1])
        assert Book.objects.count() == captured
        assert bool(application.warnings) == captured
    until(lambda: drain() and is_settled())
    assert_in_step(BookEmbedding)


def test_a_cancel_of_the_applications_statement_ends_it(drain):
    """Fault 15: while it waits for the inbox; embedsync does not swallow it."""
    drain()
    with Application(forgiven=(psycopg.errors.QueryCanceled,)) as application:
        pid = application.first.connection.info.backend_pid
        with (
            uncommitted("LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE"),
            ThreadPoolExecutor(1) as pool,
        ):
            inserted = pool.submit(application.execute, INSERT, [1])
            until(lambda: is_waited_for("embedsync_inbox"), every=0.001)
            execute("SELECT pg_cancel_backend(%s)", [pid])
            with pytest.raises(psycopg.errors.QueryCanceled):
                inserted.result()
    assert not Book.objects.exists()
    assert application.warnings == []


@pytest.fixture
def full():
    """Let inserts into a table fail as they do where its disk is full."""
    execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    )

    def fill(table):
        execute(
            f"CREATE TRIGGER full_disk BEFORE INSERT ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )

    yield fill
    execute("DROP FUNCTION IF EXISTS full_disk() CASCADE")


@pytest.mark.parametrize("table", ["embedsync_inbox", "embedsync_ledger", "library_bookembedding"])
def test_a_full_disk_fails_no_write_and_parks_no_row(drain, worker_process, full, table):
    """Fault 13, as far as one can be made: its error, where it would arise."""
    drain()
    worker = begin(worker_process, **SHORT)
    full(table)
    with Application() as application:
        application.execute(INSERT, [3])
        if table == "embedsync_inbox":
            assert "could not extend file" in application.warnings[0]
        # More often than a row is tried.
        for _ in range({"embedsync_ledger": 1, "library_bookembedding": 4}.get(table, 0)):
            worker.says("could not extend file")
        execute("DROP FUNCTION full_disk() CASCADE")
        until(is_settled)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


@pytest.fixture
def as_role(transactional_db, environment):
    """The environment of workers with a role of their own."""
    execute(f"DROP ROLE IF EXISTS {ROLE}")
    execute(f"CREATE ROLE {ROLE} LOGIN SUPERUSER")
    user = connection.settings_dict["USER"]
    url = environment["DATABASE_URL"].replace(f"//{user}", f"//{ROLE}", 1)
    yield {"DATABASE_URL": url, "PGAPPNAME": ROLE}
    execute(f"ALTER ROLE {ROLE} RESET ALL")
    terminate(ROLE)
    execute(f"DROP ROLE {ROLE}")


@pytest.mark.parametrize("when", ["while it runs", "when it starts"])
def test_a_worker_that_may_only_read_waits_until_it_may_write(drain, worker_process, as_role, when):
    """Fault 53: as on a standby; it says so, tries again, and does not end."""
    drain()
    if when != "when it starts":
        worker = begin(worker_process, **as_role)
    execute(f"ALTER ROLE {ROLE} SET default_transaction_read_only = on")
    terminate(ROLE)
    with Application() as application:
        application.execute(INSERT, [3])
        if when == "when it starts":
            worker = worker_process(**as_role)
        assert "the database failed" in worker.says("in a read-only transaction")
        execute(f"ALTER ROLE {ROLE} RESET default_transaction_read_only")
        terminate(ROLE)
        until(is_settled)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)
