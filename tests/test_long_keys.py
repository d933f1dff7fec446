"""Keys that are longer than the ledger's index takes: left out, and in nobody's way."""

import secrets

import pytest

from embedsync.models import Inbox, Ledger, SidecarState
from tests.books import BookEmbedding, execute
from tests.library.models import Book, Ticket

pytestmark = pytest.mark.django_db(transaction=True)

TicketEmbedding = Ticket.embedding.model
KEY = "library.ticketembedding"


@pytest.fixture
def long_key(drain):
    """Of a source whose index just takes it, and whose name is that of no other."""
    drain()
    execute('ALTER TABLE "library tickets" ALTER "Ticket Code" TYPE text')
    yield secrets.token_urlsafe(4000)[:2685]
    execute('TRUNCATE "library tickets"')
    execute('ALTER TABLE "library tickets" ALTER "Ticket Code" TYPE varchar(40)')


def insert(*codes):
    for code in codes:
        execute(
            'INSERT INTO "library tickets" ("Ticket Code", "the text") VALUES (%s, \'T\')', [code]
        )


def test_an_event_of_one_holds_up_no_other(drain, long_key, caplog):
    insert("A 1", long_key)
    Book.objects.create(title="behind it")
    drain()
    assert BookEmbedding.objects.count() == 1
    assert list(TicketEmbedding.objects.values_list("source_id", flat=True)) == ["A 1"]
    assert not Inbox.objects.exists()
    assert f"{KEY}: 1 rows are left out" in caplog.text
    assert "2685 bytes" in caplog.text
    assert long_key not in caplog.text


def test_a_fill_leaves_them_out(drain, long_key, caplog):
    insert("A 1", long_key, "~ 3")
    execute("TRUNCATE embedsync_inbox")
    SidecarState.objects.filter(key=KEY).update(backfilled_at=None, backfill_after=None)
    drain()
    found = set(TicketEmbedding.objects.values_list("source_id", flat=True))
    assert found == {"A 1", "~ 3"}
    assert not Ledger.objects.exists()
    assert "2685 bytes" in caplog.text
