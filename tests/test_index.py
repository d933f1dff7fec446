"""The index: built when the first fill has ended, and what can go wrong with it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import DataError, ProgrammingError, connection

from embedsync import indexing
from embedsync.models import SidecarState
from tests.application import uncommitted
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

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


def test_an_index_may_take_longer_than_statements_of_its_role(drain):
    """Web roles often have a timeout, and a large index takes hours."""
    with connection.schema_editor() as editor:
        editor.remove_index(BookEmbedding, BookEmbedding._meta.indexes[0])
        editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
    Book.objects.create(title="A")
    database = connection.ops.quote_name(connection.settings_dict["NAME"])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write_for_a_while)
        until(is_written_to)
        execute(f"ALTER DATABASE {database} SET statement_timeout = '250ms'")
        try:
            drain()
        finally:
            execute(f"ALTER DATABASE {database} RESET statement_timeout")
    assert indexing.is_built(BookEmbedding, "default")


def test_a_patient_session_is_used_by_nobody_else():
    """Django's pool would hand it on as it is."""

    def timeout():
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            return cursor.fetchone()[0]

    execute("SET statement_timeout = '7s'")
    with indexing.patient("default"):
        assert timeout() == "0"
    assert timeout() == "7s"
    raw = connection.connection
    with pytest.raises(DataError), indexing.patient("default"):
        execute("SELECT 1/0")
    assert raw.closed
    connection.close()


def write_for_a_while():
    """The index waits for what has been written until this ends."""
    lock = "LOCK TABLE library_bookembedding IN ROW EXCLUSIVE MODE"
    with uncommitted(lock, "SELECT pg_sleep(1)"):
        pass


def is_written_to():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE relation = 'library_bookembedding'::regclass"
            " AND mode = 'RowExclusiveLock'"
        )
        return cursor.rowcount > 0


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


def test_an_index_of_another_declaration_is_not_put_in_place(drain):
    """It was built in full for one that has been changed since, or is gone by then."""
    Book.objects.create(title="A")
    drain()
    declared = BookEmbedding._meta.indexes[0]
    old = "CREATE INDEX library_bookembedding_hnsw_full ON library_bookembedding (embedded_at)"
    with connection.schema_editor() as editor:
        editor.remove_index(BookEmbedding, declared)
        editor.add_index(BookEmbedding, declared)
    execute(old)
    indexing.build(BookEmbedding, "default")
    assert indexing.is_built(BookEmbedding, "default")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_indexdef('library_bookembedding_hnsw'::regclass)")
        assert "hnsw" in cursor.fetchone()[0]
    with connection.schema_editor() as editor:
        editor.remove_index(BookEmbedding, declared)
    execute(old)
    with pytest.raises(ProgrammingError, match="declared otherwise"):
        indexing.build(BookEmbedding, "default")
    execute("DROP INDEX library_bookembedding_hnsw_full")
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, declared)


def test_a_sidecar_without_an_index_is_left_so(drain):
    execute('DROP INDEX "library_bookembedding_hnsw"')
    Book.objects.create(title="A")
    drain()
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('library_bookembedding_hnsw')")
        assert cursor.fetchone() == (None,)
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
