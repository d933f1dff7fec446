"""The test of the tests: a part of the mechanism is taken out, and a scenario has to notice.

Fault 55. Each scenario passes with the mechanism whole, and fails without the part it is about: in
this process and in worker processes alike the SQL itself is another.
"""

import signal

import pytest

from embedsync.models import Ledger
from embedsync.worker import Worker
from tests.application import Application, is_settled
from tests.books import KEY, BookEmbedding, make_due
from tests.library.models import Book
from tests.steps import MUTANTS, mutate
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def held(drain, stepping, monkeypatch):
    """A worker process that has read and embedded "old", and is held before it writes."""
    drain()

    def start(mutant):
        worker = stepping(HOLD_AT="before_complete,after_commit", MUTANT=mutant or "")
        if mutant:
            mutate(mutant, monkeypatch.setattr)
        Book.objects.create(id=1, title="old")
        worker.says("holds before_complete")
        return worker

    return start


def update():
    with Application() as application:
        application.execute("UPDATE library_book SET title = 'new'")


def write(worker):
    """Let it write, or find out that it may not."""
    worker.goes_on()
    worker.says("holds after_commit")
    worker.goes_on()


def a_row_changes_in_a_workers_hands(worker, drain):
    """Another folds the event; the row has to be embedded once more."""
    update()
    drain()
    write(worker)
    until(is_settled)
    assert_in_step(BookEmbedding)


def a_worker_comes_too_late(worker, drain):
    """Its lease has run out, its row is another text, and is in the hands of another worker."""
    make_due()
    update()
    other = Worker()
    other.start()
    [claim] = other.queue.fold([KEY], 10)[1]
    write(worker)
    assert not BookEmbedding.objects.exists(), "a late worker has written"
    assert Ledger.objects.get().token == claim.token, "a late worker has settled another's row"
    worker.says("lost the lease of 1 rows")


def a_lease_is_live(worker, drain):
    """Whatever happens to its row, nobody takes it away."""
    before = Ledger.objects.get()
    update()
    drain()
    after = Ledger.objects.filter(token=before.token, run_at__gte=before.run_at)
    assert after.exists(), "a live lease was stolen"
    write(worker)
    until(is_settled)
    assert_in_step(BookEmbedding)


def a_worker_dies(worker, drain):
    """Somebody else gets to its row when its lease has ended."""
    worker.send(signal.SIGKILL)
    worker.process.wait()
    make_due()
    drain()
    assert_in_step(BookEmbedding)


SCENARIOS = {
    "completion ignores dirty": (a_row_changes_in_a_workers_hands, "'wrong': {1}"),
    "a fold never marks dirty": (a_row_changes_in_a_workers_hands, "'wrong': {1}"),
    "completion ignores the token": (a_worker_comes_too_late, "a late worker has written"),
    "a fold steals live leases": (a_lease_is_live, "a live lease was stolen"),
    "run-out leases are never reclaimed": (a_worker_dies, "'missing': {1}"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught(drain, held, mutant):
    scenario, what_is_wrong = SCENARIOS[mutant]
    worker = held(mutant)
    with pytest.raises(AssertionError, match=what_is_wrong):
        scenario(worker, drain)


@pytest.mark.parametrize("scenario", dict.fromkeys(found for found, _ in SCENARIOS.values()))
def test_the_mechanism_is_whole(drain, held, scenario):
    """Or else a scenario that always fails would catch every mutant."""
    scenario(held(None), drain)
