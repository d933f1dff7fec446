"""Fault 52: workers and an application behind PgBouncer, with a pool of two for transactions."""

import os
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
import pytest
from django.db import connection

from embedsync import indexing
from embedsync.heartbeat import Heartbeat
from embedsync.models import Ledger, WorkerState
from tests.application import Application, begin, connect, is_settled
from tests.books import KEY, BookEmbedding
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import Clock, until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
POOL = 2

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer (apt install pgbouncer)"),
]


@pytest.fixture
def pooler(transactional_db, tmp_path):
    """Host and port of a PgBouncer before the test database."""
    values = connection.settings_dict
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "pool_mode": "transaction",
        "default_pool_size": POOL,
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
    }
    where = {"host": values["HOST"], "port": values["PORT"], "user": values["USER"]}
    if values["PASSWORD"]:
        where["password"] = values["PASSWORD"]
    file = tmp_path / "pgbouncer.ini"
    server = " ".join(f"{name}={value}" for name, value in where.items() if value)
    lines = [f"{name} = {value}" for name, value in options.items()]
    file.write_text("\n".join(["[databases]", f"* = {server}", "[pgbouncer]", *lines]))
    command = [PGBOUNCER, str(file)]
    if os.getuid() == 0:
        # It does not run as root; as who, matters to the socket of PostgreSQL only.
        owner = Path(values["HOST"]).owner() if values["HOST"].startswith("/") else "nobody"
        file.chmod(0o644)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(folder.stat().st_mode | 0o011)
        command[1:1] = ["--user", owner]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.communicate()


def answers(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def behind(pooler, environment):
    """The environment of a command that reaches the database through the pooler."""
    values, (host, port) = connection.settings_dict, pooler
    query = urlencode({"host": host, "port": port})
    url = f"postgresql://{quote(values['USER'])}@/{quote(values['NAME'])}?{query}"
    return {"DATABASE_URL": url}


@pytest.fixture
def application(pooler):
    """A connection of the application's, through the pooler."""
    host, port = pooler
    values = connection.settings_dict
    with psycopg.connect(
        host=host, port=port, user=values["USER"], dbname=values["NAME"], autocommit=True
    ) as session:
        session.prepare_threshold = None
        yield session


def test_workers_hold_no_session_while_they_embed(drain, worker_process, behind, application):
    drain()
    workers = [worker_process(SCRIPTED_SLEEP="8", **behind) for _ in range(POOL + 1)]
    for number, worker in enumerate(workers):
        worker.says("serving")
        Book.objects.create(title=f"SLEEP {number}")
        # With what it has in hand, each of them could have taken all.
        until(lambda number=number: Ledger.objects.filter(token__isnull=False).count() > number)
    for number in range(50):
        application.execute(
            "INSERT INTO library_book (title, body, year, published) VALUES (%s, '', 0, true)",
            [f"B {number}"],
        )
    # All of them are at it still, and the application got its turn between them.
    assert (
        Ledger.objects.filter(token__isnull=False, source_pk__in=keys("SLEEP")).count() == POOL + 1
    )
    until(lambda: BookEmbedding.objects.count() == Book.objects.count() == 50 + POOL + 1, 60)
    until(lambda: not Ledger.objects.exists())
    assert_in_step(BookEmbedding)


def test_an_application_is_not_held_up_by_calls_of_a_second(drain, worker_process, behind, pooler):
    """No statement of it fails or waits for half a second, as in all tests of faults."""
    drain()
    for _ in range(POOL + 1):
        begin(worker_process, SCRIPTED_SLEEP="1", **behind)
    host, port = pooler
    pooled = partial(connect, host=host, port=port, prepare_threshold=None)
    embedding = Ledger.objects.filter(token__isnull=False)
    with Application(writers=4, connect=pooled, control=connect) as application:
        for number in range(4 * (POOL + 1)):
            slow = Book.objects.create(title=f"SLEEP {number}")
            until(embedding.filter(source_pk=str(slow.pk)).exists)
            application.work(5)
    until(is_settled, 60)
    assert_in_step(BookEmbedding)


def keys(word):
    return [
        str(pk) for pk in Book.objects.filter(title__startswith=word).values_list("pk", flat=True)
    ]


@pytest.fixture
def through_the_pool(drain, pooler, monkeypatch):
    """This test's own connection goes through the pool."""
    drain()
    monkeypatch.setitem(connection.settings_dict, "HOST", pooler[0])
    monkeypatch.setitem(connection.settings_dict, "PORT", pooler[1])
    connection.close()
    yield
    connection.close()


def test_an_idle_worker_writes_that_it_is_alive(through_the_pool, monkeypatch):
    """Its session is somebody else's in a moment, which must not be taken for its own."""
    clock = Clock()
    monkeypatch.setattr("embedsync.heartbeat.time", clock)
    heart, seen = Heartbeat("default", "idle"), set()
    for _ in range(300):
        heart.beat("", {KEY: "f"}, {})
        seen.add(WorkerState.objects.filter(name="idle").values_list("seen_at").first())
        clock.now += 1.0
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'idle'")
        assert cursor.fetchone() == (0,)
    assert len(seen - {None}) == 5
    heart.end()


def test_building_an_index_changes_no_session_of_a_pool(through_the_pool, monkeypatch):
    """Or an application's statements would run on without their timeout."""
    settings = []

    def build(sidecar, using):
        settings.append(indexing.is_own_session(using))
        with connection.cursor() as cursor:
            cursor.execute("SELECT source FROM pg_settings WHERE name = 'statement_timeout'")
            settings.append(cursor.fetchone()[0])

    monkeypatch.setattr(indexing, "build", build)
    indexing.IndexBuilder("default")._build(BookEmbedding)
    assert settings == [False, "default"]
