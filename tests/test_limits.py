"""Whose fault an error of the database is: a row's, the database's, or another database's."""

import pytest
from django.db import OperationalError

from embedsync.models import Ledger
from embedsync.queue import Queue
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.cinema.models import Country, Person, Portrait
from tests.library.models import Book, Parcel

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("code", ["54000", "54001", "53400"])
def test_a_row_that_runs_into_a_limit_is_alone_to_blame(drain, settings, code):
    """psycopg takes these for failures of the server, as a lack of memory."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    drain()
    execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.source_id = 2 THEN RAISE EXCEPTION 'too long' USING ERRCODE = '{code}'; END IF;"
        " RETURN NEW; END $$"
    )
    execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON library_bookembedding"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    try:
        for n in (1, 2, 3):
            Book.objects.create(id=n, title=f"Book {n}")
        Parcel.objects.create(label="of another sidecar")
        drain()
    finally:
        execute("DROP FUNCTION refuse CASCADE")
    assert set(BookEmbedding.objects.values_list("source_id", flat=True)) == {1, 3}
    assert Parcel.embedding.model.objects.count() == 1
    parked = Ledger.objects.get()
    assert (parked.source_pk, parked.run_at) == ("2", None)
    assert "too long" in parked.last_error


def test_another_database_that_fails_is_no_failure_of_this_one(drain, settings, monkeypatch):
    """It is where a model's method has its text from."""
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    drain()
    said = "another database does not answer"

    def described(portrait):
        if portrait.style == "elsewhere":
            raise OperationalError(said)
        return portrait.style

    monkeypatch.setattr(Portrait, "described", described)
    country = Country.objects.create(name="X")
    person = Person.objects.create(name="P", country=country, active=True)
    for style in ("oil", "elsewhere", "ink"):
        Portrait.objects.create(person=person, style=style)
    drain()
    assert Portrait.embedding.model.objects.count() == 2
    parked = Ledger.objects.get()
    assert parked.run_at is None
    assert said in parked.last_error


def test_a_death_is_told_of_whatever_had_failed_before(drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    drain()
    Book.objects.create(title="a worker dies of it")
    Queue("default", "dead").fold([KEY], 10)
    Ledger.objects.update(last_error="UnavailableError: 503 of last week")
    make_due()
    drain()
    assert Ledger.objects.get().run_at is None
    assert Ledger.objects.get().last_error == "The worker died while it held this row."
