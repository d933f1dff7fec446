"""Workers as processes of their own: signals, deaths, sharing, lost connections."""

import re
import signal

import pytest
from django.utils import timezone

from embedsync.models import Inbox, Ledger, SidecarState, WorkerState
from tests.application import Application, begin, is_settled, uncommitted
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.library.models import Book
from tests.steps import calls_in
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_lease_is_extended_while_embedding_takes_long(drain, worker_process):
    """A second worker must not take over what the first is still at."""
    drain()
    Book.objects.create(title="SLEEP")
    slow = {"SCRIPTED_SLEEP": "3", "DJANGO_SETTINGS_MODULE": "tests.short_lease"}
    first = worker_process("--drain", **slow)
    until(lambda: Ledger.objects.exclude(token=None).exists())
    token = Ledger.objects.get().token
    second = worker_process("--drain", **slow)
    tokens = set()
    while first.process.poll() is None:
        tokens |= set(Ledger.objects.values_list("token", "dirty"))
    assert tokens == {(token, False)}
    assert first.wait()[0] == 0
    assert second.wait()[0] == 0
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_hands_the_batch_back(drain, worker_process, number):
    """Fault 6: the call in hand ends, nothing is claimed, and no attempt counted."""
    drain()
    Book.objects.bulk_create([Book(title=f"SLEEP {n}") for n in range(300)])
    worker = worker_process(SCRIPTED_SLEEP="0.01")
    worker.says("asleep")
    worker.send(number)
    with Application() as application:
        application.execute(
            "INSERT INTO library_book (id, title, body, year, published)"
            " VALUES (999, 'later', '', 2000, true)"
        )
        status, output = worker.wait()
    assert status == 0, output
    assert Inbox.objects.get().source_pk == "999"
    assert Ledger.objects.exclude(token=None).count() == 0
    assert BookEmbedding.objects.count() >= 100  # a call
    assert BookEmbedding.objects.count() + Ledger.objects.count() == 300
    assert Ledger.objects.count() > 0
    assert set(Ledger.objects.values_list("attempts", flat=True)) == {0}
    assert worker_process("--drain", SCRIPTED_SLEEP="0").wait()[0] == 0
    assert_in_step(BookEmbedding)


def test_a_second_signal_ends_at_once(drain, worker_process):
    """Fault 6: what it had in hand is taken over when its lease has run out."""
    drain()
    Book.objects.create(title="SLEEP")
    short = {"DJANGO_SETTINGS_MODULE": "tests.short_lease", "SHORT_LEASE": "3"}
    worker = worker_process(SCRIPTED_SLEEP="20", **short)
    worker.says("asleep")
    worker.send(signal.SIGTERM)
    until(lambda: (worker.send(signal.SIGTERM), worker.process.poll() is not None)[1], every=0.3)
    assert worker.process.returncode == 130
    left = Ledger.objects.get()
    assert (left.token is not None, left.attempts) == (True, 1)
    begin(worker_process, SCRIPTED_SLEEP="0", **short)
    until(is_settled)
    assert timezone.now() >= left.run_at
    assert_in_step(BookEmbedding)


def test_a_call_that_is_not_answered_in_time_is_given_up(drain, worker_process):
    """Its rows are handed back, and its thread is not waited for."""
    drain()
    Book.objects.create(title="SLEEP")
    short = {"DJANGO_SETTINGS_MODULE": "tests.short_lease", "SHORT_GRACE": "0.5"}
    worker = worker_process(SCRIPTED_SLEEP="1000", SHORT_LEASE="600", **short)
    worker.says("asleep")
    worker.send(signal.SIGTERM)
    status, output = worker.wait(30)
    assert status == 0, output
    assert "has not ended: its rows are handed back" in output
    owed = Ledger.objects.get()
    assert (owed.token, owed.attempts) == (None, 0)
    assert not WorkerState.objects.exists()


def test_a_signal_is_heeded_while_the_inbox_is_locked(drain, worker_process):
    drain()
    worker = begin(worker_process)
    with uncommitted("LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE"):
        worker.says("waits for a lock")
        worker.send(signal.SIGTERM)
        status, output = worker.wait(30)
    assert status == 0, output


def test_an_old_worker_beside_a_new_one_ends_and_writes_nothing(drain, worker_process):
    """Fault 30: its settings name another model."""
    drain()
    old = worker_process("--only", "library.Book")
    old.says("serving")
    new = worker_process("--only", "library.Book", DJANGO_SETTINGS_MODULE="tests.newer_settings")
    new.says("serving")
    Book.objects.create(title="A")
    status, output = old.wait()
    assert status == 1, output
    assert "A worker with another declaration" in output
    until(BookEmbedding.objects.exists)
    assert "newer" in SidecarState.objects.get(key=KEY).embedder
    assert_in_step(BookEmbedding)


def test_a_row_that_kills_workers_is_parked_and_its_neighbours_are_not(
    drain, worker_process, tmp_path
):
    """Fault 5: and it is alone in the call that kills, from the second one on."""
    drain()
    calls, ends = tmp_path / "calls", []
    short = {"DJANGO_SETTINGS_MODULE": "tests.short_lease", "CALLS": str(calls)}
    # First, so that the others are leased, too, each time that it kills.
    Book.objects.create(title="DIE")
    Book.objects.bulk_create([Book(title=f"good {n}") for n in range(9)])
    with Application() as application:
        for n in range(10):
            application.execute("UPDATE library_book SET year = %s", [n])
            worker = worker_process("--drain", steps=True, **short)
            ends.append(worker.wait()[0])
            if ends[-1] == 0 and not Ledger.objects.filter(run_at__isnull=False).exists():
                break
            make_due()
    assert ends.count(137) == 3  # EMBEDSYNC_MAX_ATTEMPTS
    owed = Ledger.objects.get(run_at=None)
    assert owed.attempts == 3
    assert "worker died" in owed.last_error
    assert BookEmbedding.objects.filter(source__title__startswith="good").count() == 9
    asked = calls_in(calls)
    # Whoever was beside it in its first call was asked for a second time, and not for a third.
    assert max(asked.count(f"good {n}. ") for n in range(9)) == 2
    assert asked.count("DIE. ") == 3


def test_workers_share_the_work(drain, worker_process):
    drain()
    Book.objects.bulk_create([Book(title=f"SLEEP {n}") for n in range(2000)])
    workers = [worker_process("--drain", SCRIPTED_SLEEP="0.001") for _ in range(3)]
    outputs = [worker.wait() for worker in workers]
    assert [status for status, _ in outputs] == [0, 0, 0], outputs
    embedded = 0
    for _, output in outputs:
        embedded += int(re.search(r"([\d,]+) rows? embedded", output)[1].replace(",", ""))
    assert embedded == 2000
    assert_in_step(BookEmbedding)


def test_a_worker_whose_connections_are_cut_goes_on(drain, worker_process):
    drain()
    worker = worker_process()
    for n in range(5):
        Book.objects.create(title=f"Book {n}")
        until(lambda: not Inbox.objects.exists() and not Ledger.objects.exists())
        execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    Book.objects.create(title="last")
    until(lambda: BookEmbedding.objects.count() == 6)
    assert worker.process.poll() is None
    worker.send(signal.SIGTERM)
    status, output = worker.wait()
    assert status == 0, output
    assert "the database failed" in output
    assert_in_step(BookEmbedding)
