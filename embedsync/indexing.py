"""Building a sidecar's index: when the first fill has ended, beside the empty one, CONCURRENTLY."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from django.db import DatabaseError, InterfaceError, ProgrammingError, connections, transaction

from embedsync import state
from embedsync.database import (
    QUERY_CANCELED,
    is_own_session,
    sqlstate,
    worker_transaction,
)
from embedsync.declaration import EmbeddingModel, key_of
from embedsync.index import deferred_index
from embedsync.sql import statement
from embedsync.wear import note_built

logger = logging.getLogger("embedsync")

TRY_SECONDS = 60.0


class IndexBuilder:
    """Builds the indexes of one worker's sidecars, one after the other.

    In a thread of its own: it may take hours, and changed rows do not wait for it.
    """

    def __init__(self, using: str) -> None:
        self.using = using
        self._built: set[str] = set()
        self._thread: threading.Thread | None = None

    def see_to(self, sidecars: list[type[EmbeddingModel]]) -> None:
        """Begin to build what is due, unless something is being built."""
        if connections[self.using].in_atomic_block:
            return  # a test's: CREATE INDEX CONCURRENTLY would wait for its end, and it for that
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread = None
        for sidecar in sidecars:
            key = key_of(sidecar)
            if key in self._built:
                continue
            if is_built(sidecar, self.using):
                note_built(self.using, sidecar)  # somebody else's, perhaps: of a restored dump
                self._built.add(key)
                continue
            with worker_transaction(self.using) as cursor:
                due = state.index_is_due(cursor, sidecar, TRY_SECONDS)
            if due:
                self._thread = threading.Thread(
                    target=self._build, args=[sidecar], name="embedsync-index", daemon=True
                )
                self._thread.start()
                return

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def wait(self, seconds: float) -> None:
        """Wait at most so long for what is being built."""
        if self._thread is not None:
            self._thread.join(seconds)
            if not self._thread.is_alive():
                self._thread = None

    def _build(self, sidecar: type[EmbeddingModel]) -> None:
        started = time.monotonic()
        try:
            with patient(self.using) if is_own_session(self.using) else nullcontext():
                build(sidecar, self.using)
        except (DatabaseError, InterfaceError) as error:
            cure = (
                ". Behind a pool, run embed_reindex past it"
                if sqlstate(error) == QUERY_CANCELED
                else ""
            )
            logger.error("the index of %s was not built: %s%s", sidecar._meta.label, error, cure)
        else:
            took = time.monotonic() - started
            logger.info("built the index of %s in %.1f s", sidecar._meta.label, took)
        finally:
            connections[self.using].close()


@contextmanager
def patient(using: str, seconds: float | None = None) -> Iterator[None]:
    """Let statements of this session run as long as they need, whatever its role's timeout says.

    ``seconds`` is how long each may wait for others. After an error the session is closed.
    """
    wanted = {"statement_timeout": "0"}
    if seconds is not None:
        wanted["lock_timeout"] = str(round(seconds * 1000))
    with connections[using].cursor() as cursor:
        before: dict[str, Any] = {}
        for name, value in wanted.items():
            cursor.execute("SELECT current_setting(%s)", [name])
            (before[name],) = cursor.fetchone()
            cursor.execute("SELECT set_config(%s, %s, false)", [name, value])
    try:
        yield
    except BaseException:
        # For good: Django's pool would hand it to somebody else as it is.
        connections[using].connection.close()
        raise
    with connections[using].cursor() as cursor:
        for name, value in before.items():
            cursor.execute("SELECT set_config(%s, %s, false)", [name, value])


def is_built(sidecar: type[EmbeddingModel], using: str) -> bool:
    """Whether there is nothing to build: the index is there in full, or was dropped by hand."""
    index = deferred_index(sidecar)
    if index is None:
        return True
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s)"
            " AND pg_get_expr(indpred, indrelid) = 'false')",
            [connections[using].ops.quote_name(index.name)],
        )
        return not cursor.fetchone()[0]


def build(sidecar: type[EmbeddingModel], using: str) -> None:
    """Build the full index beside the empty one, CONCURRENTLY, and put it in its place.

    Needs ownership of the sidecar's table. Raises what PostgreSQL raises. What an earlier attempt
    left behind is dropped where it is unfinished and used where it is whole.
    """
    index = deferred_index(sidecar)
    assert index is not None
    connection = connections[using]
    empty_name, full_name = map(connection.ops.quote_name, (index.name, index.full_name))
    if not is_usable(full_name, empty_name, using):
        full = index.sized(count(sidecar, using))
        full.name = index.full_name
        with transaction.atomic(using), connection.cursor() as cursor:
            # Searches wait behind this lock; better to try again than to make them wait for long.
            cursor.execute("SET LOCAL lock_timeout = '2s'")
            cursor.execute(f"DROP INDEX IF EXISTS {full_name}")
        with connection.schema_editor(atomic=False) as editor:
            editor.add_index(sidecar, full, concurrently=True)  # type: ignore[call-arg]
    with transaction.atomic(using), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '2s'")
        if not is_usable(full_name, empty_name, using):
            raise ProgrammingError(f"{index.name} is declared otherwise by now, or gone.")
        cursor.execute(f"DROP INDEX {empty_name}")
        cursor.execute(f"ALTER INDEX {full_name} RENAME TO {empty_name}")
    note_built(using, sidecar)


def is_usable(full: str, empty: str, using: str) -> bool:
    """Whether an index of this quoted name was built to its end, and is what ``empty`` stands for.

    It may be of a declaration that has been changed since.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(statement("usable_index"), {"full": full, "empty": empty})
        row = cursor.fetchone()
    return row is not None and bool(row[0])


def count(sidecar: type[EmbeddingModel], using: str) -> int:
    """How many vectors there are to index."""
    rows: int = sidecar._base_manager.using(using).values("ordinal").count()
    return rows
