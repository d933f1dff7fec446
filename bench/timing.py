"""Time in the database as Django sees it, and a second connection without Django."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg
from django.db.backends.utils import CursorWrapper


class TimedCursors:
    """While entered: adds up the ``seconds`` a Django connection spends in execute and fetch."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.seconds = 0.0

    def __enter__(self) -> Self:
        # On the instance: the methods of its class come back when this one is deleted.
        self.connection.make_cursor = lambda cursor: TimedCursor(cursor, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self.connection.make_cursor


class TimedCursor(CursorWrapper):
    def __init__(self, cursor: Any, times: TimedCursors) -> None:
        super().__init__(cursor, times.connection)
        self.times = times

    def execute(self, sql: Any, params: Any = None) -> Any:
        with self._counted():
            return super().execute(sql, params)

    def fetchmany(self, size: int) -> Any:
        with self._counted():
            return self.cursor.fetchmany(size)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.times.seconds += time.perf_counter() - started


@contextmanager
def copy_of_connection(connection: Any) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection made like Django's: client-side parameters, no prepared statements."""
    parameters = connection.get_connection_params()
    parameters.pop("cursor_factory", None)
    parameters.pop("context", None)
    raw: psycopg.Connection[Any] = psycopg.connect(
        **parameters, autocommit=True, cursor_factory=psycopg.ClientCursor
    )
    try:
        yield raw
    finally:
        raw.close()
