"""Row-level triggers: they make the events that statement triggers make, and harm nobody."""

import json
import random

import pytest
from django.db import connection, transaction

from embedsync.capture import LEVELS
from tests.application import Application, compare_all, settle, uncommitted
from tests.books import KEY, BookEmbedding, execute, renamed
from tests.cinema.models import Film, Genre
from tests.levels import captured, events
from tests.library.models import Book, Hall, Seat, Ticket
from tests.sync import assert_in_step
from tests.test_related import CHANGES, FilmEmbedding, PortraitEmbedding
from tests.test_related import world as world

SeatEmbedding = Seat.embedding.model
TicketEmbedding = Ticket.embedding.model


# One of each kind of link, and of each way in which it may change.
FOLLOWED = [
    "a director is renamed",
    "another director",
    "no director",
    "a genre is renamed",
    "a genre less",
    "a genre is deleted",
    "roles swap films",
    "a review changes its film",
    "a critic comes back",
    "all roles are truncated",
    "a genre gets another key",
]


def one(sql, params=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()


def subtransactions():
    """How many transaction ids the open transaction has used beside its own; up to 64."""
    execute("SELECT pg_stat_clear_snapshot()")
    return one(
        "SELECT (pg_stat_get_backend_subxact(id)).subxact_count"
        " FROM pg_stat_get_backend_idset() AS id"
        " WHERE pg_stat_get_backend_pid(id) = pg_backend_pid()"
    )[0]


def reads_of_long_texts():
    """How many pages have been read so far of what is stored beside the books' table."""
    execute("SELECT pg_stat_force_next_flush()")
    return one(
        "SELECT toast_blks_hit + toast_blks_read FROM pg_statio_user_tables"
        " WHERE relname = 'library_book'"
    )[0]


def copied():
    with connection.cursor() as cursor, cursor.copy("COPY library_book FROM STDIN") as copy:
        for n in range(10, 1010):
            copy.write_row((n, f"Book {n}", "", 2000, True))


def changed_by_a_trigger():
    """The application's own trigger writes a column that the statement does not name."""
    execute(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.title := upper(NEW.title); RETURN NEW; END $$;"
        "CREATE TRIGGER shout BEFORE UPDATE OF year ON library_book"
        " FOR EACH ROW EXECUTE FUNCTION shout()"
    )
    Book.objects.filter(pk=2).update(year=1999)


def rolled_back():
    savepoint = transaction.savepoint()
    Book.objects.update(title="lost")
    transaction.savepoint_rollback(savepoint)
    Book.objects.filter(pk=3).update(title="kept")


def saved_in_bulk():
    books = list(Book.objects.filter(pk__lt=3))
    for book in books:
        book.title += "!"
    Book.objects.bulk_update(books, ["title", "year"])


# What is done to books 1, 2 and 3, and the keys of the events that it makes.
ROADS = {
    "create": (lambda: Book.objects.create(id=9, title="new"), ["9"]),
    "bulk_create": (lambda: Book.objects.bulk_create([Book(id=8), Book(id=9)]), ["8", "9"]),
    "COPY": (copied, sorted(map(str, range(10, 1010)))),
    "upsert": (
        "INSERT INTO library_book VALUES (1, 'changed', '', 1, true), (9, 'new', '', 1, true)"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        ["1", "9"],
    ),
    "upsert of nothing new": (
        "INSERT INTO library_book VALUES (1, 'changed', '', 1, true) ON CONFLICT DO NOTHING",
        [],
    ),
    "upsert of another column": (
        "INSERT INTO library_book VALUES (1, 'x', '', 1, true)"
        " ON CONFLICT (id) DO UPDATE SET year = excluded.year",
        [],
    ),
    "MERGE": (
        "MERGE INTO library_book b USING (VALUES (1), (2), (9)) AS given(id) ON b.id = given.id"
        " WHEN MATCHED AND b.id = 1 THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET title = 'merged'"
        " WHEN NOT MATCHED THEN INSERT VALUES (given.id, 'new', '', 1, true)",
        ["1", "2", "9"],
    ),
    "update": (lambda: Book.objects.update(body="new"), ["1", "2", "3"]),
    "bulk_update": (saved_in_bulk, ["1", "2"]),
    "save": (lambda: Book(id=2, title="changed").save(), ["2"]),
    "save of the same": (lambda: Book.objects.get(pk=2).save(), []),
    "another column": (lambda: Book.objects.update(year=1999), []),
    "the same values": ("UPDATE library_book SET title = title, body = body", []),
    "the condition": (lambda: Book.objects.filter(pk=2).update(published=False), ["2"]),
    "a trigger's change": (changed_by_a_trigger, ["2"]),
    "another key": ("UPDATE library_book SET id = 20 WHERE id = 2", ["2", "20"]),
    "swapped keys": (
        "ALTER TABLE library_book DROP CONSTRAINT library_book_pkey;"
        "UPDATE library_book SET id = 3 - id WHERE id IN (1, 2)",
        ["1", "2"],
    ),
    "several changes of one row": (
        "UPDATE library_book SET title = 'a' WHERE id = 1;"
        "UPDATE library_book SET title = 'b' WHERE id = 1;"
        "DELETE FROM library_book WHERE id = 1",
        ["1"],
    ),
    "delete": (lambda: Book.objects.filter(pk__lt=3).delete(), ["1", "2"]),
    "data-modifying CTE": (
        "WITH gone AS (DELETE FROM library_book WHERE id = 1 RETURNING title)"
        " INSERT INTO library_book SELECT 9, title, '', 1, true FROM gone",
        ["1", "9"],
    ),
    "TRUNCATE": ("TRUNCATE library_book RESTART IDENTITY CASCADE", [None]),
    "rolled back": (rolled_back, ["3"]),
    "paused": (
        "SET LOCAL embedsync.capture = 'off'; UPDATE library_book SET title = 'unseen';"
        "SET LOCAL embedsync.capture = 'on'; UPDATE library_book SET body = 'x' WHERE id = 1",
        ["1"],
    ),
}


@pytest.mark.django_db
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("road", ROADS)
def test_every_road_makes_the_same_events_at_every_level(level, road):
    way, expected = ROADS[road]
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in (1, 2, 3)])
    with captured(level, BookEmbedding):
        events(KEY)
        way() if callable(way) else execute(way)
        assert events(KEY) == expected


@pytest.fixture(scope="class")
def rows_captured(django_db_setup, django_db_blocker):
    sidecars = (FilmEmbedding, PortraitEmbedding, SeatEmbedding, TicketEmbedding)
    with django_db_blocker.unblock(), captured("row", *sidecars):
        yield


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("rows_captured")
class TestInStep:
    @pytest.mark.parametrize("change", FOLLOWED)
    def test_related_rows_are_followed(self, world, drain, change):
        with transaction.atomic():
            CHANGES[change]()
        drain()
        assert_in_step(FilmEmbedding, PortraitEmbedding)

    def test_a_renamed_genre_costs_its_writer_one_event(self, drain):
        genre = Genre.objects.create(name="Drama")
        genre.film_set.set(Film.objects.bulk_create(Film(title=f"Film {n}") for n in range(100)))
        drain()
        Genre.objects.update(name="Tragedy")
        assert events("cinema.filmembedding") == [str(genre.pk)]

    def test_a_key_of_several_columns(self, drain):
        hall = Hall.objects.create(name="Great")
        Seat.objects.create(hall=hall, number='A, "B"', view="Far")
        drain()
        execute("UPDATE library_seat SET number = '[3]'")
        keys = [json.dumps([str(hall.pk), number]) for number in ('A, "B"', "[3]")]
        assert events("library.seatembedding") == keys
        compare_all()
        Hall.objects.update(name="Greatest")
        Seat.objects.create(hall=hall, number="2", view="Near")
        drain()
        assert_in_step(SeatEmbedding)
        Seat.objects.all().delete()
        drain()
        assert not SeatEmbedding.objects.exists()

    def test_odd_names_of_tables_and_columns(self, drain):
        Ticket.objects.create(code="a'b\"c %s {x}", text="first")
        Ticket.objects.update(text="second")
        drain()
        assert_in_step(TicketEmbedding)
        Ticket.objects.all().delete()
        drain()
        assert not TicketEmbedding.objects.exists()


@pytest.mark.django_db(transaction=True)
class TestHarmless:
    @pytest.fixture(autouse=True)
    def books(self, transactional_db):
        with captured("row", BookEmbedding):
            Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 51)])
            yield

    def test_a_locked_inbox_costs_one_wait_a_transaction_and_not_one_a_row(self, drain):
        settle(drain, BookEmbedding)
        with Application() as application, uncommitted("LOCK TABLE embedsync_inbox"):
            with application.first.transaction():
                application.execute("UPDATE library_book SET title = title || '!'")
                for n in range(1, 21):
                    application.execute(f"UPDATE library_book SET body = 'x' WHERE id = {n}")
                application.execute("DELETE FROM library_book WHERE id > 40")
            assert sum(waited for waited, _ in application.waits()) < 0.5
            assert len(application.warnings) == 1
        settle(drain, BookEmbedding)

    def test_a_broken_inbox_fails_no_statement(self, drain):
        settle(drain, BookEmbedding)
        with Application() as application, renamed("embedsync_inbox", column="source_pk"):
            application.execute("UPDATE library_book SET title = title || '!'")
            application.execute("DELETE FROM library_book WHERE id > 40")
            assert len(application.warnings) == 2
        settle(drain, BookEmbedding)

    def test_a_renamed_column_fails_no_statement(self, drain):
        settle(drain, BookEmbedding)
        with Application() as application:
            application.execute("UPDATE library_book SET title = title || '!'")
            with renamed("library_book", "headline", "title"):
                application.execute("UPDATE library_book SET headline = headline || '?'")
            assert len(application.warnings) == 1
        settle(drain, BookEmbedding)

    def test_each_captured_row_costs_one_transaction_id_and_no_other_does(self):
        """The price of errors that become warnings row by row: see docs/operations.md."""
        with transaction.atomic():
            Book.objects.update(year=1999)
            assert subtransactions() == 0
            Book.objects.filter(pk__lte=40).update(title="changed")
            assert subtransactions() == 40
        with captured("statement", BookEmbedding), transaction.atomic():
            Book.objects.filter(pk__lte=40).update(title="changed again")
            assert subtransactions() == 1

    def test_a_long_text_that_stays_is_not_read(self):
        if connection.pg_version < 170000:
            pytest.skip("PostgreSQL 16 cannot tell where a text is stored: it is read and compared")
        Book.objects.filter(pk=1).update(body=random.randbytes(100_000).hex())
        before = reads_of_long_texts()
        Book.objects.filter(pk=1).update(year=1999)
        Book.objects.filter(pk=1).update(title="Another")
        execute("UPDATE library_book SET body = body WHERE id = 1")
        assert reads_of_long_texts() == before
        assert Book.objects.get(pk=1).body
        assert reads_of_long_texts() > before

    def test_the_application_needs_no_rights_and_no_search_path(self):
        with transaction.atomic():
            execute("CREATE ROLE clerk")
            execute("GRANT SELECT, UPDATE ON library_book TO clerk")
            execute("GRANT USAGE, CREATE ON SCHEMA public TO clerk")
            execute("CREATE TEMP TABLE embedsync_inbox (LIKE public.embedsync_inbox)")
            execute("SET LOCAL search_path = ''")
            execute("SET LOCAL ROLE clerk")
            execute("UPDATE public.library_book SET title = 'x' WHERE id = 5")
            with pytest.raises(Exception, match="permission denied for function"):
                execute(
                    "CREATE TABLE public.mine (id int); CREATE TRIGGER mine AFTER INSERT"
                    " ON public.mine FOR EACH ROW EXECUTE FUNCTION public."
                    + function_of("library_bookembedding_sync_insert")
                    + "('library.bookembedding', '')"
                )
            transaction.set_rollback(True)


def function_of(trigger):
    (name,) = one(
        "SELECT proname FROM pg_catalog.pg_trigger JOIN pg_catalog.pg_proc p ON p.oid = tgfoid"
        " WHERE tgname = %s",
        [trigger],
    )
    return name
