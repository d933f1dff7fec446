"""Metrics: what a database tells, what a worker counts, and what is said where neither can be."""

import socket
import subprocess
import sys
import urllib.request
from urllib.error import URLError

import pytest
from django.db import OperationalError, connection, transaction
from django.urls import path
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from embedsync import metrics
from embedsync.declaration import key_of, sidecars
from embedsync.models import SidecarState, WorkerState
from embedsync.queue import Queue
from embedsync.signals import embedding_failed, embeddings_updated
from example_project.postgres import PROJECT
from tests.application import uncommitted
from tests.books import KEY, BookEmbedding, execute, renamed, sessions
from tests.library.models import Book, Parcel
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

urlpatterns = [path("metrics/", metrics.view)]

DOWN = {"HOST": "127.0.0.1", "PORT": "1"}
PARCEL = key_of(Parcel.embedding.model)
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())

"""


def read(text, parse=text_string_to_metric_families):
    """All samples of a scrape, by name and the one label that they have."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def scraped(collector=None):
    """What a registry with this collector alone says."""
    registry = CollectorRegistry()
    registry.register(collector or metrics.StatusCollector())
    return read(generate_latest(registry).decode())


def fetch(port):
    """A scrape of a port of this machine, or None where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            return read(response.read().decode())
    except URLError:
        return None


@pytest.fixture
def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def python(environment):
    """Run code in a process of its own; its status and output."""

    def python(code):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    return python


def claim():
    """Lease what is owed, as a worker does before it embeds."""
    return Queue("default", "a worker").fold([KEY], 10)


class TestStatus:
    def test_a_row_is_told_of_wherever_it_is(self, drain, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        drain()
        Book.objects.bulk_create([Book(title="done"), Book(title="FAIL")])
        drain()
        Book.objects.create(title="in hand")
        claim()
        Book.objects.bulk_create([Book(title="waits"), Book(title="waits, too")])
        execute("UPDATE embedsync_inbox SET queued_at = now() - interval '1 hour'")
        found = scraped()
        names = ("rows", "waiting_rows", "leased_rows", "parked_rows")
        assert [found[f"embedsync_{name}", KEY] for name in names] == [1, 2, 1, 1]
        assert [found[f"embedsync_{name}", PARCEL] for name in names] == [0, 0, 0, 0]
        assert 3600 <= found["embedsync_oldest_wait_seconds", KEY] < 4600
        assert found["embedsync_up", "default"] == 1

    def test_each_sidecar_has_all_gauges(self, drain):
        drain()
        found = scraped(metrics.StatusCollector("default"))
        keys = {key_of(sidecar) for sidecar in sidecars()}
        for name in metrics.OF_SIDECARS:
            assert {key for told, key in found if told == name} == keys

    def test_how_far_a_fill_is(self, drain):
        def fill():
            found = scraped()
            names = ("complete", "left_rows")
            return tuple(found.get((f"embedsync_fill_{name}", KEY)) for name in names)

        Book.objects.bulk_create([Book(title="A book") for _ in range(5)])
        SidecarState.objects.all().delete()
        assert fill() == (0, 5)
        SidecarState.objects.create(key=KEY)
        Queue("default", "a worker").fill(BookEmbedding, 2)
        assert fill() == (0, 3)
        drain()
        assert fill() == (1, 0)
        with renamed("embedsync_inbox"):
            Book.objects.create(title="missed")
        assert fill() == (0, None)

    def test_a_schema_error_is_told_of_and_what_is_not_known_is_not(self):
        with renamed("library_bookembedding"):
            found = scraped()
        assert found["embedsync_schema_error", KEY] == 1
        assert found["embedsync_schema_error", PARCEL] == 0
        assert ("embedsync_rows", KEY) not in found
        assert ("embedsync_rows", PARCEL) in found

    def test_workers_are_alive_that_were_heard_of(self, transactional_db):
        assert scraped()["embedsync_workers", "default"] == 0
        WorkerState.objects.bulk_create([WorkerState(name=name) for name in ("a:1", "b:2")])
        assert scraped()["embedsync_workers", "default"] == 2
        execute(
            "UPDATE embedsync_worker SET seen_at = now() - interval '4 minutes' WHERE name = 'a:1'"
        )
        assert scraped()["embedsync_workers", "default"] == 1

    def test_a_role_needs_the_rights_that_the_docs_name(self, transactional_db):
        with transaction.atomic():
            execute("CREATE ROLE embedsync_reader")
            ours = ", ".join(
                f"embedsync_{name}" for name in ("inbox", "ledger", "sidecar", "worker", "minute")
            )
            execute(f"GRANT SELECT ON {ours} TO embedsync_reader")
            execute("SET LOCAL ROLE embedsync_reader")
            found = scraped()
            transaction.set_rollback(True)
        assert found["embedsync_up", "default"] == 1
        assert ("embedsync_waiting_rows", KEY) in found
        assert ("embedsync_rows", KEY) not in found

    def test_a_registry_learns_the_names_without_a_question(self, django_assert_num_queries):
        registry = CollectorRegistry(auto_describe=True)
        with django_assert_num_queries(0):
            registry.register(metrics.StatusCollector())
        assert "embedsync_rows" in registry._names_to_collectors

    def test_over_http_it_leaves_no_connection_open(self, transactional_db):
        registry = CollectorRegistry()
        registry.register(metrics.StatusCollector())
        before = sessions()
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            for _ in range(3):
                assert fetch(server.server_port)["embedsync_up", "default"] == 1
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        until(lambda: sessions() == before)

    def test_a_scrape_waits_for_no_lock(self, monkeypatch, caplog):
        monkeypatch.setattr(metrics, "TIMEOUT_SECONDS", 1)
        with uncommitted("LOCK library_bookembedding"):
            assert scraped() == {("embedsync_up", "default"): 0}
        assert "database 'default' tells no metrics: canceling statement" in caplog.text
        assert scraped()["embedsync_up", "default"] == 1
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)

    def test_a_connection_that_was_cut_is_not_kept(self):
        execute("SELECT 1")
        pid = connection.connection.info.backend_pid
        with uncommitted(f"SELECT pg_terminate_backend({pid})"):
            assert scraped() == {("embedsync_up", "default"): 0}
        assert scraped()["embedsync_up", "default"] == 1

    def test_a_database_that_is_down_hides_no_other(self, python):
        status, output = python(f"""
import django
from django.conf import settings
settings.DATABASES["down"] = {{**settings.DATABASES["default"], **{DOWN}}}
settings.DATABASE_ROUTERS = ["tests.test_metrics.ParcelsElsewhere"]
django.setup()
from prometheus_client import generate_latest
from embedsync.metrics import status_registry
print(generate_latest(status_registry()).decode())
""")
        assert status == 0, output
        assert output.count("database 'down' tells no metrics") == 1
        found = read(output[output.index("# HELP") :])
        assert found["embedsync_up", "default"] == 1
        assert found["embedsync_up", "down"] == 0
        assert ("embedsync_workers", "down") not in found
        assert ("embedsync_rows", KEY) in found
        assert ("embedsync_rows", PARCEL) not in found


class ParcelsElsewhere:
    """A router that has parcels in another database."""

    def db_for_write(self, model, **hints):
        return "down" if model in (Parcel, Parcel.embedding.model) else None

    db_for_read = db_for_write


@pytest.mark.urls("tests.test_metrics")
class TestView:
    def test_it_tells_of_the_database_alone(self, client, drain):
        drain()
        metrics.count()
        Book.objects.create(title="waits")
        response = client.get("/metrics/")
        assert response["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "no-store" in response["Cache-Control"]
        found = read(response.content.decode())
        assert found["embedsync_waiting_rows", KEY] == 1
        assert {name for name, *_ in found} <= {*metrics.OF_DATABASES, *metrics.OF_SIDECARS}

    def test_it_speaks_openmetrics(self, client):
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        response = client.get("/metrics/", headers={"Accept": accept})
        assert response["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert read(response.content.decode(), openmetrics)["embedsync_up", "default"] == 1

    def test_it_is_for_reading(self, client):
        assert client.post("/metrics/").status_code == 405

    def test_a_database_that_is_down_is_told_of(self, client, monkeypatch):
        connection.close()
        with monkeypatch.context() as patch:
            for name, value in {**DOWN, "ATOMIC_REQUESTS": True}.items():
                patch.setitem(connection.settings_dict, name, value)
            with pytest.raises(OperationalError):
                connection.ensure_connection()
            response = client.get("/metrics/")
        assert response.status_code == 200
        assert read(response.content.decode()) == {("embedsync_up", "default"): 0}


class TestCounters:
    def test_signals_are_counted(self):
        registry = CollectorRegistry()
        counters = metrics.WorkerCounters(registry)  # noqa: F841  (signals hold it weakly)

        def counted():
            found = read(generate_latest(registry).decode())
            names = ("embedded_rows", "failures", "parked")
            return [found[f"embedsync_{name}_total", KEY] for name in names]

        of = {"sender": Book, "sidecar": BookEmbedding, "using": "default"}
        assert counted() == [0, 0, 0]
        embeddings_updated.send(**of, pks=[1, 2, 3])
        assert counted() == [3, 0, 0]
        embedding_failed.send(**of, pk=4, error="unwell", attempts=1, parked=False)
        embedding_failed.send(**of, pk=4, error="unwell", attempts=2, parked=True)
        assert counted() == [3, 2, 1]

    def test_they_fit_beside_the_gauges(self):
        registry = CollectorRegistry()
        registry.register(metrics.StatusCollector())
        metrics.WorkerCounters(registry)  # raises where a name is there twice


class TestWorker:
    def test_its_port_serves_its_counters(self, drain, worker_process, free_port):
        drain()
        worker_process("--metrics-port", str(free_port))
        found = until(lambda: fetch(free_port))
        assert found["embedsync_embedded_rows_total", KEY] == 0
        assert found["embedsync_failures_total", PARCEL] == 0
        assert found["embedsync_parked_total", PARCEL] == 0
        assert found["process_resident_memory_bytes",] > 0

    def test_it_counts_what_it_embeds(self, drain, worker_process, free_port):
        drain()
        worker_process("--metrics-port", str(free_port))
        until(lambda: fetch(free_port))
        Book.objects.bulk_create([Book(title="good"), Book(title="good, too"), Book(title="FAIL")])
        until(lambda: BookEmbedding.objects.count() == 2)
        until(lambda: fetch(free_port)["embedsync_embedded_rows_total", KEY] == 2, seconds=5)
        until(lambda: fetch(free_port)["embedsync_failures_total", KEY] >= 1, seconds=5)

    def test_its_port_is_served_while_the_database_is_down(self, worker_process, free_port):
        worker = worker_process(
            "--metrics-port", str(free_port), DATABASE_URL="postgresql://nobody@127.0.0.1:1/none"
        )
        worker.says("the database failed")
        assert fetch(free_port)["embedsync_embedded_rows_total", KEY] == 0

    def test_a_port_that_is_taken_is_named(self, worker_process):
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = taken.getsockname()[1]
            status, output = worker_process("--metrics-port", str(port)).wait()
        assert status == 1
        assert f"--metrics-port: {port} cannot be had: Address already in use" in output

    @pytest.mark.parametrize("port", ["0", "65536", "web"])
    def test_what_is_no_port_is_named(self, worker_process, port):
        _, output = worker_process("--metrics-port", port).wait()
        assert f"--metrics-port: '{port}' is not a port, 1 to 65535" in output


class TestWithoutTheExtra:
    def test_all_else_works(self, python):
        code = """
import importlib, pkgutil
import django
django.setup()
import embedsync
for module in pkgutil.walk_packages(embedsync.__path__, "embedsync."):
    if module.name != "embedsync.metrics":
        importlib.import_module(module.name)
from django.core.management import call_command
call_command("embed_worker", "--drain", verbosity=0)
"""
        status, output = python(BLOCKED + code)
        assert status == 0, output

    def test_the_module_names_it(self, python):
        status, output = python(BLOCKED + "import django; django.setup(); import embedsync.metrics")
        assert status == 1
        assert "ImproperlyConfigured: embedsync.metrics needs the extra embedsync[prom" in output

    def test_the_command_names_it(self, python):
        status, output = python(
            BLOCKED + "from django.core.management import execute_from_command_line as run\n"
            "run(['manage.py', 'embed_worker', '--metrics-port', '9090'])"
        )
        assert status == 1
        assert output.startswith("CommandError: --metrics-port: embedsync.metrics needs the extra")
        assert "embedsync[prometheus]" in output
