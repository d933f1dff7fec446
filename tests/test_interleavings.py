"""The moves of two workers and an application, interleaved by hand."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from embedsync.claim import Claim
from embedsync.lease import LeaseKeeper
from embedsync.models import Inbox, Ledger, SidecarState
from embedsync.state import SupersededError
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until, work_off

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Hand:
    """A worker whose moves are made one at a time."""

    worker: Worker

    @property
    def queue(self):
        return self.worker.queue

    def fold(self):
        """The claims of all events."""
        return self.queue.fold([KEY], 100)[1]

    def due(self):
        return self.queue.due([KEY], 100)

    def complete(self, claim, **texts):
        """Write the vectors of texts, given as pk<key>=text, whatever the rows say now."""
        service = self.worker.services[KEY]
        pks = [name.removeprefix("pk") for name in texts]
        found = service.embedder.checked_documents(list(texts.values()))
        vectors = {pk: (b"x" * 16, vector) for pk, vector in zip(pks, found, strict=True)}
        return self.queue.complete(BookEmbedding, claim, service.fingerprint, vectors, blank=[])


@pytest.fixture
def hand(drain):
    """Make workers; the first fill has ended by then."""
    drain()

    def make():
        worker = Worker()
        worker.start()
        return Hand(worker)

    return make


def end_leases():
    Ledger.objects.filter(token__isnull=False).update(run_at=timezone.now())


def is_waited_for():
    """Whether another connection waits for a lock of this one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE NOT granted"
            " AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
        return cursor.rowcount > 0


def in_a_thread(move, *arguments):
    try:
        return move(*arguments)
    finally:
        connections["default"].close()


def test_a_late_worker_takes_nothing_from_its_successor(hand):
    """The successor is still embedding when the late one comes to write."""
    Book.objects.create(id=1, title="old")
    late, successor = hand(), hand()
    [lost] = late.fold()
    end_leases()
    Book.objects.update(title="new")
    [held] = successor.fold()
    done = late.complete(lost, pk1="old. ")
    assert (done.written, done.lost) == ([], 1)
    assert not BookEmbedding.objects.exists()
    assert Ledger.objects.get().token == held.token
    assert len(successor.complete(held, pk1="new. ").written) == 1
    assert_in_step(BookEmbedding)


def test_a_late_worker_removes_nothing_either(hand, drain):
    """It read the row as unpublished; since then the row has come back."""
    Book.objects.create(id=1, title="A", published=False)
    late = hand()
    [lost] = late.fold()
    end_leases()
    Book.objects.update(published=True)
    drain()
    Book.objects.update(title="B")
    [held] = hand().fold()
    fingerprint = late.worker.services[KEY].fingerprint
    done = late.queue.complete(BookEmbedding, lost, fingerprint, {}, blank=["1"])
    assert (done.written, done.lost) == ([], 1)
    assert BookEmbedding.objects.count() == 1
    assert Ledger.objects.get().token == held.token


def test_a_late_worker_hands_nothing_back_and_extends_nothing(hand):
    Book.objects.create(id=1, title="A")
    late = hand()
    [lost] = late.fold()
    end_leases()
    [held] = hand().due()
    before = Ledger.objects.values().get()
    late.queue.hand_back(lost, {"1": None}, "too late")
    late.queue.extend(lost)
    assert Ledger.objects.values().get() == before
    assert before["token"] == held.token


def test_leases_are_extended_again_and_again(hand, settings):
    settings.EMBEDSYNC_LEASE = 0.3
    Book.objects.create(id=1, title="A")
    worker = hand()
    claims = worker.fold()
    ends = {Ledger.objects.get().run_at}
    with LeaseKeeper(worker.queue, claims):
        until(lambda: ends.add(Ledger.objects.get().run_at) or len(ends) == 3)


def test_a_row_excluded_during_embedding_gets_no_vector(hand, drain):
    Book.objects.create(id=1, title="A")
    worker = hand()
    [claim] = worker.fold()
    Book.objects.update(published=False)
    assert worker.complete(claim, pk1="A. ").written == []
    drain()
    assert_in_step(BookEmbedding)


def test_a_worker_superseded_during_embedding_writes_nothing(hand):
    Book.objects.create(id=1, title="A")
    worker = hand()
    [claim] = worker.fold()
    SidecarState.objects.filter(key=KEY).update(fingerprint="a newer one")
    with pytest.raises(SupersededError):
        worker.complete(claim, pk1="A. ")
    assert not BookEmbedding.objects.exists()
    assert Ledger.objects.get().token == claim.token
    work_off(worker.worker, claim)
    assert "has started since" in worker.worker.errors[KEY]
    owed = Ledger.objects.get()
    assert (owed.token, owed.attempts) == (None, 0)


def test_a_change_during_an_attempt_that_fails_is_tried_at_once(hand, drain):
    """Even where the attempt was the last: it is another text."""
    Book.objects.create(id=1, title="FAIL")
    worker = hand()
    [claim] = worker.fold()
    Book.objects.update(title="good")
    assert worker.fold() == []
    worker.queue.hand_back(claim, {"1": None}, "failed")
    owed = Ledger.objects.get()
    assert (owed.token, owed.dirty, owed.attempts, owed.last_error) == (None, False, 0, "")
    drain()
    assert_in_step(BookEmbedding)


def test_a_change_during_an_attempt_that_succeeds_starts_anew(hand):
    Book.objects.create(id=1, title="first")
    worker = hand()
    [claim] = worker.fold()
    Ledger.objects.update(attempts=5, last_error="failed before")
    Book.objects.update(title="second")
    worker.fold()
    worker.complete(claim, pk1="first. ")
    owed = Ledger.objects.get()
    assert (owed.token, owed.dirty, owed.attempts, owed.last_error) == (None, False, 0, "")
    [claim] = worker.due()
    worker.complete(claim, pk1="second. ")
    assert_in_step(BookEmbedding)


def test_a_successor_starts_with_a_clean_row(hand):
    """What the dead worker's row was marked with is read by its successor anyway."""
    Book.objects.create(id=1, title="first")
    worker = hand()
    worker.fold()
    Book.objects.update(title="second")
    worker.fold()
    end_leases()
    [claim] = worker.due()
    worker.complete(claim, pk1="second. ")
    assert_in_step(BookEmbedding)


def test_a_death_counts_though_the_row_has_changed_since(hand):
    """A row that kills workers and changes all the time is parked in the end."""
    Book.objects.create(id=1, title="DIE")
    worker = hand()
    for attempt in (1, 2, 3):
        [claim] = worker.fold()
        assert claim.attempts == {"1": attempt}
        end_leases()
        Book.objects.update(title=f"DIE {attempt}")


def test_a_lease_that_ends_while_a_fold_waits_for_its_row_loses_nothing(hand, drain):
    """A fold asks of one moment whether a lease is live, however long it takes."""
    Book.objects.create(id=1, title="first")
    holder, other = hand(), hand()
    [claim] = holder.fold()
    Book.objects.update(title="second")
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Ledger.objects.select_for_update().get()
            folding = pool.submit(in_a_thread, other.fold)
            until(is_waited_for)
            with connection.cursor() as cursor:
                cursor.execute("UPDATE embedsync_ledger SET run_at = clock_timestamp()")
            before = Ledger.objects.values().get()
        assert folding.result() == []
    after = Ledger.objects.values().get()
    assert after.pop("queued_at") > before.pop("queued_at")  # of the second change
    assert after == {**before, "dirty": True}
    assert len(holder.complete(claim, pk1="first. ").written) == 1
    drain()
    assert_in_step(BookEmbedding)


def test_a_fold_steps_over_events_that_another_worker_is_folding(hand):
    Book.objects.create(id=1, title="A")
    first, second = hand(), hand()
    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        assert len(first.fold()) == 1
        assert pool.submit(in_a_thread, second.fold).result(timeout=10) == []


def test_a_change_while_its_row_is_being_completed_is_owed(hand):
    """The fold waits for the completion and finds no ledger row any more."""
    Book.objects.create(id=1, title="first")
    holder, other = hand(), hand()
    [claim] = holder.fold()
    Book.objects.update(title="second")
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            holder.complete(claim, pk1="first. ")
            folding = pool.submit(in_a_thread, other.fold)
            until(is_waited_for)
        [claim] = folding.result()
    assert claim.attempts == {"1": 1}
    other.complete(claim, pk1="second. ")
    assert_in_step(BookEmbedding)


def test_a_fold_locks_in_the_order_of_the_keys(hand):
    """Whatever the order of their events: so two of them cannot deadlock."""
    Book.objects.bulk_create([Book(id=n, title="A") for n in (1, 2)])
    worker = hand()
    worker.fold()
    Book.objects.filter(id=2).update(title="B")
    Book.objects.filter(id=1).update(title="B")
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Ledger.objects.select_for_update().get(source_pk="1")
            folding = pool.submit(in_a_thread, worker.fold)
            until(is_waited_for)
            # Waiting for the first key, it holds no later one.
            Ledger.objects.select_for_update(nowait=True).get(source_pk="2")
        assert folding.result() == []


def test_hand_back_locks_in_the_order_of_the_keys(hand):
    """Or it deadlocks with a fold that marks the same rows."""
    worker, claim = hand(), Claim(KEY, uuid4(), {str(n): 1 for n in range(1000, 1500)})
    now = timezone.now()
    Ledger.objects.bulk_create(
        Ledger(sidecar=KEY, source_pk=pk, token=claim.token, run_at=now, queued_at=now, attempts=1)
        for pk in reversed(claim.pks)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE embedsync_ledger")  # as autovacuum does during a long embedding
    part = dict.fromkeys(claim.pks[:100], 0.0)
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Ledger.objects.select_for_update().get(source_pk="1000")
            back = pool.submit(in_a_thread, worker.queue.hand_back, claim, part)
            until(is_waited_for)
            Ledger.objects.select_for_update(nowait=True).get(source_pk="1099")
        back.result()


def test_a_change_during_the_last_attempt_outlives_its_worker(hand, drain, settings):
    """hand_back tries changed text anew; due parks it, and forgets that it was changed."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    Book.objects.create(id=1, title="old")
    worker = hand()
    worker.fold()
    Book.objects.update(title="new")
    worker.fold()
    assert Ledger.objects.get().dirty
    end_leases()
    drain()
    assert_in_step(BookEmbedding)


def test_a_row_that_changes_in_hand_has_waited_since_then(hand):
    """Not since the write after which its change is seen to."""
    Book.objects.create(id=1, title="A")
    worker = hand()
    [claim] = worker.fold()
    Ledger.objects.update(queued_at="2000-01-01T00:00Z")
    Book.objects.update(title="B")
    Inbox.objects.update(queued_at="2001-01-01T00:00Z")
    Book.objects.update(title="C")
    hand().fold()
    worker.complete(claim, pk1="A. ")
    assert Ledger.objects.get().queued_at.year == 2001
