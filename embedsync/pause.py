"""Pausing capture, for bulk loads whose rows are compared afterwards."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager

logger = logging.getLogger("embedsync")

LATE = (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction)

P = ParamSpec("P")
R = TypeVar("R")


@overload
def paused(using: str = "default") -> "_GeneratorContextManager[None]": ...
@overload
def paused(using: Callable[P, R]) -> Callable[P, R]: ...
def paused(using: Any = "default") -> Any:
    """Keep the changes that this connection makes out of the queue.

    A context manager and a decorator, as Django's ``atomic`` is::

        with embedsync.paused():
            Movie.objects.bulk_create(movies)

    Nothing is queued: rows that change in it keep the vectors they have, or none, until
    ``manage.py embed_sweep --repair`` finds them, which is to be run afterwards. Other connections
    are captured as ever. What was set before is restored at the end, so pauses nest, and a pause
    of the session's own (``SET embedsync.capture = 'off'``) goes on.

    In an open transaction it ends with the transaction at the latest, and never reaches another
    client behind a proxy that pools transactions; behind such a proxy, begin it in a transaction.
    It nests with transactions and savepoints: wholly inside one or wholly around it.
    """
    if any(kind(using) for kind in LATE):
        raise TypeError(
            f"{using.__name__}() returns before its body has run: use paused() inside, with 'with'."
        )
    if callable(using):
        return _paused("default")(using)
    return _paused(using)


@contextmanager
def _paused(using: str) -> Iterator[None]:
    connection: Any = connections[using]
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured(
            f"paused() needs PostgreSQL, and database {using!r} is {connection.display_name}."
        )
    connection.ensure_connection()
    session = connection.connection
    local = not connection.get_autocommit() or status_of(session) != TransactionStatus.IDLE
    with connection.wrap_database_errors:
        (before,) = session.execute("SELECT current_setting('embedsync.capture', true)").fetchone()
    set_capture(connection, session, "off", local=local)
    try:
        yield
    except BaseException:
        # Whatever else is wrong now, the caller is told of what went wrong first.
        with suppress(Error):
            resume(connection, session, before, local=local)
        raise
    else:
        resume(connection, session, before, local=local)


def resume(connection: Any, session: Any, before: str | None, *, local: bool) -> None:
    """Restore what was set before a pause, unless that has ended with its session."""
    if session.closed:
        return
    status = status_of(session)
    if local:
        # A transaction that has failed or ended takes the setting along.
        if status not in (TransactionStatus.INERROR, TransactionStatus.IDLE):
            set_capture(connection, session, before, local=True)
        return
    if status == TransactionStatus.INTRANS:
        logger.warning(
            "paused() began before the transaction in which it ends:"
            " if that is rolled back, this connection stays paused"
        )
    try:
        # Also where Django has given the session back to its pool since.
        set_capture(connection, session, before, local=False)
    except Error as error:
        # Better no session than one whose changes nobody will ever hear of.
        session.close()
        if connection.connection is session:
            connection.close()
        logger.warning("paused() could only end with its connection, which it closed: %s", error)


def set_capture(connection: Any, session: Any, value: str | None, *, local: bool) -> None:
    """Set the switch that the triggers look at, to the transaction's end or the session's."""
    # Past Django's cursor, which refuses all statements after an error that was caught.
    with connection.wrap_database_errors:
        session.execute("SELECT set_config('embedsync.capture', %s, %s)", [value or "", local])


def status_of(session: Any) -> TransactionStatus:
    """Whether a transaction is open in a session, as its driver knows."""
    status: TransactionStatus = session.info.transaction_status
    return status
