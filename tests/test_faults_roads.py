"""Faults 49 and 50: roads into a table that triggers see, or do not, while others write to it."""

import pytest
from django.core.management import call_command

from tests.application import Application, connect, settle
from tests.books import BookEmbedding, execute
from tests.sync import stored_vectors

pytestmark = pytest.mark.django_db(transaction=True)

MANY = 20_000
FIRST = 1_000_000_000  # of keys that no writer has
COLUMNS = "(id, title, body, year, published)"
ROWS = f"SELECT {FIRST} + n, 'row ' || n, '', 2000, true FROM generate_series(1, {MANY}) AS n"
ROADS = {
    "INSERT": f"INSERT INTO library_book {COLUMNS} {ROWS}",
    "INSERT ON CONFLICT": f"INSERT INTO library_book {COLUMNS} {ROWS}"
    " ON CONFLICT (id) DO UPDATE SET title = excluded.title || '!'",
    "MERGE": f"MERGE INTO library_book b USING ({ROWS}) AS g{COLUMNS} ON b.id = g.id"
    " WHEN MATCHED AND mod(b.id, 3) = 0 THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET title = 'merged'"
    f" WHEN NOT MATCHED THEN INSERT {COLUMNS} VALUES (g.id, g.title, '', 2000, true)",
    "DELETE": f"DELETE FROM library_book WHERE id > {FIRST}",
}


def test_statements_of_many_rows_hold_up_nobody(drain):
    drain()
    with Application(writers=3) as application:
        bulk = connect()  # which takes as long as it takes
        for sql in (ROADS["INSERT"], ROADS["INSERT ON CONFLICT"], ROADS["MERGE"], ROADS["DELETE"]):
            bulk.execute(sql)
            application.work(5)
        with bulk.cursor().copy(f"COPY library_book {COLUMNS} FROM STDIN") as copy:
            for n in range(MANY):
                copy.write_row((FIRST + n, f"copied {n}", "", 2000, True))
        application.work(5)
        bulk.close()
    assert application.warnings == []
    execute(f"DELETE FROM library_book WHERE id > {FIRST} + 100")
    settle(drain, BookEmbedding)
    assert len([key for key in stored_vectors(BookEmbedding) if key >= FIRST]) == 101


def replica():
    """A session like those that apply what is replicated, or restore a dump."""
    session = connect()
    session.execute("SET session_replication_role = replica")
    return session


def test_a_replicas_writes_are_found_by_the_sweep(drain):
    drain()
    with Application(writers=3, connect=replica) as application:
        application.work(30)
    assert application.warnings == []
    drain()
    assert stored_vectors(BookEmbedding) == {}
    call_command("embed_sweep", "library.Book", "--repair")
    settle(drain, BookEmbedding)
    assert stored_vectors(BookEmbedding)
