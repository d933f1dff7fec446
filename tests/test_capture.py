"""Capture: which statements make which events."""

import uuid

import pytest
from django.contrib.flatpages.models import FlatPage
from django.db import connection, transaction

from embedsync.models import Inbox
from tests.books import execute
from tests.library.models import Book, Letter, Memo, Parcel, Postscript, Ticket

pytestmark = pytest.mark.django_db


def events(key="library.bookembedding"):
    """The inbox in order, as (kind, key), and emptied."""
    found = list(Inbox.objects.filter(sidecar=key).order_by("seq").values_list("kind", "source_pk"))
    Inbox.objects.all().delete()
    return found


@pytest.fixture
def books():
    books = Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in (1, 2, 3)])
    events()
    return books


def test_insert_update_delete():
    book = Book.objects.create(title="A")
    assert events() == [("row", str(book.pk))]
    book.title = "B"
    book.save()
    assert events() == [("row", str(book.pk))]
    pk = book.pk
    book.delete()
    assert events() == [("row", str(pk))]


def test_bulk_statements_make_an_event_a_row(books):
    Book.objects.update(body="new")
    assert sorted(events()) == [("row", "1"), ("row", "2"), ("row", "3")]
    Book.objects.filter(pk__lt=3).delete()
    assert sorted(events()) == [("row", "1"), ("row", "2")]


def test_a_change_of_another_column_makes_none(books):
    Book.objects.update(year=1999)
    assert events() == []


def test_an_update_that_changes_nothing_makes_none(books):
    execute("UPDATE library_book SET title = title, body = body")
    assert events() == []


def test_the_columns_of_the_condition_count(books):
    Book.objects.filter(pk=2).update(published=False)
    assert events() == [("row", "2")]


def test_a_changed_key_gives_the_old_and_the_new_one(books):
    execute("UPDATE library_book SET id = 20 WHERE id = 2")
    assert sorted(events()) == [("row", "2"), ("row", "20")]


def test_swapped_keys_give_both(books):
    execute("ALTER TABLE library_book DROP CONSTRAINT library_book_pkey")
    execute("UPDATE library_book SET id = 3 - id WHERE id IN (1, 2)")
    assert sorted(events()) == [("row", "1"), ("row", "2")]


def test_truncate_gives_one_event(books):
    execute("TRUNCATE library_book")
    assert events() == [("truncate", None)]


def test_copy_of_a_million_rows():
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY library_book (id, title, body, year, published) FROM STDIN") as copy,
    ):
        for n in range(100):
            copy.write(
                "".join(f"{id}\tBook\t\t2000\tt\n" for id in range(n * 10000, (n + 1) * 10000))
            )
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(DISTINCT source_pk), min(source_pk::int), max(source_pk::int)"
            " FROM embedsync_inbox WHERE sidecar = 'library.bookembedding' AND kind = 'row'"
        )
        assert cursor.fetchone() == (1_000_000, 1_000_000, 0, 999_999)


def test_raw_sql_and_upsert(books):
    execute(
        "INSERT INTO library_book (id, title, body, year, published) VALUES"
        " (1, 'changed', '', 1, true), (9, 'new', '', 1, true)"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title"
    )
    assert sorted(events()) == [("row", "1"), ("row", "9")]


def test_merge(books):
    execute(
        "MERGE INTO library_book b"
        " USING (VALUES (1, 'merged'), (3, NULL), (9, 'new')) AS v(id, title) ON b.id = v.id"
        " WHEN MATCHED AND v.title IS NULL THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET title = v.title"
        " WHEN NOT MATCHED THEN INSERT (id, title, body, year, published)"
        " VALUES (v.id, v.title, '', 1, true)"
    )
    assert sorted(events()) == [("row", "1"), ("row", "3"), ("row", "9")]


def test_bulk_update(books):
    for book in books[:2]:
        book.body = f"Body of {book.title}"
    Book.objects.bulk_update(books, ["title", "body"])
    assert sorted(events()) == [("row", "1"), ("row", "2")]


def test_a_data_modifying_with(books):
    execute(
        "WITH gone AS (DELETE FROM library_book WHERE id = 1 RETURNING *)"
        " INSERT INTO library_book SELECT id + 100, title, body, year, published FROM gone"
    )
    assert sorted(events()) == [("row", "1"), ("row", "101")]


def test_rolled_back_changes_make_none(books):
    with transaction.atomic():
        Book.objects.update(title="kept")
        savepoint = transaction.savepoint()
        Book.objects.create(id=9, title="lost")
        transaction.savepoint_rollback(savepoint)
    assert len(events()) == 3


def test_keys_of_other_types():
    parcel = Parcel.objects.create(label="x", id=uuid.UUID(int=7))
    memo = Memo.objects.create(text="m")
    letter = Letter.objects.create(text="l")
    ticket = Ticket.objects.create(code="a'b\"c %s ü", text="x")
    page = FlatPage.objects.create(url="/a/", title="A", content="B")
    assert events("library.parcelembedding") == [("row", str(parcel.pk))]
    for row, key in [(memo, "memo"), (letter, "letter"), (ticket, "ticket"), (page, "flatpage")]:
        row.save()
        type(row).objects.filter(pk=row.pk).delete()
        assert events(f"library.{key}embedding") == [("row", str(row.pk))]


def test_a_cascade_is_the_applications_own():
    letter = Letter.objects.create(text="l")
    Postscript.objects.create(letter=letter)
    events("library.letterembedding")
    pk = letter.pk
    letter.delete()
    assert events("library.letterembedding") == [("row", str(pk))]
    assert not Postscript.objects.exists()


def test_the_pause_switch():
    with transaction.atomic():
        execute("SET LOCAL embedsync.capture = 'off'")
        Book.objects.create(title="A")
        execute("SET LOCAL embedsync.capture = 'on'")
    assert events() == []
    Book.objects.create(title="B")
    assert len(events()) == 1


def test_deleting_asks_nothing_of_the_sidecar(django_assert_num_queries):
    """Deleting a source's row costs what it cost without embedsync."""
    letter = Letter.objects.create(text="l")
    with django_assert_num_queries(2):  # Postscript's cascade and the letter
        letter.delete()


def test_the_application_needs_no_rights_and_no_search_path():
    execute("CREATE ROLE clerk")
    execute("GRANT INSERT ON library_book TO clerk")
    execute("GRANT USAGE ON SCHEMA public TO clerk")
    execute("CREATE TEMP TABLE embedsync_inbox (LIKE public.embedsync_inbox)")
    execute("SET LOCAL search_path = ''")
    execute("SET LOCAL ROLE clerk")
    execute(
        "INSERT INTO public.library_book (id, title, body, year, published)"
        " VALUES (5, 'x', '', 1, true)"
    )
    execute("RESET ROLE")
    execute("RESET search_path")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_temp.embedsync_inbox")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT source_pk FROM public.embedsync_inbox")
        assert cursor.fetchall() == [("5",)]
