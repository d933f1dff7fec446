"""An application at work while something breaks: no statement of it may fail, and none may wait."""

import contextlib
import functools
import itertools
import random
import threading
import time
from dataclasses import dataclass

import psycopg
from django.db import connection

from embedsync.models import SidecarState
from tests.sync import assert_in_step
from tests.workers import until

LIMIT = 0.5
PAUSE = 0.005
BUSY = 0.05
BATCH = 1000
# An old transaction elsewhere: until it ends, nothing that is deleted can be cleared away.
OLD = "SELECT pg_current_xact_id()"


def connect(**more):
    """A connection to the test database, in autocommit."""
    values = connection.settings_dict
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD"}
    names |= {"host": "HOST", "port": "PORT"}
    given = {key: values[name] for key, name in names.items() if values[name]}
    return psycopg.connect(**{**given, **values["OPTIONS"], **more}, autocommit=True)


@contextlib.contextmanager
def uncommitted(*statements):
    """Run statements in a transaction of somebody else's, which is rolled back at the end."""
    with connect() as other:
        other.execute("BEGIN")
        for sql in statements:
            other.execute(sql)
        yield other
        other.execute("ROLLBACK")


def make_backlog(application, size):
    """Insert so many books, ``BATCH`` in a statement."""
    for first in range(0, size, BATCH):
        application.execute(
            "INSERT INTO library_book (id, title, body, year, published)"
            " SELECT n, 'Book ' || n, '', 2000, true FROM generate_series(%s::int, %s::int) n",
            [first + 1, first + BATCH],
        )


@dataclass(frozen=True)
class Statement:
    """A statement that the application has made, and how it went."""

    sql: str
    began: float
    ended: float
    error: psycopg.Error | None


class Client:
    """A connection of the application's: every statement is timed, every error kept."""

    def __init__(self, application, opened):
        self.application = application
        self.connection = opened
        opened.add_notice_handler(
            lambda notice: application.warnings.append(notice.message_primary)
        )
        # Or a test whose own locks it waits for would never end.
        opened.execute("SET statement_timeout = '10s'")

    def execute(self, sql, params=None):
        began, error = time.monotonic(), None
        try:
            return self.connection.execute(sql, params)
        except psycopg.Error as caught:
            error = caught
            raise
        finally:
            self.application.made.append(Statement(sql, began, time.monotonic(), error))

    @contextlib.contextmanager
    def transaction(self, end="COMMIT"):
        self.execute("BEGIN")
        yield
        self.execute(end)


class Application:
    """Writers on the books, each with rows of its own, and clients for what a test does itself.

    At its end it asserts that no statement has failed, errors of the classes ``forgiven`` aside,
    and that none has waited for longer than ``LIMIT``. ``text`` are the columns that are written.
    ``connect`` opens its connections, and ``control`` that of what they are compared with.
    """

    def __init__(
        self, writers=0, *, text=("title", "body"), forgiven=(), connect=connect, control=None
    ):
        self.made = []
        self.warnings = []
        self.forgiven = forgiven
        self._connect = connect
        self._stopping = threading.Event()
        self._clients = []
        self._control = Control((control or connect)(), self._stopping)
        self._writers = [
            Writer(self.client(), text, number, self._stopping) for number in range(1, writers + 1)
        ]

    def __enter__(self):
        for thread in (self._control, *self._writers):
            thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._stopping.set()
        for thread in (*self._writers, self._control):
            thread.join()
        for client in self._clients:
            client.connection.close()
        if kind is None:
            self.assert_unharmed()

    def client(self, **more):
        """Another connection."""
        client = Client(self, self._connect(**more))
        self._clients.append(client)
        return client

    @functools.cached_property
    def first(self):
        """A connection for what a test does itself."""
        return self.client()

    def execute(self, sql, params=None):
        return self.first.execute(sql, params)

    def work(self, acts):
        """Return when every writer has done so many acts more."""
        goals = [(writer, writer.acts + acts) for writer in self._writers]
        until(lambda: self.errors or all(writer.acts >= goal for writer, goal in goals))
        self.assert_unharmed()

    @property
    def errors(self):
        """Statements that failed, those that are forgiven aside."""
        return [
            (made.sql, made.error)
            for made in list(self.made)
            if made.error is not None and not isinstance(made.error, self.forgiven)
        ]

    def waits(self):
        """How long each statement has waited, and which it was."""
        return [(self._control.wait_of(made), made.sql) for made in list(self.made)]

    def assert_unharmed(self):
        assert not self.errors, self.errors
        waited, sql = max(self.waits(), default=(0.0, ""))
        assert waited < LIMIT, f"{waited:.2f} s for {sql}"


class Control(threading.Thread):
    """Updates a table that has no trigger all the time.

    When that takes long, it is the machine that is busy, and no wait of the application's in that
    time tells anything about embedsync.
    """

    def __init__(self, opened, stopping):
        super().__init__(name="control", daemon=True)
        self._connection = opened
        self._stopping = stopping
        self._spells = []

    def run(self):
        table = f"control_{self.ident}"
        with self._connection as opened:
            opened.execute(f"CREATE TABLE {table} AS SELECT 0 AS n")
            try:
                while not self._stopping.is_set():
                    began = time.monotonic() + PAUSE
                    self._stopping.wait(PAUSE)
                    opened.execute(f"UPDATE {table} SET n = n + 1")
                    ended = time.monotonic()
                    if ended - began > BUSY:
                        self._spells.append((began, ended))
            finally:
                opened.execute(f"DROP TABLE {table}")

    def wait_of(self, made):
        """How long a statement has taken, without the time in which the machine was busy."""
        busy = sum(
            max(0.0, min(made.ended, ended) - max(made.began, began))
            for began, ended in list(self._spells)
        )
        return made.ended - made.began - busy


class Writer(threading.Thread):
    """Inserts, updates and deletes rows of its own, one or a few at a time, until told to stop."""

    def __init__(self, client, text, number, stopping):
        super().__init__(name=f"writer {number}", daemon=True)
        self.acts = 0
        self._client = client
        self._text = text
        self._chance = random.Random(number)
        self._numbers = itertools.count(number * 1_000_000)
        self._keys = []
        self._stopping = stopping

    def run(self):
        # An error is kept by the client; whoever waits for this writer sees it there.
        with contextlib.suppress(psycopg.Error):
            while not self._stopping.wait(PAUSE):
                self._act()
                self.acts += 1

    def _act(self):
        if self._chance.random() < 0.2:
            kept = list(self._keys)
            end = self._chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])
            with self._client.transaction(end):
                for _ in range(3):
                    self._write()
            if end == "ROLLBACK":
                self._keys = kept
        else:
            self._write()

    def _write(self):
        size = self._chance.choice([1, 1, 5])
        if len(self._keys) < 20 or self._chance.random() < 0.3:
            self._insert(size)
            return
        some = self._chance.sample(self._keys, size)
        match self._chance.choice(["text", "text", "year", "published", "delete"]):
            case "text":
                column = self._chance.choice(self._text)
                self._update(f"{column} = %s", [self._words()], some)
            case "year":
                self._update("year = year + 1", [], some)
            case "published":
                self._update("published = %s", [self._chance.choice(["true", "false"])], some)
            case "delete":
                self._client.execute("DELETE FROM library_book WHERE id = ANY(%s)", [some])
                self._keys = [key for key in self._keys if key not in some]

    def _insert(self, size):
        keys = list(itertools.islice(self._numbers, size))
        columns = ["id", *self._text, "year", "published"]
        row = f"({', '.join(['%s'] * len(columns))})"
        values = [[key, *(self._words() for _ in self._text), 2000, "true"] for key in keys]
        self._client.execute(
            f"INSERT INTO library_book ({', '.join(columns)}) VALUES {', '.join([row] * size)}",
            [*itertools.chain(*values)],
        )
        self._keys += keys

    def _update(self, change, params, keys):
        self._client.execute(
            f"UPDATE library_book SET {change} WHERE id = ANY(%s)", [*params, keys]
        )

    def _words(self):
        return f"words {self._chance.randrange(10_000)}"


def begin(worker_process, **more):
    """A worker process that has begun to serve."""
    worker = worker_process(**more)
    worker.says("serving")
    return worker


def is_waited_for(table):
    """Whether anybody waits for a lock on this table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE relation = %s::regclass AND NOT granted", [table]
        )
        return cursor.rowcount > 0


def compare_all():
    """Have all rows compared with their vectors."""
    SidecarState.objects.update(backfill_after=None, backfilled_at=None)


def marks():
    """How many transactions have left a mark because their changes were not captured."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM embedsync_missed"
        )
        return cursor.fetchone()[0]


def is_settled():
    """Whether nothing is owed: no event, no row, no comparison."""
    with connection.cursor() as cursor:
        # In one statement: what is owed moves from one of these tables to another.
        cursor.execute(
            "SELECT NOT EXISTS (SELECT FROM embedsync_inbox)"
            " AND NOT EXISTS (SELECT FROM embedsync_ledger)"
            " AND NOT EXISTS (SELECT FROM embedsync_sidecar WHERE backfilled_at IS NULL"
            " OR missed <> %(made)s OR missed_seen <> %(made)s)",
            {"made": marks()},
        )
        return cursor.fetchone()[0]


def settle(drain, *sidecars):
    """Drain until nothing is owed; then all vectors have to be right."""
    # Again, because a comparison waits for the transactions of all databases of the server.
    until(lambda: drain() and is_settled())
    assert_in_step(*sidecars)
