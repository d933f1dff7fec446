"""``embedsync.paused()``: whose changes it keeps out of the queue, and until when."""

import threading
from contextlib import closing, nullcontext

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connection, connections, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from django.utils.connection import ConnectionDoesNotExist

import embedsync
from embedsync.models import Inbox
from tests.books import KEY, execute
from tests.library.models import Book

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def empty_inbox(transactional_db):
    """The database was emptied by TRUNCATE, which is an event too."""
    events()


def events():
    """The keys of the books in the inbox, which is emptied; None stands for a truncation."""
    found = list(Inbox.objects.filter(sidecar=KEY).values_list("source_pk", flat=True))
    Inbox.objects.all().delete()
    return found


def setting():
    """What the triggers look at."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('embedsync.capture', true)")
        return cursor.fetchone()[0] or ""


def is_captured(pk=99):
    """Whether a change that this connection makes now is queued."""
    events()
    Book.objects.create(pk=pk, title="Now")
    return events() == [str(pk)]


def terminate(session):
    """What an administrator or a restart does to a session."""
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [session.info.backend_pid])


around = pytest.mark.parametrize("around", [nullcontext, transaction.atomic])


def load_by_every_road():
    Book.objects.bulk_create([Book(pk=pk, title=f"Book {pk}") for pk in (1, 2, 3)])
    Book.objects.update(title="Another")
    Book.objects.filter(pk=2).update(id=20)
    Book.objects.filter(pk=3).delete()
    execute(
        "INSERT INTO library_book (id, title, body, year, published) VALUES (1, 'A', '', 1, true)"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title"
    )
    execute("TRUNCATE library_book CASCADE")
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY library_book (title, body, year, published) FROM STDIN") as copy,
    ):
        for n in range(1000):
            copy.write_row((f"Book {n}", "", 2000, True))


@around
def test_a_pause_keeps_every_kind_of_change_out_of_the_queue(around):
    with around():
        with embedsync.paused():
            load_by_every_road()
        assert events() == []
        assert is_captured(5000)


@around
def test_other_connections_are_captured_as_ever(around):
    with (
        closing(connection.copy()) as other,
        around(),
        embedsync.paused(),
        other.cursor() as cursor,
    ):
        cursor.execute(
            "INSERT INTO library_book (id, title, body, year, published)"
            " VALUES (7, 'Theirs', '', 1, true)"
        )
        Book.objects.create(pk=8, title="Ours")
    assert events() == ["7"]


@around
def test_pauses_nest(around):
    with embedsync.paused(), around():
        with embedsync.paused():
            pass
        Book.objects.create(pk=1, title="A")
        with embedsync.paused(), transaction.atomic(), embedsync.paused():
            pass
        Book.objects.create(pk=2, title="B")
    assert events() == []
    assert is_captured()


@around
@pytest.mark.parametrize("value", ["off", "on"])
def test_what_the_session_has_set_itself_is_kept(around, value):
    execute(f"SET embedsync.capture = '{value}'")
    with around():
        with embedsync.paused():
            assert setting() == "off"
        assert setting() == value
    assert setting() == value
    assert is_captured() == (value == "on")
    connection.close()


def test_what_the_transaction_has_set_itself_is_kept():
    with transaction.atomic():
        execute("SET LOCAL embedsync.capture = 'off'")
        with embedsync.paused():
            pass
        Book.objects.create(pk=1, title="A")
    assert events() == []
    assert is_captured()


def test_a_pause_in_a_transaction_never_outlives_it():
    """Behind a proxy that pools transactions the session is another client's by then."""
    pause = embedsync.paused()
    with transaction.atomic():
        pause.__enter__()
    assert setting() == ""
    pause.__exit__(None, None, None)
    assert is_captured()


@pytest.mark.parametrize("ended", [transaction.commit, transaction.rollback])
def test_without_autocommit_a_pause_ends_with_the_transaction(ended):
    transaction.set_autocommit(False)
    try:
        with embedsync.paused():
            Book.objects.create(pk=1, title="A")
            ended()
            assert setting() == ""
            transaction.rollback()
        assert connection.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    finally:
        transaction.set_autocommit(True)
    assert events() == []
    assert is_captured()


def test_a_transaction_that_django_does_not_know_of_is_one_too():
    execute("BEGIN")
    with embedsync.paused():
        Book.objects.create(pk=1, title="A")
        execute("COMMIT")
        assert setting() == ""
    assert events() == []


def test_rolled_back_savepoints_leave_a_pause_as_it_is():
    with transaction.atomic(), embedsync.paused():
        with pytest.raises(IntegrityError), transaction.atomic():
            Book.objects.create(pk=1, title=None)
        Book.objects.create(pk=2, title="B")
    assert events() == []
    with transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic(), embedsync.paused():
            Book.objects.create(pk=3, title=None)
        assert is_captured()
    assert is_captured(100)


def test_a_rolled_back_transaction_leaves_the_pause_around_it_as_it_is():
    with embedsync.paused():
        with pytest.raises(IntegrityError), transaction.atomic():
            Book.objects.create(pk=1, title=None)
        Book.objects.create(pk=2, title="B")
    assert events() == []
    assert is_captured()


@around
@pytest.mark.parametrize("error", [IntegrityError, KeyboardInterrupt])
def test_the_callers_error_comes_through_and_ends_the_pause(around, error):
    @embedsync.paused
    def load():
        if error is IntegrityError:
            Book.objects.create(pk=1, title=None)
        raise error

    with pytest.raises(error), around():
        load()
    assert is_captured()


def test_an_error_that_was_caught_does_not_make_the_pause_fail():
    """Django refuses all statements until the transaction's end; PostgreSQL may or may not."""
    with transaction.atomic():
        with embedsync.paused(), pytest.raises(IntegrityError):
            Book.objects.create(pk=1, title=None)
        transaction.set_rollback(True)
    with transaction.atomic():
        with embedsync.paused():
            transaction.set_rollback(True)
        transaction.set_rollback(False)
        assert is_captured()


def test_a_broken_transaction_begins_no_pause():
    with transaction.atomic():
        with pytest.raises(IntegrityError):
            Book.objects.create(pk=1, title=None)
        with pytest.raises(transaction.DatabaseError, match="transaction is aborted"):
            embedsync.paused().__enter__()
        transaction.set_rollback(True)


@around
@pytest.mark.parametrize("reopened", [True, False])
def test_a_connection_closed_in_between_ends_the_pause(around, reopened):
    with around(), embedsync.paused():
        connection.close()
        if reopened and around is nullcontext:
            execute("SET embedsync.capture = 'mine'")
    if reopened and around is nullcontext:
        assert setting() == "mine"
    assert is_captured()
    connection.close()


@around
def test_a_session_that_the_server_ended_does_not_hide_the_callers_error(around):
    @embedsync.paused
    def load():
        terminate(connection.connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), around():
        load()
    connection.close()
    assert is_captured()


def test_outside_a_transaction_a_session_that_the_server_ended_is_no_error():
    """All that was written has been committed by then."""
    with embedsync.paused():
        Book.objects.create(pk=1, title="A")
        terminate(connection.connection)
    assert events() == []
    assert is_captured()


def test_in_a_transaction_a_session_that_the_server_ended_is_an_error():
    @embedsync.paused
    def load():
        Book.objects.create(pk=1, title="A")
        terminate(connection.connection)

    with pytest.raises(transaction.DatabaseError), transaction.atomic():
        load()
    connection.close()
    assert not Book.objects.exists()


def test_a_session_that_cannot_be_restored_is_given_up(caplog):
    """It began outside and ends in a broken transaction: nothing would capture its changes."""
    with embedsync.paused():
        execute("BEGIN")
        with pytest.raises(IntegrityError):
            Book.objects.create(pk=1, title=None)
    assert "could only end with its connection" in caplog.text
    assert is_captured()


def test_a_pause_that_ends_in_a_later_transaction_says_so(caplog):
    with embedsync.paused():
        execute("BEGIN")
    assert "stays paused" in caplog.text
    execute("COMMIT")
    assert is_captured()


def test_as_a_decorator():
    @embedsync.paused
    def bare(pk):
        """Load one."""
        Book.objects.create(pk=pk, title="A")
        if pk > 1:
            bare(pk - 1)
            Book.objects.update(title=f"Book {pk}")
        return pk

    @embedsync.paused()
    def called():
        raise ZeroDivisionError

    assert bare(3) == 3
    assert (bare.__name__, bare.__doc__) == ("bare", "Load one.")
    assert events() == []
    with pytest.raises(ZeroDivisionError):
        called()
    assert is_captured()


def test_a_decorated_function_pauses_the_thread_that_calls_it():
    """One goes in, the other comes out first: each has its own connection to restore."""
    inside, outside = threading.Event(), threading.Event()

    @embedsync.paused
    def load(pk):
        if pk == 1:
            inside.set()
            assert outside.wait(30)
        Book.objects.create(pk=pk, title="A")

    def in_a_thread():
        try:
            load(1)
            found.append(is_captured(11))
        finally:
            connections.close_all()

    found = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    assert inside.wait(30)
    load(2)
    assert is_captured(12)
    outside.set()
    thread.join()
    assert found == [True]


def loading_view(request):
    with embedsync.paused():
        Book.objects.create(pk=1, title="A")
        if request.GET:
            Book.objects.create(pk=2, title=None)
    return HttpResponse(setting() or "captured")


urlpatterns = [path("", loading_view)]


@pytest.mark.parametrize("atomic", [True, False])
def test_in_a_view(settings, monkeypatch, atomic):
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic)
    client = Client(raise_request_exception=False)
    assert client.get("/", {"wrong": 1}).status_code == 500
    assert Book.objects.count() == (0 if atomic else 1)
    assert is_captured()
    Book.objects.all().delete()
    events()
    assert client.get("/").content == b"captured"
    assert events() == []
    assert is_captured()


def test_an_unknown_alias_is_refused():
    with pytest.raises(ConnectionDoesNotExist, match="'elsewhere'"), embedsync.paused("elsewhere"):
        pass


def test_another_database_than_postgresql_is_refused(monkeypatch):
    lite = SQLite({"NAME": ":memory:"}, alias="lite")
    monkeypatch.setattr(connections._connections, "lite", lite, raising=False)
    with (
        pytest.raises(
            ImproperlyConfigured, match="needs PostgreSQL, and database 'lite' is SQLite"
        ),
        embedsync.paused(using="lite"),
    ):
        pass
