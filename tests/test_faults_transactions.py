"""Transactions of every kind: deadlocked, rolled back in part, serializable, prepared."""

import random
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.db import connection
from psycopg.pq import TransactionStatus

from embedsync.models import Inbox
from embedsync.queue import Queue
from tests.application import (
    Application,
    begin,
    is_settled,
    marks,
    settle,
    uncommitted,
)
from tests.books import KEY, BookEmbedding, execute
from tests.library.models import Book
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = "INSERT INTO library_book (id, title, body, year, published) VALUES (%s, %s, '', 1, true)"


def query(sql):
    """The one value that a query returns."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def end(worker):
    """Stop a worker in order; what it said."""
    worker.send(signal.SIGTERM)
    status, output = worker.wait()
    assert status == 0, output
    return output


def deadlocks():
    return query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


def test_no_worker_takes_part_in_a_deadlock_of_the_application(drain, worker_process):
    """Fault 45: one of two updaters is aborted, as without embedsync, and its events with it."""
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 41)])
    drain()
    workers = [begin(worker_process) for _ in range(2)]
    before = deadlocks()
    halves = [list(range(1, 21)), list(range(21, 41))]
    update = "UPDATE library_book SET title = %s WHERE id = ANY(%s)"

    with (
        ThreadPoolExecutor(2) as pool,
        Application(forgiven=psycopg.errors.DeadlockDetected) as application,
    ):
        clients = [application.client(), application.client()]
        for client in clients:
            client.execute("SET deadlock_timeout = '20ms'")

        def finish(client, half, title):
            try:
                client.execute(update, [title, half])
            except psycopg.errors.DeadlockDetected:
                client.execute("ROLLBACK")
            else:
                client.execute("COMMIT")

        for turn in range(10):
            for client, half in zip(clients, halves, strict=True):
                client.execute("BEGIN")
                client.execute(update, [f"first {turn}", half])
            list(pool.map(finish, clients, reversed(halves), [f"A {turn}", f"B {turn}"]))
        victims = [made.error for made in application.made if made.error]
        pids = {client.connection.info.backend_pid for client in clients}

    assert len(victims) == 10
    for victim in victims:
        assert set(map(int, re.findall(r"Process (\d+)", victim.diag.message_detail))) == pids
    until(is_settled)
    assert_in_step(BookEmbedding)
    assert not any("deadlock" in end(worker) for worker in workers)
    # A connection tells its statistics when it ends.
    until(lambda: deadlocks() - before >= 10)
    assert deadlocks() - before == 10


def test_the_events_of_the_loser_of_a_deadlock_are_gone_with_its_rows(drain):
    """Fault 45: those of the winner are there, once each."""
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 5)])
    drain()
    update = "UPDATE library_book SET title = %s WHERE id = ANY(%s)"
    with (
        ThreadPoolExecutor(1) as pool,
        Application(forgiven=psycopg.errors.DeadlockDetected) as application,
    ):
        winner, loser = application.client(), application.client()
        winner.execute("SET deadlock_timeout = '10s'")
        loser.execute("SET deadlock_timeout = '20ms'")
        for client, half in ((winner, [1, 2]), (loser, [3, 4])):
            client.execute("BEGIN")
            client.execute(update, ["first", half])
        waiting = pool.submit(winner.execute, update, ["second", [3, 4]])
        until(lambda: is_blocked(winner))
        with pytest.raises(psycopg.errors.DeadlockDetected):
            loser.execute(update, ["second", [1, 2]])
        loser.execute("ROLLBACK")
        waiting.result()
        winner.execute("COMMIT")
    events = Inbox.objects.filter(sidecar=KEY).order_by("seq").values_list("source_pk", flat=True)
    assert list(events) == ["1", "2", "3", "4"]
    drain()
    assert_in_step(BookEmbedding)


def is_blocked(client):
    pid = client.connection.info.backend_pid
    return query(f"SELECT cardinality(pg_blocking_pids({pid})) > 0")


def test_nothing_of_a_savepoint_that_is_rolled_back_is_captured(drain):
    """Fault 46: of 1000 subtransactions one after the other each second is kept."""
    drain()
    with Application() as application, application.first.transaction():
        for n in range(1000):
            application.execute("SAVEPOINT one")
            application.execute(INSERT, [n, f"Book {n}"])
            application.execute(f"{'ROLLBACK TO' if n % 2 else 'RELEASE'} one")
    assert not application.warnings
    assert set(Inbox.objects.values_list("source_pk", flat=True)) == set(
        map(str, range(0, 1000, 2))
    )
    assert Inbox.objects.count() == 500
    drain()
    assert_in_step(BookEmbedding)


def test_nothing_of_nested_savepoints_that_are_rolled_back_is_captured(drain):
    """Fault 46: what lies below the one that is rolled back stays, what lies above goes."""
    drain()
    with Application() as application, application.first.transaction():
        for n in range(100):
            application.execute(f"SAVEPOINT s{n}")
            application.execute(INSERT, [n, f"Book {n}"])
        application.execute("ROLLBACK TO s60")
        application.execute("UPDATE library_book SET title = 'kept' WHERE id < 10")
        application.execute("RELEASE s20")
    expected = [*map(str, range(60)), *map(str, range(10))]
    assert sorted(Inbox.objects.values_list("source_pk", flat=True)) == sorted(expected)
    drain()
    assert_in_step(BookEmbedding)


def test_nothing_of_a_block_that_catches_an_error_is_captured(drain):
    """Fault 46: subtransactions that the application's own functions make."""
    drain()
    with Application() as application:
        application.execute("""
            DO $$ BEGIN
                FOR n IN 1..1000 LOOP
                    BEGIN
                        INSERT INTO library_book (id, title, body, year, published)
                        VALUES (n, 'Book', '', 1, true);
                        PERFORM 1 / (n % 2);
                    EXCEPTION WHEN division_by_zero THEN NULL;
                    END;
                END LOOP;
            END $$
        """)
    assert sorted(Inbox.objects.values_list("source_pk", flat=True)) == sorted(
        map(str, range(1, 1000, 2))
    )
    drain()
    assert_in_step(BookEmbedding)


class Schedule:
    """Transactions of four clients, interleaved by chance, in which no one waits for another."""

    def __init__(self, application, level, capture):
        self.clients = [application.client() for _ in range(4)]
        self.level = level
        self.refused = 0
        self._chance = random.Random(1)
        self._changed = {}
        for client in self.clients:
            client.execute(f"SET embedsync.capture = '{capture}'")
            # Or what a transaction has read depends on the planner's mood.
            client.execute("SET enable_seqscan = off")

    def run(self, steps):
        """How many transactions were refused because they could not be serialized."""
        for _ in range(steps):
            client = self._chance.choice(self.clients)
            try:
                self._step(client)
            except psycopg.errors.SerializationFailure:
                self.refused += 1
                self._roll_back(client)
        for client in list(self._changed):
            self._roll_back(client)
        return self.refused

    def _step(self, client):
        if client not in self._changed:
            client.execute(f"BEGIN {self.level}")
            self._changed[client] = set()
        elif self._chance.random() < 0.2:
            client.execute("COMMIT")
            del self._changed[client]
        elif self._chance.random() < 0.5:
            client.execute("SELECT title FROM library_book WHERE id = %s", [self._any()])
        else:
            self._update(client, self._any())

    def _update(self, client, key):
        if any(key in keys for other, keys in self._changed.items() if other is not client):
            return
        client.execute("UPDATE library_book SET title = %s WHERE id = %s", [f"{self._any()}", key])
        self._changed[client].add(key)

    def _any(self):
        return self._chance.randrange(1, 21)

    def _roll_back(self, client):
        del self._changed[client]
        # A COMMIT that was refused has ended it.
        if client.connection.info.transaction_status != TransactionStatus.IDLE:
            client.execute("ROLLBACK")


@pytest.fixture
def serializable(transactional_db):
    """Transactions of the whole database are so unless they say otherwise."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    yield
    execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")


@pytest.mark.parametrize("level", ["", "ISOLATION LEVEL REPEATABLE READ"])
def test_no_more_transactions_are_refused_than_without_capture(
    drain, worker_process, serializable, level
):
    """Fault 47: the application's isolation is its own, and the workers' is theirs."""
    drain()
    worker = begin(worker_process)
    refused = {}
    for capture in ("off", "on"):
        Book.objects.all().delete()
        Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 21)])
        until(is_settled)
        with Application(forgiven=psycopg.errors.SerializationFailure) as application:
            refused[capture] = Schedule(application, level, capture).run(1500)
            assert application.warnings == []
    assert refused["on"] == refused["off"] > 10
    until(is_settled)
    assert_in_step(BookEmbedding)
    assert "the database failed" not in end(worker)


def test_what_an_idle_worker_has_read_is_no_reason_to_refuse(drain, serializable):
    """Fault 47: its only question is asked outside of its transactions."""
    drain()
    connection.close()
    with Application() as application:
        client = application.client()
        # As long as it is open, what others have read is kept.
        client.execute("BEGIN")
        client.execute("UPDATE library_book SET year = 0")
        assert Queue("default", "idle").peek([KEY], [KEY]) == (False, False, False)
        assert (
            query(
                "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock'"
                " AND relation::regclass::text LIKE 'embedsync%'"
            )
            == 0
        )
        client.execute("ROLLBACK")


@pytest.fixture
def two_phase(transactional_db):
    """() -> the client's open transaction is prepared, and its name."""
    if query("SELECT current_setting('max_prepared_transactions')") == "0":
        pytest.skip("max_prepared_transactions of this server is 0")
    name = f"embedsync_{connection.settings_dict['NAME']}"

    def prepare(client):
        client.execute(f"PREPARE TRANSACTION '{name}'")
        return name

    yield prepare
    if query("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"):
        execute(f"ROLLBACK PREPARED '{name}'")


@pytest.mark.parametrize(("end", "found"), [("COMMIT", [1]), ("ROLLBACK", [])])
def test_a_prepared_transaction_is_captured_when_it_is_committed(drain, two_phase, end, found):
    """Fault 48: whoever commits it, and not before."""
    drain()
    with Application() as application:
        application.execute("BEGIN")
        application.execute(INSERT, [1, "prepared"])
        name = two_phase(application.first)
        assert application.warnings == []
        drain()
        assert not Inbox.objects.exists()
        application.client().execute(f"{end} PREPARED '{name}'")
    assert list(Inbox.objects.values_list("source_pk", flat=True)) == [str(key) for key in found]
    drain()
    assert list(stored_vectors(BookEmbedding)) == found
    assert_in_step(BookEmbedding)


def test_a_prepared_transaction_that_was_not_captured_is_waited_for(drain, two_phase):
    """Fault 48: the comparison comes after its end, however late that is."""
    drain()
    before = marks()
    with Application() as application:
        with uncommitted("LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE"):
            application.execute("BEGIN")
            application.execute(INSERT, [1, "prepared"])
            name = two_phase(application.first)
        assert marks() == before + 1
        for _ in range(3):
            drain()
        assert not is_settled()
        application.execute(f"COMMIT PREPARED '{name}'")
    settle(drain, BookEmbedding)
    assert list(stored_vectors(BookEmbedding)) == [1]
