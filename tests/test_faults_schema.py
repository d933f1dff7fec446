"""Columns that change under a worker and an application that goes on writing."""

import signal
from functools import partial
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Q

from embedsync.models import Ledger
from tests.application import Application, begin, connect, is_settled
from tests.books import KEY, BookEmbedding, execute
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

BOOK = "ALTER TABLE library_book "


@pytest.fixture
def default_body(transactional_db):
    """Lets writers leave out the column."""
    execute(BOOK + "ALTER COLUMN body SET DEFAULT ''")
    yield
    execute(BOOK + "ALTER COLUMN body DROP DEFAULT")


@pytest.mark.parametrize(
    ("change", "back", "named", "error", "captured"),
    [
        (
            "DROP COLUMN body",
            "ADD COLUMN body text NOT NULL DEFAULT ''",
            "library_book.body is missing",
            "body does not",
            False,
        ),
        (
            "RENAME COLUMN body TO text",
            "RENAME COLUMN text TO body",
            "library_book.body is missing",
            "body does not",
            False,
        ),
        (
            "ALTER COLUMN published TYPE text",
            "ALTER COLUMN published TYPE boolean USING published::boolean",
            "library_book.published is text, not boolean",
            "must be type boolean",
            True,
        ),
    ],
    ids=["dropped", "renamed", "type changed"],
)
def test_a_column_that_changes_under_a_worker_harms_nobody(
    drain, worker_process, default_body, change, back, named, error, captured
):
    """Fault 32: rows stay owed and are not to blame, the worker stays, the application writes.

    The column is named as long as it is wrong, and a sweep finds what was not captured.
    """
    drain()
    worker = begin(worker_process)
    # A prepared statement would remember the type that a column had.
    unprepared = partial(connect, prepare_threshold=None)
    with Application(writers=3, text=["title"], connect=unprepared) as application:
        try:
            application.work(10)
            application.execute(BOOK + change)
            application.work(20)
            until(lambda: Ledger.objects.filter(last_error__contains=error).exists())
            # A lease counts until it ends.
            returned = Ledger.objects.filter(token=None)
            assert not returned.filter(Q(run_at=None) | Q(attempts__gt=0)).exists()
            until(lambda: f"schema error: column {named}" in told())
        finally:
            application.execute(BOOK + back)
        application.work(10)
    assert any(error in warning for warning in application.warnings) != captured
    assert all("were not captured" in warning for warning in application.warnings)
    # What the worker says of itself is some seconds old.
    until(lambda: call("embed_sweep", "library.Book", "--repair") == (0, ""), every=0.5)
    until(is_settled)
    assert_in_step(BookEmbedding)
    worker.send(signal.SIGTERM)
    status, output = worker.wait()
    assert status == 0, output
    assert error in output
    for trouble in ("the database failed", "Traceback"):
        assert trouble not in output


def call(*command):
    """Run a command; its exit status, and what it printed."""
    output = StringIO()
    try:
        call_command(*command, stdout=output, stderr=output, verbosity=0)
    except (CommandError, SystemExit):
        return 1, output.getvalue()
    return 0, output.getvalue()


def told():
    status, output = call("embed_status", "library.Book")
    return output if status else ""


def test_a_worker_with_nothing_else_to_serve_waits(drain, worker_process, default_body):
    """Or a supervisor would start it again and again."""
    drain()
    worker = worker_process("--only", "library.Book")
    worker.says("serving")
    execute(BOOK + "RENAME COLUMN body TO text")
    try:
        execute("INSERT INTO library_book (title, text, year, published) VALUES ('A', '', 0, true)")
        worker.says("is not served")
    finally:
        execute(BOOK + "RENAME COLUMN text TO body")
    worker.says("is served again")
    until(BookEmbedding.objects.exists)
    assert_in_step(BookEmbedding)
    worker.send(signal.SIGTERM)
    assert worker.wait()[0] == 0


def test_a_worker_whose_only_sidecar_is_gone_ends(drain, worker_process):
    drain()
    worker = worker_process("--only", "library.Book")
    worker.says("serving")
    execute("ALTER TABLE library_bookembedding RENAME TO gone")
    try:
        execute(
            "INSERT INTO embedsync_inbox (sidecar, kind, source_pk) VALUES (%s, 'row', '1')", [KEY]
        )
        status, output = worker.wait()
    finally:
        execute("ALTER TABLE gone RENAME TO library_bookembedding")
    assert status == 1, output
    assert "is not served" in output
