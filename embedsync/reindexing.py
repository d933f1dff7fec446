"""Building an index of vectors anew, CONCURRENTLY: searches and workers go on meanwhile."""

import time
from dataclasses import dataclass

from django.db import DatabaseError, connections, transaction

from embedsync.database import LOCK_NOT_AVAILABLE, sqlstate
from embedsync.declaration import EmbeddingModel, key_of
from embedsync.index import DeferredIvfflatIndex, deferred_index
from embedsync.indexing import build, count, is_built, patient
from embedsync.models import SidecarState
from embedsync.sql import statement
from embedsync.wear import counted, index_status, note_built

INSUFFICIENT_PRIVILEGE = "42501"


@dataclass(frozen=True)
class Reindexed:
    """What became of one index: sizes in bytes before and after, and seconds; or why nothing."""

    sidecar: str
    index: str
    said: str
    before: int = 0
    after: int = 0
    seconds: float = 0.0
    is_failure: bool = False


def reindex(
    using: str, sidecar: type[EmbeddingModel], *, every: bool, patience: float
) -> Reindexed:
    """Build a sidecar's index anew if it is due, or if ``every`` one is to be.

    It waits ``patience`` seconds for locks, and for transactions that began before it. One that no
    worker could build is built.
    """
    key, index = key_of(sidecar), deferred_index(sidecar)
    if index is None:
        return Reindexed(key, "", "none is declared")
    state = SidecarState.objects.using(using).filter(key=key).first()
    found = counted(using, [sidecar]).get(key)
    status = index_status(sidecar, found, state and state.index_built)
    if status.state == "missing":
        return Reindexed(key, index.name, "is not there: run makemigrations and migrate")
    is_filled = state is not None and state.backfilled_at is not None
    if status.state == "unbuilt" and not is_filled:
        return Reindexed(key, index.name, "waits for the first fill to end")
    wanted = every or status.is_due or status.state == "unbuilt"
    before, started = found.size if found else 0, time.monotonic()
    try:
        with patient(using, patience):
            drop_leftovers(using, sidecar)
            if not wanted:
                return Reindexed(key, index.name, "is not due")
            if status.state != "unbuilt":
                rebuild(using, sidecar)
            elif not is_built(sidecar, using):  # by a worker, while this waited
                build(sidecar, using)
    except DatabaseError as error:
        connections[using].close()
        return Reindexed(key, index.name, why(error, patience), is_failure=True)
    took = time.monotonic() - started
    note_built(using, sidecar)
    now = counted(using, [sidecar]).get(key)
    return Reindexed(key, index.name, "built", before, now.size if now else 0, took)


def rebuild(using: str, sidecar: type[EmbeddingModel]) -> None:
    """REINDEX; with as many lists as the rows of now want, where nobody has said how many."""
    connection, index = connections[using], deferred_index(sidecar)
    assert index is not None
    name = connection.ops.quote_name(index.name)
    with connection.cursor() as cursor:
        if isinstance(index, DeferredIvfflatIndex) and index.lists is None:
            lists = index.sized(count(sidecar, using)).lists
            cursor.execute(f"ALTER INDEX {name} SET (lists = {lists})")
        cursor.execute(f"REINDEX INDEX CONCURRENTLY {name}")


def drop_leftovers(using: str, sidecar: type[EmbeddingModel]) -> None:
    """Drop what attempts that were broken off have left: unfinished indexes, which cost writes.

    Under a lock that no attempt that goes on lets anybody have.
    """
    connection, index = connections[using], deferred_index(sidecar)
    assert index is not None
    quote = connection.ops.quote_name
    table = quote(sidecar._meta.db_table)
    names = {"table": table, "name": index.name, "full": index.full_name}
    with connection.cursor() as cursor:
        cursor.execute(statement("index_leftovers"), names)
        if not cursor.fetchall():
            return
    with transaction.atomic(using), connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        cursor.execute(statement("index_leftovers"), names)
        leftovers = [name for (name,) in cursor.fetchall()]
        # Searches wait behind this lock.
        cursor.execute("SET LOCAL lock_timeout = '2s'")
        for name in leftovers:
            cursor.execute(f"DROP INDEX {name}")


def why(error: DatabaseError, patience: float) -> str:
    """Why an index was not built, and what to do about it."""
    first = str(error).strip().partition("\n")[0]
    if sqlstate(error) == INSUFFICIENT_PRIVILEGE:
        return f"{first}: run it as the role that owns the table"
    if sqlstate(error) == LOCK_NOT_AVAILABLE:
        return (
            f"waited {patience:g} s for another transaction: run it again later, or with a longer"
            " --patience"
        )
    return first
