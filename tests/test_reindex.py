"""Worn indexes: when one is due for REINDEX, and the command that builds it anew."""

import io
import json
import threading
import time

import numpy as np
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from embedsync import indexing, wear
from embedsync.index import deferred_index
from embedsync.models import IVFFlat, SidecarState
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.spaces import clusters, fill, thing

pytestmark = pytest.mark.django_db(transaction=True)

VECTORS = clusters(400, np.random.default_rng(5))
NAME = "library_bookembedding_hnsw"


@pytest.fixture
def books(drain, monkeypatch):
    """Twenty books, whose index was built and noted; a change of six makes it due."""
    monkeypatch.setattr(wear, "FEWEST", 5)
    execute(f'DROP INDEX IF EXISTS "{NAME}"')
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, deferred_index(BookEmbedding))
    Book.objects.bulk_create([Book(title=f"Book {number}") for number in range(20)])
    drain()
    flush_statistics()
    execute("UPDATE embedsync_sidecar SET index_built = NULL")
    wear.note_built("default", BookEmbedding)
    yield
    for (name,) in invalid():
        execute(f'DROP INDEX "{name}"')


def flush_statistics():
    """So that the server has counted what this session did."""
    execute("SELECT pg_stat_force_next_flush()")
    execute("SELECT pg_stat_clear_snapshot()")


def change(number):
    """Update so many rows of the sidecar, as a worker does."""
    for row in BookEmbedding.objects.order_by("source_id")[:number]:
        BookEmbedding.objects.filter(pk=row.pk).update(vector=row.vector[::-1])
    flush_statistics()


def status():
    """What ``embed_status`` tells of the books' index."""
    output = io.StringIO()
    call_command("embed_status", "library.Book", json=True, stdout=output)
    return json.loads(output.getvalue())["sidecars"][0]["index"]


def run(*labels, **options):
    output = io.StringIO()
    call_command("embed_reindex", *labels, stdout=output, **options)
    return output.getvalue()


def fail(*labels, **options):
    output = io.StringIO()
    with pytest.raises(CommandError) as error:
        call_command("embed_reindex", *labels, stdout=output, **options)
    return output.getvalue(), str(error.value)


def filenode():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_relation_filenode(%s::regclass)", [NAME])
        return cursor.fetchone()[0]


def invalid():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid WHERE NOT indisvalid"
        )
        return cursor.fetchall()


def break_off(name):
    """Leave an index as one whose building was broken off."""
    execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [name])


class TestStatus:
    def test_an_index_is_due_when_enough_has_changed(self, books):
        assert status() == {"state": "built", "changed": 0.0, "is_due": False}
        change(4)
        assert status() == {"state": "built", "changed": 0.2, "is_due": False}
        change(4)
        assert status() == {"state": "built", "changed": 0.4, "is_due": True}
        output = io.StringIO()
        call_command("embed_status", "library.Book", stdout=output)
        assert (
            "    index due for REINDEX, 40% of its rows have changed since it was built:"
            " manage.py embed_reindex library.bookembedding\n"
        ) in output.getvalue()

    def test_deleted_rows_count_and_new_ones_do_not(self, books, drain):
        Book.objects.bulk_create([Book(title=f"New {number}") for number in range(20)])
        drain()
        flush_statistics()
        assert status()["changed"] == 0
        BookEmbedding.objects.filter(
            pk__in=BookEmbedding.objects.order_by("source_id").values("pk")[:10]
        ).delete()
        flush_statistics()
        assert status() == {"state": "built", "changed": 0.333, "is_due": True}

    def test_a_few_rows_are_never_worth_it(self, books, monkeypatch):
        monkeypatch.setattr(wear, "FEWEST", 1000)
        change(20)
        assert status() == {"state": "built", "changed": 1.0, "is_due": False}

    def test_whoever_builds_it_again_it_begins_anew(self, books, drain):
        change(20)
        assert status()["is_due"]
        execute(f'REINDEX INDEX "{NAME}"')
        assert status() == {"state": "built", "changed": None, "is_due": False}
        drain()  # a worker that has just started notes it
        assert status() == {"state": "built", "changed": 0.0, "is_due": False}

    def test_counters_that_begin_anew(self, books):
        """After a crash, too: what has changed before is forgotten, what changes then counts."""
        change(20)
        run("library.Book")
        execute("SELECT pg_stat_reset_single_table_counters('library_bookembedding'::regclass)")
        flush_statistics()
        assert status()["changed"] == 0
        change(8)
        assert status()["is_due"]

    def test_what_else_there_is_to_tell(self, books):
        break_off(NAME)
        assert status() == {"state": "invalid", "changed": None, "is_due": True}
        execute(f'DROP INDEX "{NAME}"')
        assert status()["state"] == "missing"
        with connection.schema_editor() as editor:
            editor.add_index(BookEmbedding, deferred_index(BookEmbedding))
        assert status() == {"state": "unbuilt", "changed": None, "is_due": False}
        with thing(index=None) as model:
            assert wear.index_status(model.embedding.model, None, None).state == "none"

    def test_rows_that_are_added_wear_ivfflat(self, monkeypatch):
        monkeypatch.setattr(wear, "FEWEST", 5)
        with thing(index=IVFFlat()) as model:
            sidecar = model.embedding.model
            fill(model, VECTORS[:100])
            SidecarState.objects.get_or_create(key=sidecar._meta.label_lower)
            flush_statistics()
            execute("UPDATE embedsync_sidecar SET index_built = NULL")
            wear.note_built("default", sidecar)
            built = SidecarState.objects.get(key=sidecar._meta.label_lower).index_built
            sidecar.objects.bulk_create(
                [
                    sidecar(source_id=1000 + n, digest=b"", vector=vector.tolist())
                    for n, vector in enumerate(VECTORS[:60])
                ]
            )
            flush_statistics()
            (there,) = wear.counted("default", [sidecar]).values()
            assert wear.index_status(sidecar, there, built) == wear.IndexStatus(
                "built", 0.375, is_due=True
            )


class TestCommand:
    def test_what_is_due_is_built_anew(self, books):
        before = filenode()
        assert "is not due" in run("library.Book")
        assert filenode() == before
        change(8)
        assert "built" in run("library.Book")
        assert filenode() != before
        assert status() == {"state": "built", "changed": 0.0, "is_due": False}
        after = filenode()
        assert "built" in run("library.Book", all=True)
        assert filenode() != after

    @pytest.mark.parametrize("changed", [8, 0], ids=["due", "not due"])
    def test_leftovers_are_cleared_away(self, books, changed):
        change(changed)
        names = [f"{NAME}_ccnew", f"{NAME}_ccold1", f"{NAME}_full"]
        others = ["another_ccnew", f"{NAME}_mine"]
        for name in [*names, *others]:
            execute(f'CREATE INDEX "{name}" ON library_bookembedding (embedded_at)')
            execute(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [name]
            )
        run("library.Book")
        assert sorted(name for (name,) in invalid()) == sorted(others)

    def test_a_real_attempt_that_was_broken_off(self, books, environment):
        """REINDEX waits for a transaction with an old snapshot, and is not waited for."""
        change(8)
        with psycopg.connect(environment["DATABASE_URL"]) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM library_bookembedding")
            started = time.monotonic()
            output, why = fail("library.Book", patience=0.5)
            assert time.monotonic() - started < 20
            assert "waited 0.5 s for another transaction" in output
            assert NAME in why
        assert invalid()
        assert status()["is_due"]
        assert "built" in run("library.Book")
        assert not invalid()

    def test_one_that_another_is_building_is_left_alone(self, books, environment):
        change(8)
        with psycopg.connect(environment["DATABASE_URL"]) as other:
            other.execute("LOCK TABLE library_bookembedding IN SHARE UPDATE EXCLUSIVE MODE")
            output, _ = fail("library.Book", patience=0.5)
        assert "waited 0.5 s" in output
        assert status()["is_due"]

    def test_workers_and_searches_go_on(self, books, drain):
        stopping, problems, searches = threading.Event(), [], []

        def search():
            try:
                while not stopping.is_set():
                    searches.append(len(Book.objects.similar("Book 3")[:5]))
            except Exception as problem:
                problems.append(problem)
            finally:
                connection.close()

        thread = threading.Thread(target=search)
        thread.start()
        try:
            for number in range(3):
                Book.objects.update(title=f"Book once more {number}")
                drain()
                assert "built" in run("library.Book", all=True)
        finally:
            stopping.set()
            thread.join()
        assert problems == []
        assert set(searches) == {5}

    def test_a_role_that_may_not(self, books, environment):
        change(8)
        execute("DROP ROLE IF EXISTS reindexer")
        execute("CREATE ROLE reindexer")
        execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reindexer")
        try:
            execute("SET ROLE reindexer")
            output, _ = fail("library.Book")
            assert "must be owner" in output or "permission denied" in output
            assert "run it as the role that owns the table" in output
        finally:
            connection.close()
            execute("DROP OWNED BY reindexer")
            execute("DROP ROLE reindexer")

    def test_the_first_index_for_workers_whose_role_may_not(self, books, monkeypatch, drain):
        execute(f'DROP INDEX "{NAME}"')
        with connection.schema_editor() as editor:
            editor.add_index(BookEmbedding, deferred_index(BookEmbedding))
        SidecarState.objects.update(backfilled_at=None)
        assert "waits for the first fill to end" in run("library.Book")
        monkeypatch.setattr(indexing.IndexBuilder, "see_to", lambda *_: None)
        drain()
        assert "built" in run("library.Book")
        assert status()["state"] == "built"

    def test_as_many_lists_as_the_rows_of_now_want(self):
        with thing(index=IVFFlat()) as model:
            sidecar = model.embedding.model
            fill(model, VECTORS[:100])

            def lists():
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT reloptions[1] FROM pg_class WHERE relname = %s",
                        [deferred_index(sidecar).name],
                    )
                    return cursor.fetchone()[0]

            assert lists() == "lists=10"
            sidecar.objects.bulk_create(
                [
                    sidecar(source_id=1000 + n, digest=b"", vector=vector.tolist())
                    for n, vector in enumerate(VECTORS[:300])
                ]
            )
            run(sidecar._meta.label, all=True)
            assert lists() == "lists=20"

    def test_what_it_cannot_do_is_said(self, books):
        assert "There is no model" in fail("library.Nothing")[1]
        assert "no database 'x'" in fail(database="x")[1]
        execute(f'DROP INDEX "{NAME}"')
        assert "run makemigrations and migrate" in run("library.Book")
        with connection.schema_editor() as editor:
            editor.add_index(BookEmbedding, deferred_index(BookEmbedding))
