"""Order and age: old backlogs, late commits, rows that change while they are being embedded."""

import bisect
import signal

import pytest

from embedsync.models import Inbox
from tests.application import (
    BATCH,
    OLD,
    Application,
    begin,
    is_settled,
    make_backlog,
    settle,
    uncommitted,
)
from tests.books import BookEmbedding
from tests.library.models import Book
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = "INSERT INTO library_book (id, title, body, year, published) VALUES (%s, %s, '', 1, true)"


def test_a_backlog_is_worked_off_oldest_first(drain, worker_process):
    """Faults 36 and 37: nothing waits while more than a batch of each worker overtakes it."""
    drain()
    with uncommitted(OLD), Application(writers=2) as application:
        make_backlog(application, 5 * BATCH)
        backlog = BookEmbedding.objects.filter(source_id__lte=5 * BATCH)
        workers = [worker_process("--drain") for _ in range(2)]
        until(lambda: backlog.count() == 5 * BATCH, seconds=120, every=0.2)
    for worker in workers:
        status, output = worker.wait()
        assert status == 0, output
    times = []
    for embedded_at in backlog.order_by("source_id").values_list("embedded_at", flat=True):
        overtaken = len(times) - bisect.bisect_right(times, embedded_at)
        assert overtaken <= 2 * 500
        bisect.insort(times, embedded_at)
    settle(drain, BookEmbedding)


def test_events_that_are_committed_out_of_order_are_found(drain, worker_process):
    """Fault 44: the first to write is the last to commit."""
    drain()
    begin(worker_process)
    with Application() as application:
        late = application.client()
        for turn in range(3):
            late.execute("BEGIN")
            late.execute(INSERT, [2 * turn, "first to write"])
            application.execute(INSERT, [2 * turn + 1, "first to commit"])
            until(lambda turn=turn: BookEmbedding.objects.filter(source_id=2 * turn + 1).exists())
            until(is_settled)
            late.execute("COMMIT")
            until(lambda turn=turn: BookEmbedding.objects.filter(source_id=2 * turn).exists(), 10)
    until(is_settled)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("last", ["true", "false"])
def test_a_row_that_flaps_ends_as_it_was_left(drain, worker_process, last):
    """Fault 41: it is embedded once an event at most."""
    Book.objects.create(id=1, title="SLEEP")
    drain()
    worker = begin(worker_process, SCRIPTED_SLEEP="0")
    flap = "UPDATE library_book SET published = NOT published"
    with Application() as application:
        for _ in range(300):
            application.execute(flap)
        application.execute("UPDATE library_book SET published = %s", [last])
        until(is_settled)
    assert set(stored_vectors(BookEmbedding)) == ({1} if last == "true" else set())
    assert_in_step(BookEmbedding)
    worker.send(signal.SIGTERM)
    status, output = worker.wait()
    assert status == 0
    # Half of the events at most leave the book published.
    assert output.count("asleep") <= 151


def test_a_row_that_flapped_between_two_rounds_is_not_embedded_again(drain):
    """Fault 41: unpublished for a moment, and nobody has looked."""
    book = Book.objects.create(title="A")
    drain()
    before = book.embedding.embedded_at
    with Application() as application:
        for published in ("false", "true") * 50:
            application.execute("UPDATE library_book SET published = %s", [published])
    assert Inbox.objects.count() == 100
    drain()
    assert BookEmbedding.objects.get().embedded_at == before
    assert_in_step(BookEmbedding)


DELETE = "DELETE FROM library_book WHERE id = 1"
AGAIN = INSERT.replace("%s, %s", "1, 'back again'")


@pytest.mark.parametrize(
    ("statements", "left"),
    [
        ([DELETE], {2}),
        ([DELETE, AGAIN], {1, 2}),
        (["UPDATE library_book SET title = 'changed' WHERE id = 1"], {1, 2}),
        (["UPDATE library_book SET published = false WHERE id = 1"], {2}),
        (["UPDATE library_book SET id = 3 WHERE id = 1"], {2, 3}),
    ],
    ids=["deleted", "replaced", "changed", "unpublished", "moved"],
)
def test_what_happens_to_a_row_during_embedding_waits_for_nobody_and_is_kept(
    drain, worker_process, statements, left
):
    """Faults 42 and 43: another worker meets the change while the first is still embedding."""
    drain()
    first, second = (begin(worker_process, SCRIPTED_SLEEP="1") for _ in range(2))
    second.send(signal.SIGSTOP)
    with Application() as application:
        with application.first.transaction():
            application.execute(INSERT, [1, "SLEEP"])
            application.execute(INSERT, [2, "beside it"])
        first.says("asleep")
        for sql in statements:
            application.execute(sql)
        second.send(signal.SIGCONT)
        until(lambda: not Inbox.objects.exists())
    until(is_settled)
    assert set(stored_vectors(BookEmbedding)) == left
    assert_in_step(BookEmbedding)
