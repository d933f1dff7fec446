"""What the tests share: a PostgreSQL, workers in this process and in processes of their own."""

import os
import threading
from urllib.parse import quote, urlencode

import pytest
from django.conf import settings
from django.contrib.contenttypes.management import create_contenttypes
from django.db import connection
from django.db.backends.postgresql.operations import DatabaseOperations
from django.db.models.signals import post_migrate

from embedsync import pipeline
from embedsync.worker import Worker
from example_project.postgres import PROJECT, VERSIONS, Cluster
from tests.embedders import ScriptedEmbedder
from tests.migration_project import Project
from tests.steps import calls_in, count_calls
from tests.workers import Clock, WorkerProcess


@pytest.fixture(scope="session")
def postgres():
    """The embedded PostgreSQL, started when the first test needs a database; or DATABASE_URL's."""
    if os.environ.get("DATABASE_URL"):
        yield
        return
    version = int(os.environ.get("EMBEDDED_POSTGRES_VERSION") or max(VERSIONS))
    cluster = Cluster(PROJECT / ".postgres" / f"tests-{version}", version, fsync=False)
    cluster.start()
    host, port = cluster.socket()
    settings.DATABASES["default"].update(HOST=host, PORT=port, NAME="embedsync")
    yield
    cluster.stop()


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres):
    """pytest-django's hook before it makes the test database."""


KEPT = {"django_content_type", "auth_permission", "django_site"}


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup):
    """pytest-django's, and flushes after it that take a tenth of the time.

    Django's own empties every table, and its applications then write again what the tests leave
    alone: half a second after each test.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr(DatabaseOperations, "sql_flush", sql_flush)
    post_migrate.disconnect(create_contenttypes)
    post_migrate.disconnect(dispatch_uid="django.contrib.auth.management.create_permissions")
    yield
    patch.undo()


def sql_flush(operations, style, tables, **_):
    """The statements that empty those tables that have rows."""
    quoted = [operations.quote_name(table) for table in tables if table not in KEPT]
    with operations.connection.cursor() as cursor:
        cursor.execute(
            " UNION ALL ".join(f"SELECT '{t}' WHERE EXISTS (SELECT FROM {t})" for t in quoted)
        )
        full = [table for (table,) in cursor.fetchall()]
    # What the triggers tell of it concerns no later test, nor does a mark that one left.
    return [
        *([f"TRUNCATE {', '.join(full)} CASCADE"] if full else []),
        "TRUNCATE embedsync_inbox",
        "SELECT setval('embedsync_missed', 1, false)",
    ]


@pytest.fixture
def drain(transactional_db):
    """Run a worker in this process until nothing is due; returns it."""

    def run():
        worker = Worker()
        worker.start()
        worker.run(drain=True)
        return worker

    return run


@pytest.fixture
def bound_by_the_server(transactional_db, monkeypatch):
    """psycopg sends parameters apart from the statement, as an OPTION of Django's has it."""
    options = {**connection.settings_dict["OPTIONS"], "server_side_binding": True}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    monkeypatch.setattr(connection.features, "uses_server_side_binding", True)
    connection.close()
    yield
    connection.close()


@pytest.fixture
def environment(transactional_db):
    """The environment in which a command finds the test database."""
    values = connection.settings_dict
    password = f":{quote(values['PASSWORD'])}" if values["PASSWORD"] else ""
    query = urlencode(
        {k: v for k, v in {"host": values["HOST"], "port": values["PORT"]}.items() if v}
    )
    url = f"postgresql://{quote(values['USER'])}{password}@/{quote(values['NAME'])}?{query}"
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "DATABASE_URL": url}


@pytest.fixture
def worker_process(environment):
    """Start workers as processes of their own; whatever still runs is killed at the end."""
    started = []

    def start(*arguments, steps=False, **more):
        process = WorkerProcess(arguments, {**environment, **more}, steps=steps)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def stepping(worker_process, tmp_path, monkeypatch):
    """Start workers that can be held at a step, and begin to serve; tests/steps.py says how."""
    calls = tmp_path / "calls"
    count_calls(calls, monkeypatch.setattr)

    def start(*arguments, **more):
        worker = worker_process(*arguments, steps=True, CALLS=str(calls), **more)
        worker.says("serving")
        return worker

    start.calls = lambda: calls_in(calls)
    return start


@pytest.fixture
def project(postgres, tmp_path):
    """A throw-away project with a database of its own."""
    project = Project(tmp_path, connection.settings_dict)
    yield project
    project.remove()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("embedsync.breaker.time", clock)
    return clock


@pytest.fixture
def running(transactional_db):
    """Run a worker in a thread of its own; it is stopped at the end."""
    started = []

    def run(**options):
        worker = Worker(**options)

        def work():
            try:
                worker.run()
            finally:
                connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        started.append((worker, thread))
        return worker

    yield run
    for worker, thread in started:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def scripted(monkeypatch):
    """Have something done before each call of the scripted embedder."""
    embed = ScriptedEmbedder.embed_documents

    def script(before):
        def embed_documents(embedder, texts):
            before(texts)
            return embed(embedder, texts)

        monkeypatch.setattr(ScriptedEmbedder, "embed_documents", embed_documents)

    return script


@pytest.fixture
def hanging(scripted):
    """Calls for a text with HANG in it are answered when this is set."""
    answered = threading.Event()
    scripted(lambda texts: any("HANG" in text for text in texts) and answered.wait(60))
    yield answered
    answered.set()


@pytest.fixture
def impatient(drain, settings, monkeypatch):
    """Calls are given up soon, and providers are probed often; nothing is owed."""
    drain()
    monkeypatch.setattr(pipeline, "HUNG_SECONDS", 0.5)
    settings.EMBEDSYNC_BACKOFF, settings.EMBEDSYNC_PROBE_INTERVAL = 0.05, 0.1
    settings.EMBEDSYNC_MAX_ATTEMPTS = 2
