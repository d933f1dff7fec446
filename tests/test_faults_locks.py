"""A queue that is locked or gone while an application writes: nobody fails, nobody waits long."""

import contextlib

import pytest
from django.db import connection

from embedsync.models import Inbox, Ledger
from embedsync.sql import statement
from tests.application import (
    LIMIT,
    Application,
    begin,
    compare_all,
    connect,
    is_settled,
    is_waited_for,
    marks,
    settle,
    uncommitted,
)
from tests.books import BookEmbedding, execute, renamed
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = "INSERT INTO library_book (title, body, year, published) VALUES (%s, '', 2000, true)"
LOCK_INBOX = "LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE"

# Rows in hand when their ledger goes cannot be handed back: their lease has to end.
SHORT = {"DJANGO_SETTINGS_MODULE": "tests.short_lease"}


def were_not_captured(application):
    """The warnings that tell so."""
    return [warning for warning in application.warnings if "were not captured" in warning]


@pytest.mark.parametrize("model", [Inbox, Ledger])
@pytest.mark.parametrize(
    "lock",
    ["LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", "ALTER TABLE {} ADD COLUMN n int"],
    ids=["lock", "alter"],
)
def test_a_locked_queue_holds_up_writers_for_a_moment_only(drain, worker_process, model, lock):
    """Fault 34: several writers go on, the worker waits and resumes, and all is put right."""
    drain()
    worker = begin(worker_process)
    with Application(writers=3) as application:
        application.work(10)
        with uncommitted(lock.format(model._meta.db_table)):
            application.work(5)
            until(lambda: is_waited_for(model._meta.db_table))
        application.work(10)
    # Writers have nothing to do with the ledger.
    assert bool(were_not_captured(application)) == (model is Inbox)
    assert len(were_not_captured(application)) == len(application.warnings)
    until(is_settled)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


def test_a_queue_that_is_rewritten_holds_up_nobody(drain, worker_process):
    """Fault 34: VACUUM FULL, CLUSTER and REINDEX, again and again, while all are at work."""
    drain()
    worker = begin(worker_process, **SHORT)
    with Application(writers=3) as application, connect() as owner:
        for _ in range(5):
            application.work(4)
            owner.execute("VACUUM FULL embedsync_inbox, embedsync_ledger")
            owner.execute("CLUSTER embedsync_inbox USING embedsync_inbox_pkey")
            owner.execute("REINDEX TABLE embedsync_inbox")
            owner.execute("REINDEX TABLE embedsync_ledger")
    until(is_settled)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


@contextlib.contextmanager
def dropped(table):
    model = next(model for model in (Inbox, Ledger) if model._meta.db_table == table)
    with connection.schema_editor() as editor:
        editor.delete_model(model)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(model)
        execute(statement("storage"))
        if model is Ledger:
            execute(statement("ledger_row"))


@pytest.mark.parametrize("gone", [renamed, dropped])
@pytest.mark.parametrize("model", [Inbox, Ledger])
def test_a_queue_that_is_gone_fails_no_write(drain, worker_process, gone, model):
    """Fault 34: nothing is captured without an inbox; a comparison finds it all."""
    drain()
    worker = begin(worker_process, **SHORT)
    with Application(writers=3) as application:
        application.work(10)
        with gone(model._meta.db_table):
            application.work(20)
            worker.says("does not exist")
        application.work(10)
    assert bool(were_not_captured(application)) == (model is Inbox)
    compare_all()
    until(is_settled)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_transaction_of_many_statements_waits_for_a_locked_queue_once(drain, end):
    """Fault 57: capture is off for the rest of it, and no rollback takes back the mark."""
    drain()
    before = marks()
    with Application() as application:
        with application.first.transaction(end):
            with uncommitted(LOCK_INBOX):
                for n in range(20):
                    application.execute(INSERT, [f"locked {n}"])
            application.execute(INSERT, ["unlocked again"])
        assert sum(waited for waited, _ in application.waits()) < LIMIT
        assert len(were_not_captured(application)) == len(application.warnings) == 1
        assert marks() == before + 1
        assert not Inbox.objects.exists()
        application.execute(INSERT, ["captured again"])
    assert Inbox.objects.count() == 1
    settle(drain, BookEmbedding)
    assert BookEmbedding.objects.count() == (22 if end == "COMMIT" else 1)


@pytest.mark.parametrize("event", ["change", "comparison"])
def test_a_locked_sidecar_does_not_hold_up_a_truncation(drain, worker_process, event):
    """Fault 34: nor what waits behind it. VACUUM FULL and REINDEX lock a sidecar for long."""
    Book.objects.create(title="A")
    drain()
    begin(worker_process)
    sidecar = BookEmbedding._meta.db_table
    with Application() as application, uncommitted(f"LOCK TABLE {sidecar}"):
        if event == "change":
            application.execute("UPDATE library_book SET title = 'B'")
        else:
            compare_all()
        until(lambda: is_waited_for(sidecar))
        application.execute("SET lock_timeout = '1s'")
        application.execute("TRUNCATE library_book")
    until(is_settled)
    assert_in_step(BookEmbedding)
