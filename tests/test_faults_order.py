"""Order and age: long backlogs, late commits, rows that change while they are being embedded."""

import bisect
import itertools
import math
import signal
import uuid

import pytest
from django.db import connection

from embedsync.models import Inbox
from embedsync.queue import Queue
from embedsync.sql import statement
from tests.application import Application, begin, is_settled, settle, uncommitted
from tests.books import KEY, BookEmbedding, execute
from tests.cinema.models import Film
from tests.library.models import Book
from tests.sync import assert_in_step, stored_vectors
from tests.workers import Clock, until

FilmEmbedding = Film.embedding.model
FILM_KEY = "cinema.filmembedding"

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = "INSERT INTO library_book (id, title, body, year, published) VALUES (%s, %s, '', 1, true)"
BATCH = 1000
# An old transaction elsewhere: until it ends, nothing that is deleted can be cleared away.
OLD = "SELECT pg_current_xact_id()"


def make_backlog(application, size):
    for first in range(0, size, BATCH):
        application.execute(
            "INSERT INTO library_book (id, title, body, year, published)"
            " SELECT n, 'Book ' || n, '', 2000, true FROM generate_series(%s::int, %s::int) n",
            [first + 1, first + BATCH],
        )


def inbox_scans(plan):
    """The buffers that each scan of the inbox in a plan has touched."""
    if plan.get("Relation Name") == "embedsync_inbox" and plan["Node Type"] not in (
        "Tid Scan",
        "ModifyTable",
    ):
        yield plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    for below in plan.get("Plans", []):
        yield from inbox_scans(below)


class Explained:
    """Has each fold explained before it is made: the buffers that looking for events took."""

    def __init__(self):
        self.buffers = []

    def __call__(self, execute, sql, params, many, context):
        if "FOLD" in sql:
            cursor = context["cursor"]
            cursor.cursor.execute("SAVEPOINT explained")
            cursor.cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
            [[explained]] = cursor.fetchone()
            cursor.cursor.execute("ROLLBACK TO explained")
            self.buffers.append(sum(inbox_scans(explained["Plan"])))
        return execute(sql, params, many, context)


@pytest.mark.parametrize("held", [[], [OLD]], ids=["free", "xmin held"])
def test_looking_for_events_costs_no_more_at_the_end_of_a_backlog(drain, held):
    """Faults 36 and 37: at most half as much again, and the oldest events come first."""
    drain()
    with uncommitted(*held):
        with Application() as application:
            make_backlog(application, 20 * BATCH)
        queue, explained, order = Queue("default", "me"), Explained(), []
        with connection.execute_wrapper(explained):
            for _ in range(20):
                _, [claim] = queue.fold([KEY], BATCH)
                order.append({int(pk) for pk in claim.pks})
                # Looks at all there is are seldom, and not what is measured here.
                queue._next_full_look = math.inf
    assert len(explained.buffers) == 20
    early, late = explained.buffers[1:5], explained.buffers[-4:]
    assert min(early) > 0
    assert max(late) <= 1.5 * max(early)
    assert order == [
        set(range(first + 1, first + BATCH + 1)) for first in range(0, 20 * BATCH, BATCH)
    ]


@pytest.mark.parametrize("held", [[], [OLD]], ids=["free", "xmin held"])
def test_claims_at_the_end_of_a_million_look_no_further_than_at_its_beginning(drain, held):
    """Faults 36 and 37, with claims that a single statement stands in for."""
    drain()
    execute(
        "INSERT INTO embedsync_inbox (sidecar, kind, source_pk)"
        f" SELECT '{KEY}', 'row', n::text FROM generate_series(1, 1000000) AS n"
    )
    execute("VACUUM ANALYZE embedsync_inbox")
    queue, explained = Queue("default", "me"), Explained()

    def claim():
        queue.fold([KEY], BATCH)
        queue._next_full_look = math.inf  # these are seldom, and not what is measured here

    with uncommitted(*held), connection.execute_wrapper(explained):
        for _ in range(6):
            claim()
        last = Inbox.objects.order_by("-pk")[0].pk - 10 * BATCH
        # As a thousand claims do, and leave behind.
        execute("DELETE FROM embedsync_inbox WHERE seq <= %s", [last])
        queue.low = last
        for _ in range(6):
            claim()
    early, late = explained.buffers[1:6], explained.buffers[6:]
    assert min(early) > 0
    assert max(late) <= 1.5 * max(early)


def events_read():
    """How many events this session's statements have read so far, by whatever plan."""
    execute("SELECT pg_stat_force_next_flush()")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE relid = 'embedsync_inbox'::regclass"
        )
        return cursor.fetchone()[0]


@pytest.fixture
def emptied_inbox(drain):
    """Has a thousand pages; the planner is told that there are so many events, or none, in them."""

    def fill(kind, size=100_000):
        execute(
            "INSERT INTO embedsync_inbox (sidecar, kind, hop, source_pk)"
            f" SELECT '{FILM_KEY}', '{kind}', 'genres', n::text FROM generate_series(1, {size}) n"
        )

    def empty(kind, kept):
        drain()
        fill(kind)
        execute("DELETE FROM embedsync_inbox")
        fill(kind, kept)
        execute("VACUUM ANALYZE embedsync_inbox")
        queue = Queue("default", "me", low=last_event())
        queue._next_full_look = math.inf  # these are seldom, and not what is measured here
        fill(kind)
        return queue

    return empty


def last_event():
    """The ``seq`` that the last event has got."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT last_value FROM embedsync_inbox_seq_seq")
        return cursor.fetchone()[0]


@pytest.mark.parametrize("kept", [0, 40])
@pytest.mark.parametrize(
    ("move", "kind"), [("fold", "row"), ("peek", "row"), ("rare", "hop"), ("expand", "hop")]
)
def test_the_oldest_of_many_events_are_found_without_the_others(emptied_inbox, move, kind, kept):
    """Fault 36: whatever the planner was told, which may be of before the backlog came."""
    queue = emptied_inbox(kind, kept)
    moves = {
        "fold": lambda: queue.fold([FILM_KEY], 10),
        "peek": lambda: queue.peek([FILM_KEY], [FILM_KEY]),
        "rare": lambda: queue.rare([FILM_KEY]),
        "expand": lambda: [queue.expand(FilmEmbedding, "genres")],
    }
    before = events_read()
    assert any(moves[move]())
    assert events_read() - before < 1000


def test_events_of_related_rows_are_walked_through_once_to_find_others(emptied_inbox):
    """Fault 36: and those that come later are seen at once."""
    queue = emptied_inbox("hop", 40)
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (False, True, False)
    before = events_read()
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (False, True, False)
    Book.objects.create(title="Later", year=1999, published=True)
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (True, True, False)
    _, [claim] = queue.fold([KEY], 10)
    assert events_read() - before < 1000
    assert claim.key == KEY


def test_events_are_seen_where_the_server_binds_parameters(emptied_inbox, bound_by_the_server):
    """Where one message cannot be of two statements."""
    queue = emptied_inbox("row", 40)
    before = events_read()
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (True, False, False)
    assert events_read() - before < 1000


def test_looks_at_the_whole_inbox_are_seldom_where_they_take_long(drain, monkeypatch):
    """Fault 37: every two seconds; oftener where they are quick, for a fiftieth of the time."""
    drain()
    clock, looks = Clock(), []
    monkeypatch.setattr("embedsync.queue.time", clock)

    def timed(execute, sql, params, many, context):
        if "PEEK" in sql and params["low"] == 0:
            looks.append(clock.now)
            clock.now += takes
        return execute(sql, params, many, context)

    def gaps():
        queue, looks[:] = Queue("default", "me"), []
        for _ in range(1000):
            # As a fold leaves it.
            queue.low = 7
            queue.peek([KEY], [KEY])
            clock.now += 0.01
        return [later - earlier for earlier, later in itertools.pairwise(looks)]

    with connection.execute_wrapper(timed):
        takes = 0.05
        slow = gaps()
        takes = 0.004
        quick = gaps()
    assert 2.0 <= min(slow) <= max(slow) < 2.1
    assert 0.2 <= min(quick) <= max(quick) < 0.3


def blocks(move, parameters):
    """The buffers that a statement touches."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement(move)}", parameters)
        [[explained]] = cursor.fetchone()
    return explained["Plan"]["Shared Hit Blocks"] + explained["Plan"]["Shared Read Blocks"]


def owe(rows, run_at):
    execute(
        "INSERT INTO embedsync_ledger (sidecar, source_pk, run_at, queued_at)"
        f" SELECT '{KEY}', n::text, {run_at}, now() FROM generate_series(1, {rows}) n"
    )


@pytest.mark.parametrize("move", ["peek", "due"])
def test_rows_whose_time_has_not_come_are_not_walked_through(drain, move):
    """As after an outage of a provider: all that is owed waits for its next attempt."""
    drain()
    owe(20_000, "now() + interval '1 hour'")
    execute("VACUUM ANALYZE embedsync_ledger")
    worker = {"token": uuid.uuid4(), "lease": 60, "worker": "me"}
    more = {"low": 0, "ready": [KEY], "since": [0.0], "limit": 100, "max_attempts": 5}
    more["retried"] = [True] if move == "peek" else None
    assert blocks(move, {"served": [KEY], **worker, **more}) < 20


def test_what_was_due_is_not_walked_through_again_and_again(drain):
    """With xmin held elsewhere what is done stays in the index, where its lease would have ended.

    A row that is committed late is found by the next look at all.
    """
    drain()
    owe(20_000, "now() - interval '1 hour'")
    queue, asked = Queue("default", "me"), []

    def note(execute, sql, params, many, context):
        asked.append(params)
        return execute(sql, params, many, context)

    with uncommitted(OLD):
        execute("DELETE FROM embedsync_ledger")
        with connection.execute_wrapper(note):
            assert not any(queue.peek([KEY], [KEY]))
            queue._next_due_look = math.inf
            assert not any(queue.peek([KEY], [KEY]))
        at_first, later = (blocks("peek", parameters) for parameters in asked)
        assert at_first > 100
        assert later < 20
    owe(1, "now() - interval '1 hour'")
    assert not any(queue.peek([KEY], [KEY]))
    queue._next_due_look = 0.0
    # And then as long as there is any: one batch may not take all.
    for _ in range(3):
        assert queue.peek([KEY], [KEY]) == (False, False, True)
        queue._next_due_look = math.inf


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
