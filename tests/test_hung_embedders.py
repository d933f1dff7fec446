"""Embedders that hang, answer too late, or hang in one text: who pays, who goes on."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from django.db import OperationalError

from embedsync import tasks
from embedsync.embedders import RefusedError
from embedsync.models import Ledger
from embedsync.queue import Queue
from embedsync.status import statuses
from embedsync.worker import Worker
from example_project.postgres import PROJECT
from tests.application import is_settled
from tests.articles.models import Entry
from tests.books import BookEmbedding
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

PARKED = {"run_at": None}
# Of those that are shorter the vectors of a late answer are remembered.
LONG = "long text " * 150


def books(number, bad=None, **more):
    titles = {n: "HANG" if n == bad else f"Book {n}" for n in range(1, number + 1)}
    Book.objects.bulk_create([Book(id=n, title=title, **more) for n, title in titles.items()])


def test_answers_that_come_too_late_cost_nobody_an_attempt(impatient, scripted, running):
    """Nothing counts of a call that was given up: neither an answer nor a failure."""
    calls, is_slow = [], threading.Event()
    is_slow.set()

    def slow(texts):
        calls.append(texts)
        if is_slow.is_set():
            time.sleep(0.7)

    scripted(slow)
    books(6, body=LONG)
    running()
    until(lambda: len(calls) >= 9)
    assert not Ledger.objects.filter(**PARKED).exists()
    assert set(Ledger.objects.filter(token=None).values_list("attempts", flat=True)) <= {0}
    is_slow.clear()
    until(is_settled)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("error", [TimeoutError, ValueError])
def test_a_text_whose_call_fails_later_than_it_is_given_up(impatient, scripted, running, error):
    def slow(texts):
        if any("HANG" in text for text in texts):
            time.sleep(0.7)
            raise error("at last")

    scripted(slow)
    books(6, bad=3)
    running()
    until(lambda: BookEmbedding.objects.count() == 5 and Ledger.objects.filter(**PARKED).exists())
    assert Ledger.objects.get().source_pk == "3"


def test_all_calls_that_hang_are_handed_back_though_the_database_fails(
    impatient, hanging, monkeypatch, running
):
    hand_back, failed = Queue.hand_back, []

    def fails_once(queue, claim, delays, error="", refund=False):
        if "Unanswered" in error and not failed:
            failed.append(delays)
            raise OperationalError("deadlock detected")
        hand_back(queue, claim, delays, error, refund)

    monkeypatch.setattr(Queue, "hand_back", fails_once)
    Book.objects.bulk_create([Book(id=n, title=f"HANG {n}") for n in range(1, 5)])
    worker = running(concurrency=2)
    marked = Ledger.objects.filter(last_error__startswith="UnansweredError")
    until(lambda: marked.count() == 4, seconds=15)
    assert failed
    assert worker.pipeline._owed == []


def test_a_model_that_waits_behind_a_call_that_hangs_is_loaded(impatient, hanging, running):
    """Books and entries are of one embedder, and only of entries the tokens are counted."""
    worker = running()
    Book.objects.create(title="HANG")
    until(lambda: any(lane.running for lane in worker.pipeline._lanes.values()))
    Entry.objects.create(slug="a", text="some words")
    until(Entry.embedding.model.objects.exists, seconds=10)
    Book.objects.create(title="harmless")
    until(BookEmbedding.objects.exists, seconds=10)


def age(path):
    return time.time() - path.stat().st_mtime if path.exists() else 0.0


def test_the_alive_file_grows_old_as_long_as_nothing_is_answered(
    impatient, scripted, running, tmp_path
):
    """As where a process has a lock for ever: a supervisor starts it anew."""
    goes_on = threading.Event()
    scripted(lambda texts: goes_on.wait(60))
    books(3)
    running(alive=tmp_path / "alive")
    try:
        until(lambda: age(tmp_path / "alive") > 4, seconds=20)
    finally:
        goes_on.set()
    until(lambda: is_settled() and age(tmp_path / "alive") < 2)


def test_the_alive_file_stays_young_where_one_text_is_to_blame(
    impatient, hanging, running, tmp_path
):
    books(3, bad=1)
    running(alive=tmp_path / "alive")
    until(lambda: Ledger.objects.filter(**PARKED).exists())
    time.sleep(2.5)
    assert age(tmp_path / "alive") < 2


def test_scheduled_runs_embed_the_others(drain, hanging, monkeypatch):
    """They are too short for a call to be given up in them."""
    monkeypatch.setattr("embedsync.lane.ASKED_SECONDS", 0.1)
    drain()
    books(30, bad=3)

    def run():
        worker = Worker(only=[BookEmbedding])
        worker.start()
        worker.run(drain=True, max_seconds=1, grace=0.2)

    until(lambda: run() or BookEmbedding.objects.count() == 29)
    assert Ledger.objects.get().attempts == 0


def test_scheduled_runs_during_an_outage_suspect_no_row(drain, scripted, monkeypatch):
    """Or all would be embedded one by one when it is over."""
    monkeypatch.setattr("embedsync.lane.ASKED_SECONDS", 0.1)
    drain()
    sizes, goes_on = [], threading.Event()

    def hangs(texts):
        sizes.append(len(texts))
        goes_on.wait(60)

    scripted(hangs)
    books(60, body=LONG)
    for _ in range(3):
        tasks.process_pending(max_seconds=1)
    assert set(Ledger.objects.values_list("attempts", "token")) == {(0, None)}
    assert not Ledger.objects.filter(last_error__startswith="UnansweredError").exists()
    goes_on.set()
    sizes.clear()
    until(lambda: tasks.process_pending(max_seconds=5) and is_settled())
    assert max(sizes) > 1
    assert_in_step(BookEmbedding)


def test_all_workers_know_which_rows_go_alone(impatient, scripted, running):
    """And claim a few of them at a time, so that others may help."""
    sizes, goes_on = [], threading.Event()

    def hangs(texts):
        if any("HANG" in text for text in texts):
            sizes.append(len(texts))
            goes_on.wait(60)

    scripted(hangs)
    books(300, bad=3)
    workers = [running(only=[BookEmbedding]) for _ in range(3)]
    most = 0

    def is_parked():
        nonlocal most
        lanes = [lane for worker in workers for lane in list(worker.pipeline._lanes.values())]
        most = max(most, *(len(lane.retried) for lane in lanes), 0)
        return Ledger.objects.filter(**PARKED).exists()

    try:
        until(is_parked)
        until(lambda: BookEmbedding.objects.count() == 299)
    finally:
        goes_on.set()
    assert sizes == [sizes[0], 1, 1]
    assert 0 < most <= 20


def test_a_refusal_that_is_over_is_not_told(drain, settings, scripted):
    """Though most rows have not been embedded since, for lack of a budget."""
    drain()
    is_refused = threading.Event()
    is_refused.set()

    def refuse(texts):
        if is_refused.is_set():
            raise RefusedError("wrong key")

    scripted(refuse)
    books(10)
    tasks.process_pending(max_seconds=2)
    assert "wrong key" in error_of_the_books()
    is_refused.clear()
    limited = {**settings.EMBEDSYNC_EMBEDDERS["scripted"], "ROWS_PER_MINUTE": 3}
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": limited}
    tasks.process_pending(max_seconds=1)
    assert 0 < BookEmbedding.objects.count() < 10
    assert error_of_the_books() == ""


def error_of_the_books():
    [status] = statuses("default", [BookEmbedding])
    return status.error


PROGRAM = """
import django, sys, tests.settings
tests.settings.EMBEDSYNC_GRACE = 0.5
django.setup()
from django.core.management import call_command
call_command("embed_worker")
"""


def test_a_worker_within_another_program_ends_when_it_is_told_to(drain, environment):
    drain()
    Book.objects.create(title="SLEEP")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        env={**environment, "SCRIPTED_SLEEP": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert any("asleep" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert Ledger.objects.get().attempts == 0
