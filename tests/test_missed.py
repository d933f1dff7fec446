"""When workers compare all rows because a trigger has failed: never too early, never never."""

from contextlib import closing

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from embedsync import state
from embedsync.database import worker_transaction
from embedsync.models import Inbox, SidecarState
from tests.books import KEY, BookEmbedding, execute
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


def mark():
    """How many failures the triggers have counted."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM embedsync_missed"
        )
        return cursor.fetchone()[0]


def is_compared():
    """Whether the comparison that the last failure asks for has at least begun."""
    return SidecarState.objects.get(key=KEY).missed == mark()


@pytest.fixture
def heeded(drain):
    """No failure is left to be seen to."""
    until(lambda: drain() and is_compared(), seconds=120)


@pytest.fixture
def uncaptured(heeded):
    """A connection whose open transaction has inserted a book that was not captured.

    No transaction is newer, and none that began after it has ended.
    """
    with closing(connection.copy()) as application:
        application.set_autocommit(False)
        with transaction.atomic(), application.cursor() as cursor:
            execute("LOCK TABLE embedsync_inbox")
            cursor.execute(
                "INSERT INTO library_book (id, title, body, year, published)"
                " VALUES (1, 'late', '', 1, true)"
            )
        yield application
    assert not Inbox.objects.filter(source_pk="1").exists()


def look(after=0, between=None):
    """A worker's look at the mark, in which something happens after its first statements."""

    class Interrupted:
        def __init__(self, cursor):
            self.cursor, self.statements = cursor, 0

        def execute(self, *arguments):
            self.cursor.execute(*arguments)
            self.statements += 1
            if between and self.statements == after:
                between()

        def __getattr__(self, name):
            return getattr(self.cursor, name)

    with worker_transaction("default") as cursor:
        state.heed_missed(Interrupted(cursor), [KEY])


def test_the_transaction_that_left_the_mark_is_waited_for_though_none_is_newer(drain, uncaptured):
    for _ in range(3):
        look()
        assert not is_compared()
    uncaptured.commit()
    until(lambda: drain() and is_compared(), seconds=120)
    assert BookEmbedding.objects.count() == 1
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("after", [1, 2])
def test_what_another_worker_notes_in_between_is_waited_for_too(uncaptured, after):
    def another_looks():
        with closing(connection.copy()) as other, other.cursor() as cursor, transaction.atomic():
            state.heed_missed(cursor, [KEY])

    look(after, another_looks)
    look()
    assert not is_compared()
    uncaptured.commit()
    until(lambda: look() or is_compared())
    assert SidecarState.objects.get(key=KEY).backfilled_at is None


def test_a_mark_restored_from_another_server_is_not_waited_for(heeded, drain):
    """Transactions are numbered by each server; here the number will not come for years."""
    execute("SET embedsync.capture = 'off'")
    Book.objects.create(title="A")
    execute("RESET embedsync.capture")
    execute("SELECT nextval('embedsync_missed')")
    SidecarState.objects.update(missed_seen=mark(), missed_until=2**40)
    until(lambda: drain() and is_compared(), seconds=120)
    assert BookEmbedding.objects.count() == 1
    assert_in_step(BookEmbedding)


def test_a_mark_is_not_waited_for_longer_than_its_transaction(drain, uncaptured):
    """Other transactions that have begun since may go on for hours."""
    look()
    with closing(connection.copy()) as busy, busy.cursor() as cursor:
        busy.set_autocommit(False)
        cursor.execute("SELECT pg_current_xact_id()")
        uncaptured.commit()
        until(lambda: drain() and is_compared(), seconds=120)
        assert BookEmbedding.objects.count() == 1


def test_sidecars_are_locked_in_the_order_in_which_all_lock_them(drain):
    """Wherever their rows lie, or a worker and a truncation wait for each other."""
    drain()
    keys = list(SidecarState.objects.order_by("key").values_list("key", flat=True))
    for key in reversed(keys):
        execute("UPDATE embedsync_sidecar SET missed_until = 0 WHERE key = %s", [key])
    execute("SELECT nextval('embedsync_missed')")
    with CaptureQueriesContext(connection) as queries, worker_transaction("default") as cursor:
        cursor.execute("SET LOCAL enable_indexscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        state.heed_missed(cursor, keys)
    locking = [query["sql"] for query in queries if query["sql"].endswith("FOR UPDATE")]
    assert [sql.split("'")[1] for sql in locking] == sorted(keys)
