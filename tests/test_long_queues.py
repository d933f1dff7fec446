"""Long queues: what looks and moves of a worker read beside a hundred thousand events or rows."""

import itertools
import math
import uuid

import pytest
from django.db import connection

from embedsync.models import Inbox, SidecarState
from embedsync.queue import Queue
from embedsync.sql import statement
from tests.application import BATCH, OLD, Application, make_backlog, uncommitted
from tests.books import KEY, BookEmbedding, execute
from tests.cinema.models import Film
from tests.library.models import Book
from tests.workers import Clock

FilmEmbedding = Film.embedding.model
FILM_KEY = "cinema.filmembedding"

pytestmark = pytest.mark.django_db(transaction=True)


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


def rows_read(table="embedsync_inbox"):
    """How many rows of it this session's statements have read so far, by whatever plan."""
    execute("SELECT pg_stat_force_next_flush()")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE relid = %s::regclass",
            [table],
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
    before = rows_read()
    assert any(moves[move]())
    assert rows_read() - before < 5000


def test_events_of_related_rows_are_walked_through_once_to_find_others(emptied_inbox):
    """Fault 36: and those that come later are seen at once."""
    queue = emptied_inbox("hop", 40)
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (False, True, False)
    before = rows_read()
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (False, True, False)
    Book.objects.create(title="Later", year=1999, published=True)
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (True, True, False)
    _, [claim] = queue.fold([KEY], 10)
    assert rows_read() - before < 5000
    assert claim.key == KEY


def test_the_rows_of_an_event_are_found_by_any_plan(emptied_inbox):
    """What a row belongs to is a query of the application's, which may need what events do not."""
    queue, plans = emptied_inbox("hop", 40), []

    def note(execute, sql, params, many, context):
        if sql.startswith("-- EXPAND"):
            cursor = context["cursor"].cursor
            cursor.execute(
                "SELECT current_setting('enable_seqscan'), current_setting('enable_bitmapscan')"
            )
            plans.append(cursor.fetchone())
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        queue.expand(FilmEmbedding, "genres")
    assert plans == [("off", "off"), ("on", "on")]


def test_events_are_seen_where_the_server_binds_parameters(emptied_inbox, bound_by_the_server):
    """Where one message cannot be of two statements."""
    queue = emptied_inbox("row", 40)
    before = rows_read()
    assert queue.peek([FILM_KEY], [FILM_KEY]) == (True, False, False)
    assert rows_read() - before < 5000


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


@pytest.mark.parametrize("is_empty", [True, False], ids=["taken for empty", "taken for long"])
@pytest.mark.parametrize("move", ["due", "count", "extend", "hand_back", "done", "again"])
def test_what_is_done_with_a_few_rows_reads_no_others(drain, move, is_empty):
    """Fault 36: of a ledger that is long, as after a renamed genre of very many films."""
    drain()
    due = "now() - n * interval '1 ms'"
    owe(100_000, due)
    if is_empty:
        execute("DELETE FROM embedsync_ledger")
    execute("VACUUM ANALYZE embedsync_ledger")
    if is_empty:
        owe(100_000, due)
    queue = Queue("default", "me")
    [claim] = queue.due([KEY], 500)
    fingerprint = SidecarState.objects.get(key=KEY).fingerprint
    if move == "again":
        execute("UPDATE embedsync_ledger SET dirty = true WHERE token IS NOT NULL")

    def complete():
        return queue.complete(BookEmbedding, claim, fingerprint, {}, gone=claim.pks)

    moves = {
        "due": lambda: queue.due([KEY], 500),
        "count": lambda: queue.count(claim, claim.pks, 1),
        "extend": lambda: queue.extend(claim),
        "hand_back": lambda: queue.hand_back(claim, dict.fromkeys(claim.pks, 60.0), "later"),
        "done": complete,
        "again": complete,
    }
    before = rows_read("embedsync_ledger")
    moves[move]()
    assert 0 < rows_read("embedsync_ledger") - before < 5000
