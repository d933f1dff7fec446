"""``embed_status``: what it tells of workers, of what they do not serve, and of rows that wait."""

import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from django.utils import timezone

from embedsync.models import Minute, WorkerState
from example_project.postgres import PROJECT
from tests.application import uncommitted
from tests.books import KEY, execute
from tests.library.models import Book
from tests.shop import DECLARED, PLAIN
from tests.test_status import as_json, book, fail, run

pytestmark = pytest.mark.django_db


class TestWorkers:
    def test_those_that_are_alive_are_told_of(self):
        assert run().endswith("\nno workers alive\n")
        WorkerState.objects.create(name="host:1:ab", doing=f"embedding {KEY}", settled=1204)
        WorkerState.objects.create(name="host:2:cd")
        WorkerState.objects.create(name="host:3:ef", seen_at=timezone.now() - timedelta(minutes=12))
        lines = run().splitlines()
        assert "2 workers alive" in lines
        assert any(f"host:1:ab  embedding {KEY}; 1,204 rows since 20" in line for line in lines)
        assert any("host:2:cd  idle; 0 rows" in line for line in lines)
        assert any("host:3:ef  silent, probably dead; " in line for line in lines)
        assert any("seen 720 s ago" in line for line in lines)
        found = as_json()["workers"]
        assert [one["name"] for one in found] == ["host:1:ab", "host:2:cd", "host:3:ef"]

    def test_what_they_do_not_serve_is_named_as_long_as_they_live(self):
        said = WorkerState.objects.create(name="host:1:ab", errors={KEY: "HTTP 401: wrong key"})
        output, why = fail()
        assert "    HTTP 401: wrong key\n" in output
        assert why == f"Not served: {KEY}."
        assert "host:1:ab" in run("library.Memo")
        said.seen_at = timezone.now() - timedelta(minutes=12)
        said.save()
        assert "wrong key" not in run()

    def test_an_embedder_that_the_settings_lack_is_named(self, settings):
        settings.EMBEDSYNC_EMBEDDERS = {}
        output, why = fail("library.Book")
        assert "EMBEDSYNC_EMBEDDERS has no embedder 'scripted'" in output
        assert why == f"Not served: {KEY}."

    @pytest.mark.django_db(transaction=True)
    def test_how_fast_they_are(self, drain):
        drain()
        Minute.objects.all().delete()
        assert book()["rate"] == 0.0
        now = timezone.now().replace(second=0, microsecond=0)
        for minute, rows in ((now, 300), (now - timedelta(minutes=1), 900)):
            Minute.objects.create(sidecar=KEY, minute=minute, embedded=rows - 100, unchanged=100)
        Minute.objects.create(sidecar=KEY, minute=now - timedelta(minutes=3), embedded=10**6)
        assert 8.0 < book()["rate"] < 20.1

    @pytest.mark.parametrize("as_json", [True, False])
    def test_a_lag_that_is_too_long(self, as_json):
        Book.objects.create(title="waits")
        execute("UPDATE embedsync_inbox SET queued_at = now() - interval '1 minute'")
        run(max_lag=120.0, json=as_json)
        output, why = fail(max_lag=30.0, json=as_json)
        assert KEY in output
        assert why.startswith(f"Rows have waited for more than 30 s: {KEY} for 60.")

    @pytest.mark.parametrize("state", ["backfilled_at = NULL, backfill_after = NULL", "missed = 0"])
    @pytest.mark.django_db(transaction=True)
    def test_a_fill_that_nobody_works_on(self, drain, state):
        """A first fill, and one that is due because a trigger has failed."""
        Book.objects.create(title="is not in the ledger")
        drain()
        execute("SELECT setval('embedsync_missed', 7)")
        execute("UPDATE embedsync_sidecar SET missed = 7, missed_seen = 7")
        run(max_lag=30.0)
        execute(f"UPDATE embedsync_sidecar SET {state} WHERE key = %s", [KEY])
        run()
        _, why = fail(max_lag=30.0)
        assert why == f"A fill is owed and no worker alive serves it: {KEY}."
        WorkerState.objects.create(name="host:1:ab", serves={KEY: "its declaration"})
        run(max_lag=30.0)

    @pytest.mark.django_db(transaction=True)
    def test_vectors_of_another_embedder(self, drain, settings):
        """Where no worker is alive that would say so, and no model can be loaded."""
        drain()
        changed = {**settings.EMBEDSYNC_EMBEDDERS}
        changed["scripted"] = {**changed["scripted"], "MODEL": "another"}
        settings.EMBEDSYNC_EMBEDDERS = changed
        run("library.Book")  # there are none yet
        settings.EMBEDSYNC_EMBEDDERS = {**changed, "scripted": {**changed["scripted"], "MODEL": ""}}
        Book.objects.create(title="A")
        drain()
        run("library.Book")
        settings.EMBEDSYNC_EMBEDDERS = changed
        output, why = fail("library.Book")
        assert "its vectors were made by another embedder than the settings now name" in output
        assert why == f"Not served: {KEY}."

    @pytest.mark.parametrize("options", [{}, {"watch": 0.1}])
    @pytest.mark.django_db(transaction=True)
    def test_a_table_that_is_locked(self, monkeypatch, options):
        monkeypatch.setattr("embedsync.management.commands.embed_status.LOCK_SECONDS", 0.2)
        with uncommitted("LOCK TABLE embedsync_ledger IN ACCESS EXCLUSIVE MODE"):
            _, why = fail(**options)
        assert "a table has been locked for 0.2 s: canceling statement due to lock timeout" in why

    @pytest.mark.django_db(transaction=True)
    def test_it_is_watched_until_ctrl_c(self, environment):
        process = subprocess.Popen(
            [sys.executable, "manage.py", "embed_status", "--watch", "0.1"],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2):
            assert any("workers alive" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")


def test_triggers_that_a_migration_has_still_to_make(project):
    code = project.code(PLAIN.models)
    code.upgrade()
    code = project.code(DECLARED.models)
    code.run("makemigrations")
    assert "What to do: manage.py migrate --database default." in code.fail(
        "embed_status", "--triggers"
    )
    code.run("migrate")
    code.run("embed_status", "--triggers")
    project.sql("ALTER TABLE shop_movie DISABLE TRIGGER ALL")
    assert "What to do: manage.py check --database default." in code.fail(
        "embed_status", "--triggers"
    )
