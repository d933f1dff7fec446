"""The index: built when the first fill has ended, and what can go wrong with it."""

import pytest
from django.db import connection

from embedsync import indexing
from embedsync.models import SidecarState
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.sync import assert_in_step

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_index_is_built_when_the_first_fill_has_ended(drain):
    def definition():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_get_indexdef('library_bookembedding_hnsw'::regclass)")
            return cursor.fetchone()[0]

    execute('DROP INDEX "library_bookembedding_hnsw"')
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
    assert "WHERE false" in definition()
    Book.objects.create(title="FAIL")
    drain()
    assert "WHERE false" in definition()
    Book.objects.update(title="good")
    drain()
    assert "WHERE" not in definition()
    assert "hnsw" in definition()


def test_an_index_that_cannot_be_built_stops_nothing(drain, caplog):
    execute('DROP INDEX "library_bookembedding_hnsw"')
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
    execute("CREATE TABLE library_bookembedding_hnsw_full ()")
    Book.objects.create(title="A")
    drain()
    assert "the index of library.BookEmbedding was not built" in caplog.text
    assert_in_step(BookEmbedding)
    execute("DROP TABLE library_bookembedding_hnsw_full")
    SidecarState.objects.update(index_until=None)
    drain()
    assert indexing.is_built(BookEmbedding, "default")


def test_a_half_built_index_is_built_anew_and_a_whole_one_used(drain):
    Book.objects.create(title="A")
    drain()
    name = '"library_bookembedding_hnsw"'
    for whole in (True, False):
        execute(f"DROP INDEX {name}")
        with connection.schema_editor() as editor:
            editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
        full = BookEmbedding._meta.indexes[0].clone()
        full.name = "library_bookembedding_hnsw_full"
        with connection.schema_editor(atomic=False) as editor:
            editor.add_index(BookEmbedding, full, concurrently=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 'library_bookembedding_hnsw_full'::regclass::oid")
            before = cursor.fetchone()
            if not whole:
                cursor.execute(
                    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", before
                )
            indexing.build(BookEmbedding, "default")
            cursor.execute("SELECT %s::regclass::oid", [name])
            assert (cursor.fetchone() == before) is whole
        assert indexing.is_built(BookEmbedding, "default")


def test_a_sidecar_without_an_index_is_left_so(drain):
    execute('DROP INDEX "library_bookembedding_hnsw"')
    Book.objects.create(title="A")
    drain()
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('library_bookembedding_hnsw')")
        assert cursor.fetchone() == (None,)
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
