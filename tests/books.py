"""What the tests that work with books share."""

from contextlib import contextmanager

from django.db import connection

from tests.library.models import Book

BookEmbedding = Book.embedding.model
KEY = "library.bookembedding"


def execute(sql, params=None):
    """Run raw SQL, as an application might."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def sessions():
    """How many connections to this database there are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return cursor.fetchone()[0]


@contextmanager
def renamed(table, name="elsewhere", column=None):
    """A table, or a column of it, under another name: gone, for all who ask for it."""
    if column is None:
        there, back = f"{table} RENAME TO {name}", f"{name} RENAME TO {table}"
    else:
        there, back = (
            f"{table} RENAME {old} TO {new}" for old, new in ((column, name), (name, column))
        )
    execute(f"ALTER TABLE {there}")
    try:
        yield
    finally:
        execute(f"ALTER TABLE {back}")


def attach(name, table, key, event="TRUNCATE"):
    """Make a trigger of ours by hand, with the function of one that is there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT function FROM embedsync_trigger WHERE name LIKE %s", ["%truncate"])
        (function,) = cursor.fetchone()
    execute(
        f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH STATEMENT"
        f" EXECUTE FUNCTION {function}('{key}', '')"
    )


def drop_functions():
    """Drop all functions of triggers, and the triggers with them."""
    execute(
        "DO $$ DECLARE name text; BEGIN"
        " FOR name IN SELECT DISTINCT function FROM embedsync_trigger LOOP"
        " EXECUTE format('DROP FUNCTION %I() CASCADE', name); END LOOP; END $$"
    )


def make_due():
    """Let the time of all retries and leases come."""
    # As workers lock, or this would be one half of a deadlock.
    execute(
        "WITH locked AS (SELECT ctid FROM embedsync_ledger WHERE run_at IS NOT NULL"
        ' ORDER BY sidecar COLLATE "C", source_pk COLLATE "C" FOR UPDATE)'
        " UPDATE embedsync_ledger SET run_at = clock_timestamp()"
        " WHERE ctid = ANY(ARRAY(SELECT ctid FROM locked))"
    )
