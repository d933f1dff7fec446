"""Roles without rights, paths that lead astray, rows that a worker may not see."""

import signal
from io import StringIO

import pytest
from django.core.management import call_command

from embedsync.models import Inbox, Ledger, SidecarState
from tests.application import Application, compare_all, marks, settle, uncommitted
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.library.models import Book, Memo
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

ROLE = "embedsync_test_role"
INSERT = (
    "INSERT INTO public.library_book (id, title, body, year, published)"
    " VALUES (%s, 'A', '', 2000, true)"
)
# Each of them would change what is captured, if it were called.
HOSTILE = """
CREATE SCHEMA hostile;
GRANT USAGE ON SCHEMA hostile TO public;
CREATE TABLE hostile.embedsync_inbox (LIKE public.embedsync_inbox INCLUDING ALL);
CREATE SEQUENCE hostile.embedsync_missed;
CREATE FUNCTION hostile.current_setting(text, boolean) RETURNS text
    LANGUAGE sql AS $$ SELECT 'on' $$;
CREATE FUNCTION hostile.nothing(text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'SELECT 1' $$;
CREATE OPERATOR hostile.|| (FUNCTION = hostile.nothing, LEFTARG = text, RIGHTARG = text);
CREATE FUNCTION hostile.set_config(text, text, boolean) RETURNS text
    LANGUAGE sql AS $$ SELECT $2 $$;
CREATE FUNCTION hostile.nextval(text) RETURNS bigint
    LANGUAGE sql AS $$ SELECT 0::bigint $$;
CREATE OPERATOR hostile.= (FUNCTION = pg_catalog.int8ne, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR hostile.*<> (
    FUNCTION = pg_catalog.record_image_eq, LEFTARG = record, RIGHTARG = record);
CREATE DOMAIN hostile.text AS pg_catalog.text CHECK (false);
"""


@pytest.fixture
def role(transactional_db):
    """A role with no rights at all."""
    execute(f"DROP ROLE IF EXISTS {ROLE}")
    execute(f"CREATE ROLE {ROLE}")
    yield ROLE
    execute(f"DROP OWNED BY {ROLE}")
    execute(f"DROP ROLE {ROLE}")


@pytest.fixture
def hostile(transactional_db):
    execute(HOSTILE)
    yield
    execute("DROP SCHEMA hostile CASCADE")


@pytest.mark.parametrize("path", ["''", "hostile, pg_catalog, public", "pg_temp, hostile, public"])
def test_capture_needs_no_rights_and_no_search_path(drain, role, hostile, path):
    """Fault 35: all is captured and nothing but embedsync's own is touched."""
    drain()
    before = marks()
    execute(f"GRANT INSERT, UPDATE, DELETE, TRUNCATE ON library_book TO {role}")
    execute(f"GRANT USAGE ON SCHEMA public TO {role}")
    with Application() as application:
        application.execute(f"SET ROLE {role}")
        application.execute(
            "CREATE TEMP TABLE embedsync_inbox (seq serial, sidecar text, kind text)"
        )
        application.execute("CREATE TEMP SEQUENCE embedsync_missed")
        application.execute(f"SET search_path = {path}")
        for key in (1, 2):
            application.execute(INSERT, [key])
        application.execute("UPDATE public.library_book SET year = 1999")
        application.execute("UPDATE public.library_book SET title = 'B'")
        application.execute("DELETE FROM public.library_book")
        application.execute("TRUNCATE public.library_book")
        assert application.warnings == []
        found = list(Inbox.objects.order_by("seq").values_list("kind", "source_pk"))
        assert found == [*[("row", "1"), ("row", "2")] * 3, ("truncate", None)]
        with uncommitted("LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE"):
            application.execute(INSERT, [3])
        assert len(application.warnings) == 1
        assert marks() == before + 1
        application.execute("RESET ROLE")
        for schema in ("pg_temp", "hostile"):
            assert not application.execute(f"TABLE {schema}.embedsync_inbox").fetchall()
    settle(drain, BookEmbedding)
    assert set(stored_vectors(BookEmbedding)) == {3}


@pytest.fixture
def restricted(role, transactional_db):
    """The environment of a worker that may see no book with an odd key."""
    execute(f"GRANT ALL ON SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    execute("CREATE POLICY even ON library_book USING (id % 2 = 0)")
    execute("ALTER TABLE library_book ENABLE ROW LEVEL SECURITY")
    yield {"PGOPTIONS": f"-c role={role}"}
    execute("ALTER TABLE library_book DISABLE ROW LEVEL SECURITY")
    execute("DROP POLICY even ON library_book")


def test_rows_that_a_worker_may_not_see_are_not_taken_for_deleted(
    drain, worker_process, role, restricted
):
    """Fault 56: the worker says that it may not read, and changes nothing."""
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 5)])
    drain()
    with Application() as application:
        application.execute("UPDATE library_book SET title = title || ' again'")
        application.execute(INSERT, [5])
        application.execute("DELETE FROM library_book WHERE id = 4")
        _, output = worker_process("--drain", **restricted).wait()
        assert "row-level security" in output
        assert set(stored_vectors(BookEmbedding)) == {1, 2, 3, 4}
        assert set(Ledger.objects.values_list("attempts", "token")) == {(0, None)}
        assert Ledger.objects.count() == 5
    execute(f"ALTER ROLE {role} BYPASSRLS")
    make_due()
    status, output = worker_process("--drain", **restricted).wait()
    assert status == 0, output
    assert_in_step(BookEmbedding)


def test_a_comparison_of_rows_that_a_worker_may_not_see_removes_nothing(
    drain, worker_process, restricted
):
    """Fault 56: the sidecar is not served, and the worker says why."""
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 5)])
    drain()
    compare_all()
    worker = worker_process(**restricted)
    # In the order of their keys: the books are not the last.
    until(lambda: not SidecarState.objects.exclude(key=KEY).filter(backfilled_at=None).exists())
    worker.send(signal.SIGTERM)
    status, output = worker.wait()
    assert status == 1
    assert f"{KEY} is not served: query would be affected by row-level security" in output
    assert set(stored_vectors(BookEmbedding)) == {1, 2, 3, 4}
    settle(drain, BookEmbedding)


def test_a_sweep_that_may_not_see_all_rows_repairs_nothing(drain, restricted, role):
    """Fault 56."""
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 5)])
    drain()
    said = StringIO()
    execute(f"SET ROLE {role}")
    try:
        with pytest.raises(SystemExit):
            call_command(
                "embed_sweep", "library.Book", "--repair", "--purge", stdout=said, stderr=said
            )
    finally:
        execute("RESET ROLE")
    assert "row-level security" in said.getvalue()
    assert not Inbox.objects.exists()
    assert set(stored_vectors(BookEmbedding)) == {1, 2, 3, 4}


def test_a_drain_serves_the_others_where_one_source_may_not_be_read(
    drain, worker_process, restricted
):
    """Fault 56: one source harms one sidecar."""
    drain()
    compare_all()
    Memo.objects.create(text="readable")
    status, output = worker_process("--drain", **restricted).wait()
    assert status == 1
    assert "Traceback" not in output
    assert "bookembedding is not served" in output
    assert Memo.embedding.model.objects.count() == 1
