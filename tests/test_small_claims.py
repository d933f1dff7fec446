"""Claims of a role whose statements may not take long."""

import pytest

from embedsync.models import Ledger
from embedsync.worker import Worker
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.workers import until, work

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def slow(drain):
    """A ledger that takes 4 ms for a row, and 300 ms for a statement."""
    drain()
    execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.004); RETURN NEW; END $$"
    )
    execute(
        "CREATE TRIGGER dawdle BEFORE INSERT OR UPDATE ON embedsync_ledger"
        " FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    yield
    execute("RESET statement_timeout")
    execute("DROP FUNCTION dawdle CASCADE")


@pytest.mark.parametrize("owed", ["in the inbox", "due"])
def test_a_claim_that_takes_too_long_is_made_smaller(slow, owed, caplog):
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(200)])
    worker = Worker(only=[BookEmbedding])
    worker.start()
    if owed == "due":
        while worker.queue.fold([], 500)[0]:
            pass
        Ledger.objects.update(run_at="2000-01-01T00:00Z")
    execute("SET statement_timeout = '300ms'")
    work(worker)
    until(lambda: work(worker) or BookEmbedding.objects.count() == 200)
    assert "the next is smaller" in caplog.text
    assert worker.intake._share < 200
