"""The application of the fault tests sees the harm that it is there to see."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from tests.application import LIMIT, Application, uncommitted
from tests.library.models import Book
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_statement_that_waits_is_seen():
    application = Application(writers=2)
    with pytest.raises(AssertionError, match=r"^([1-9]\d*\.\d|0\.[6-9])\d s for "), application:
        lock_books_for_a_while(application)


def lock_books_for_a_while(application):
    application.work(10)
    with uncommitted("LOCK TABLE library_book IN ACCESS EXCLUSIVE MODE") as other:
        other.execute("SELECT pg_sleep(0.7)")


def test_a_statement_that_fails_is_seen():
    Book.objects.create(id=1_000_030, title="in the way")
    application = Application(writers=2)
    with pytest.raises(AssertionError, match="UniqueViolation"), application:
        application.work(100)


def test_a_busy_machine_is_no_harm():
    """Nothing but this thread runs for a while, the control included."""
    with Application() as application, ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(application.execute, "SELECT pg_sleep(0.1)")
        until(lambda: is_running("SELECT pg_sleep(0.1)"))
        ctypes.PyDLL(None).usleep(int(2 * LIMIT * 1_000_000))
        sleeping.result()
        [made] = application.made
        assert made.ended - made.began > LIMIT


def is_running(sql):
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_stat_activity WHERE query = %s AND state = 'active'", [sql])
        return cursor.rowcount > 0
