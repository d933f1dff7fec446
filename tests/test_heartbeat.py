"""What workers say of themselves, and how an old one is kept from taking a sidecar back."""

import os
import signal
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from embedsync import tasks
from embedsync.heartbeat import Heartbeat
from embedsync.models import Minute, SidecarState, WorkerState
from embedsync.sql import statement
from embedsync.status import workers
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, execute, renamed
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import Clock, until

pytestmark = pytest.mark.django_db(transaction=True)

LATER = timedelta(minutes=10)


def test_a_worker_says_that_it_is_alive_until_it_ends(drain, worker_process, tmp_path):
    drain()
    alive = tmp_path / "alive"
    worker = worker_process("--alive-file", str(alive), SCRIPTED_SLEEP="30")
    until(lambda: WorkerState.objects.filter(doing="").exists())
    said = WorkerState.objects.get()
    assert str(worker.process.pid) in said.name
    assert KEY in said.serves
    assert said.errors == {}
    until(alive.exists)
    # As long as it gets on, with nothing to do, too.
    os.utime(alive, (0, 0))
    until(lambda: alive.stat().st_mtime > 0)
    Book.objects.create(title="SLEEP")
    until(lambda: WorkerState.objects.filter(doing__contains=KEY).exists())
    worker.kill()
    # It had no time to say that it was ending.
    assert WorkerState.objects.exists()

    other = worker_process("--alive-file", str(alive), SCRIPTED_SLEEP="0")
    until(lambda: WorkerState.objects.count() == 2)
    other.send(signal.SIGTERM)
    assert other.wait()[0] == 0
    assert WorkerState.objects.get().name == said.name
    assert not alive.exists()


def test_a_file_grows_old_while_the_database_does_not_answer(drain, worker_process, tmp_path):
    """Fault 9: red, then green again."""
    drain()
    alive = tmp_path / "alive"
    worker = worker_process("--alive-file", str(alive))
    until(alive.exists)
    with renamed("embedsync_sidecar"):
        worker.says("the database failed")
        before = alive.stat().st_mtime
        worker.says("the database failed")
        assert alive.stat().st_mtime == before
    until(lambda: alive.stat().st_mtime > before)


def test_minutes_add_up_what_all_workers_have_done(drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    drain()
    Minute.objects.all().delete()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(3)])
    Book.objects.create(title="FAIL")
    drain()
    Book.objects.create(title="one more")
    Book.objects.filter(title="Book 1").update(title="Book 1", body="")
    Book.objects.filter(title="Book 2").update(published=False)
    drain()
    found = Minute.objects.filter(sidecar=KEY)
    totals = [sum(getattr(minute, name) for minute in found) for name in ("embedded", "unchanged")]
    # One is excluded and has no vector any more.
    assert totals == [4, 1]
    assert sum(minute.failed for minute in found) == 1


def test_what_waits_is_counted_once_a_minute_by_one_worker(drain):
    drain()
    Minute.objects.all().delete()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(30)])
    for name, waiting in (("first", 30), ("second", 30)):
        heart = Heartbeat("default", name)
        heart.hurry()
        heart.count(KEY, 1, 0, 0)
        heart.beat("at it", {KEY: "f"}, {})
        assert sum(minute.waiting for minute in Minute.objects.all()) == waiting
        Book.objects.create(title="one more")
    assert sum(minute.embedded for minute in Minute.objects.all()) == 2


class TestAnIdleWorker:
    @pytest.fixture
    def idle(self, drain, monkeypatch):
        """Let time go by, in seconds, for a worker with nothing to do."""
        drain()
        clock = Clock()
        monkeypatch.setattr("embedsync.heartbeat.time", clock)
        heart = Heartbeat("default", "idle")

        def goes_on(seconds):
            for _ in range(seconds):
                heart.beat("", {KEY: "f"}, {})
                clock.now += 1.0
            return heart

        yield goes_on
        execute("RESET application_name")

    def test_takes_no_transaction_id(self, idle):
        idle(60)
        before = WorkerState.objects.get().seen_at
        with transaction.atomic():
            idle(4000)  # it has looked for what is old, too
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_current_xact_id_if_assigned()")
                assert cursor.fetchone() == (None,)
        assert WorkerState.objects.get().seen_at == before

    def test_is_alive_as_long_as_its_session_asks(self, idle, monkeypatch):
        heart = idle(121)
        WorkerState.objects.update(seen_at=timezone.now() - timedelta(days=2))
        [told] = workers("default")
        assert told.is_alive
        # Nor has it been forgotten.
        with connection.cursor() as cursor:
            cursor.execute(statement("prune").replace("{heard}", statement("heard")))
        assert WorkerState.objects.exists()
        execute("RESET application_name")
        [told] = workers("default")
        assert not told.is_alive
        heart.end()
        assert not WorkerState.objects.exists()

    def test_leaves_its_session_as_it_was(self, idle):
        """Django's pool hands it to somebody else."""

        def name():
            with connection.cursor() as cursor:
                cursor.execute("SHOW application_name")
                return cursor.fetchone()[0]

        before = name()
        heart = idle(121)
        assert name() == "embedsync idle" != before
        heart.end()
        assert name() == before

    def test_that_is_frozen_is_not_taken_for_alive(self, idle):
        idle(121)
        long_ago = "statement_timestamp() - interval '4 minutes'"
        WorkerState.objects.update(seen_at=timezone.now() - LATER)
        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH pg_stat_activity AS (SELECT datname, application_name, {long_ago} AS"
                " state_change FROM pg_catalog.pg_stat_activity) SELECT"
                f" extract(epoch FROM now() - {statement('heard')}) > 200 FROM embedsync_worker"
            )
            assert cursor.fetchone() == (True,)

    def test_says_so_in_a_new_session_at_once(self, idle):
        idle(121)
        WorkerState.objects.update(seen_at=timezone.now() - LATER)
        connection.close()
        connection.ensure_connection()
        assert not workers("default")[0].is_alive
        idle(5)
        assert workers("default")[0].is_alive

    def test_that_was_forgotten_is_there_again(self, idle):
        idle(121)
        WorkerState.objects.all().delete()
        idle(61)
        assert WorkerState.objects.get().name == "idle"

    def test_writes_what_has_changed(self, idle):
        heart = idle(121)
        heart.count(KEY, 3, 0, 0)
        idle(61)
        assert WorkerState.objects.get().settled == 3


def test_what_is_old_is_forgotten(drain):
    drain()
    Minute.objects.create(sidecar=KEY, minute=timezone.now() - timedelta(days=3))
    Minute.objects.create(sidecar=KEY, minute=timezone.now() - timedelta(days=1))
    WorkerState.objects.create(name="dead", seen_at=timezone.now() - timedelta(days=2))
    heart = Heartbeat("default", "me")
    heart.hurry()
    heart.beat("", {}, {})
    assert Minute.objects.filter(minute__lt=timezone.now() - LATER).count() == 1
    assert list(WorkerState.objects.values_list("name", flat=True)) == ["me"]


class TestAnOldWorker:
    """Fault 30: started by accident, beside those with the new declaration."""

    @pytest.fixture
    def superseded(self, drain):
        """An old declaration of books, as it was served; then a new one is, by a live worker."""
        Book.objects.create(title="A")
        drain()
        current = SidecarState.objects.get(key=KEY).fingerprint
        SidecarState.objects.filter(key=KEY).update(
            fingerprint="newer", former=[current], served_at=timezone.now() - LATER
        )
        return WorkerState.objects.create(name="new:1", serves={KEY: "newer"})

    def test_takes_nothing_back(self, superseded, drain):
        Book.objects.update(title="B")
        worker = drain()
        assert "newer declaration" in worker.errors[KEY]
        assert SidecarState.objects.get(key=KEY).fingerprint == "newer"
        assert BookEmbedding.objects.count() == 1

    def test_serves_when_the_others_have_ended(self, superseded, drain):
        """After a deployment that was undone."""
        superseded.delete()
        Book.objects.update(title="B")
        assert KEY not in drain().errors
        state = SidecarState.objects.get(key=KEY)
        assert state.fingerprint == own_fingerprint()
        assert state.former == ["newer"]
        assert_in_step(BookEmbedding)

    def test_serves_when_the_others_have_died(self, superseded, drain):
        WorkerState.objects.update(seen_at=timezone.now() - LATER)
        assert KEY not in drain().errors

    def test_waits_while_others_come_and_go(self, superseded, drain):
        """Those of a scheduler, which serve for a minute at a time."""
        superseded.delete()
        own = SidecarState.objects.get(key=KEY).former[0]
        SidecarState.objects.filter(key=KEY).update(fingerprint=own, former=["older"])
        tasks.process_pending()
        SidecarState.objects.filter(key=KEY).update(fingerprint="newer", former=[own])
        assert "newer declaration" in drain().errors[KEY]
        SidecarState.objects.update(served_at=timezone.now() - LATER)
        assert KEY not in drain().errors

    def test_goes_back_at_once_where_nobody_serves(self, superseded, drain):
        """As a developer does, who tries a template and takes it back."""
        superseded.delete()
        SidecarState.objects.update(served_at=None)
        assert KEY not in drain().errors

    def test_serves_without_being_started_again(self, superseded, drain):
        worker = drain()
        assert KEY in worker.errors
        superseded.delete()
        Book.objects.update(title="B")
        worker._mended_at = 0.0
        worker.run(drain=True)
        assert KEY not in worker.errors
        assert_in_step(BookEmbedding)

    def test_a_declaration_that_was_never_served_takes_over_at_once(self, superseded, drain):
        SidecarState.objects.filter(key=KEY).update(former=["others"])
        assert KEY not in drain().errors
        assert SidecarState.objects.get(key=KEY).former == ["others", "newer"]


def own_fingerprint():
    worker = Worker()
    worker.start()
    return worker.services[KEY].fingerprint
