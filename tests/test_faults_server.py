"""A server that restarts, crashes, or cannot be reached any more, while workers are at work."""

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import threading
from urllib.parse import urlencode

import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connection

from embedsync.models import Inbox, Ledger
from example_project.postgres import Cluster
from tests.application import Application, begin, is_settled
from tests.books import BookEmbedding, execute
from tests.embedded import VERSION, room_for_clusters
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

BOOKS = 5
SHORT = {"DJANGO_SETTINGS_MODULE": "tests.short_lease"}
TEMPLATE = "migrated"


@pytest.fixture(scope="module")
def cluster(postgres, django_db_blocker):
    """A server of this module's own, on a disk that is waited for, with a migrated database."""
    with room_for_clusters() as folder:
        cluster = Cluster(folder / "faults", VERSION)
        try:
            cluster.start()
            cluster.create_database(TEMPLATE)
            with connected(cluster, TEMPLATE, django_db_blocker):
                call_command("migrate", verbosity=0)
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def connected(cluster, name, blocker):
    """Django's default connection goes to a database of this server."""
    before = connection.settings_dict.copy()
    host, port = cluster.socket()
    with blocker.unblock():
        connection.close()
        here = {"HOST": host, "PORT": port, "USER": "postgres", "PASSWORD": "", "NAME": name}
        connection.settings_dict.update(here)
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict.update(before)


@pytest.fixture
def transactional_db(cluster, request, django_db_blocker):
    """In place of pytest-django's: a database of each test's own, on that server."""
    cluster.start()
    name = f"of_{abs(hash(request.node.name))}"
    with psycopg.connect(cluster.url(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    with connected(cluster, name, django_db_blocker):
        yield


def insert_books():
    execute(
        "INSERT INTO library_book (id, title, body, year, published)"
        " SELECT n, 'Book ' || n, '', 2000, true FROM generate_series(1, %s) AS n",
        [BOOKS],
    )


def test_a_restart_is_waited_for_and_the_alive_file_tells_of_it(
    cluster, drain, worker_process, tmp_path
):
    """Fault 9: it grows old while there is no server, and is fresh again afterwards."""
    drain()
    alive = tmp_path / "alive"
    worker = worker_process("--alive-file", str(alive), **SHORT)
    until(alive.exists)
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(300)])
    until(Ledger.objects.exclude(token=None).exists)
    connection.close()
    cluster.stop()
    worker.says("the database failed")
    os.utime(alive, (0, 0))
    worker.says("the database failed")
    assert alive.stat().st_mtime == 0
    cluster.start()
    until(lambda: alive.stat().st_mtime > 0)
    until(is_settled, seconds=60)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


@contextlib.contextmanager
def nothing_is_flushed():
    """Commits that do not wait for the disk do not get there: its writer has been stopped."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        (pid,) = cursor.fetchone()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def crash(cluster):
    """What a server does when its machine dies: it ends at once, and writes nothing more.

    Returns when all of its processes have been told so; one that is stopped is still there.
    """
    os.kill(cluster.status().pid, signal.SIGQUIT)
    until(is_cut)
    connection.close()


def is_cut():
    try:
        execute("SELECT 1")
    except OperationalError:
        return True
    return False


def start_again(cluster):
    until(lambda: cluster._process() is None)
    cluster.start()


@pytest.mark.parametrize("step", ["after_fold", "mid_complete", "after_commit"])
def test_a_crash_takes_back_no_more_than_it_owes(cluster, drain, stepping, step):
    """Fault 10: workers do not wait for the disk, so what they did last is gone, and owed again."""
    drain()
    worker = stepping(HOLD_AT=step, **SHORT)
    with nothing_is_flushed():
        insert_books()
        worker.says(f"holds {step}")
        assert BookEmbedding.objects.count() == (BOOKS if step == "after_commit" else 0)
        crash(cluster)
    start_again(cluster)
    assert Book.objects.count() == BOOKS
    assert (Inbox.objects.count(), Ledger.objects.count()) == (BOOKS, 0)
    assert not BookEmbedding.objects.exists()
    worker.goes_on()
    until(is_settled, seconds=60)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


def test_nothing_is_owed_or_written_twice_after_a_crash_in_full_flight(
    cluster, drain, worker_process
):
    """Fault 10: several of them, wherever the workers happen to be."""
    drain()
    workers = [begin(worker_process, **SHORT) for _ in range(2)]
    for round_ in (1, 2):
        Book.objects.bulk_create([Book(title=f"Book {n} of {round_}") for n in range(300)])
        until(Ledger.objects.exclude(token=None).exists)
        crash(cluster)
        start_again(cluster)
        assert Book.objects.count() == 300 * round_
        execute("UPDATE library_book SET title = title || '!' WHERE id % 7 = 0")
    until(is_settled, seconds=60)
    assert [worker.process.poll() for worker in workers] == [None, None]
    assert_in_step(BookEmbedding)


# What docs/operations.md advises, in seconds that a test can wait for.
ENDS_SOON = {
    "connect_timeout": 2,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 3000,
}
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27


class Proxy:
    """Passes connections on to a server's socket until it is turned into a black hole.

    Then the kernel throws away whatever arrives, acknowledgements included, as a network does that
    has lost its way: neither side hears anything more.
    """

    def __init__(self, server):
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._pairs = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self):
        return self._listening.getsockname()[1]

    def swallow(self):
        """New connections, too."""
        for end in (self._listening, *(client for client, _ in self._pairs)):
            drop_all(end)

    def accept_again(self):
        """New connections pass; what was swallowed stays so."""
        self._listening.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def _run(self):
        while not self._stopping.is_set():
            ends = {a: b for pair in self._pairs for a, b in (pair, pair[::-1])}
            for ready in select.select([self._listening, *ends], [], [], 0.05)[0]:
                if ready is self._listening:
                    client, _ = ready.accept()
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(self._server)
                    self._pairs.append((client, server))
                else:
                    self._pass_on(ready, ends[ready])

    def _pass_on(self, ready, other):
        try:
            data = ready.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        [pair] = [pair for pair in self._pairs if ready in pair]
        self._pairs.remove(pair)
        for end in pair:
            end.close()

    def close(self):
        self._stopping.set()
        self._thread.join()
        for end in (self._listening, *(end for pair in self._pairs for end in pair)):
            end.close()


def drop_all(end):
    """Let nothing through that arrives at this socket: a filter of one instruction, "return 0"."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    end.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program))
    )


@pytest.fixture
def proxy(cluster):
    host, port = cluster.socket()
    proxy = Proxy(f"{host}/.s.PGSQL.{port}")
    yield proxy
    proxy.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a socket drop what arrives")
@pytest.mark.parametrize("step", [None, "mid_complete"])
def test_a_worker_behind_a_black_hole_comes_back_by_itself(drain, stepping, proxy, step):
    """Fault 12: with options that end such a wait; and the server ends what the worker began."""
    drain()
    name = connection.settings_dict["NAME"]
    where = {"host": "127.0.0.1", "port": proxy.port, **ENDS_SOON}
    url = f"postgresql://postgres@/{name}?{urlencode(where)}"
    worker = stepping(HOLD_AT=step or "", DATABASE_URL=url, **SHORT)
    if step:
        insert_books()
        worker.says(f"holds {step}")
    proxy.swallow()
    if step:
        worker.goes_on()
    else:
        insert_books()
        worker.says("the database failed")
    worker.says("the database failed")
    assert Ledger.objects.count() + Inbox.objects.count() == BOOKS
    proxy.accept_again()
    until(is_settled, seconds=60)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a socket drop what arrives")
def test_rows_of_a_worker_in_a_black_hole_are_taken_over(drain, stepping, proxy):
    """Fault 12: it is in the middle of a transaction, whose locks hold up nobody for long."""
    drain()
    name = connection.settings_dict["NAME"]
    where = {"host": "127.0.0.1", "port": proxy.port, **ENDS_SOON}
    url = f"postgresql://postgres@/{name}?{urlencode(where)}"
    lost = stepping(HOLD_AT="mid_complete", DATABASE_URL=url, **SHORT)
    with Application(writers=2) as application:
        insert_books()
        lost.says("holds mid_complete")
        proxy.swallow()
        lost.goes_on()
        stepping(**SHORT)
        until(lambda: BookEmbedding.objects.filter(source_id__lte=BOOKS).count() == BOOKS)
        application.work(20)
        proxy.accept_again()
        application.work(20)
    until(is_settled, seconds=60)
    assert lost.process.poll() is None
    assert_in_step(BookEmbedding)
