"""What is known of each sidecar: which declaration fills it, and how far its fill has come.

Each function takes the cursor of a worker's transaction.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connections

from embedsync.database import literal_sql
from embedsync.declaration import EmbeddingModel, declaration_of, key_of
from embedsync.sql import statement

# A worker that was not heard of for so long is taken for dead.
ALIVE_SECONDS = 180.0


class SupersededError(Exception):
    """This worker's declaration of a sidecar is not the one to be served."""


def fingerprint_of(sidecar: type[EmbeddingModel], embedder: str) -> str:
    """Changes with whatever decides the vectors; ``embedder`` is the embedder's fingerprint."""
    return f"{declaration_of(sidecar).fingerprint} {embedder}"


def adopt(cursor: Any, sidecar: type[EmbeddingModel], embedder: str) -> None:
    """Serve a sidecar: one never seen is filled, one whose declaration changed is compared.

    Raises ``SupersededError`` where its vectors come from another embedder.
    """
    key, fingerprint = key_of(sidecar), fingerprint_of(sidecar, embedder)
    cursor.execute("INSERT INTO embedsync_sidecar (key) VALUES (%s) ON CONFLICT DO NOTHING", [key])
    cursor.execute(
        "SELECT fingerprint, embedder, former @> to_jsonb(%s::text) FROM embedsync_sidecar"
        " WHERE key = %s FOR UPDATE",
        [fingerprint, key],
    )
    adopted, maker, is_former = cursor.fetchone()
    if adopted == fingerprint:
        return
    if is_former and adopted:
        assert_unserved(cursor, key, adopted)
    table = cursor.db.ops.quote_name(sidecar._meta.db_table)
    assert_dimensions(cursor, sidecar, table)
    has_vectors = f"SELECT EXISTS (SELECT FROM {table})"
    cursor.execute(has_vectors)
    (is_filled,) = cursor.fetchone()
    if maker not in ("", embedder) and not is_filled:
        # A COMPLETE of the former embedder's may be under way, whose vectors nobody sees yet: it
        # has this table, and those that begin later find the new fingerprint.
        cursor.execute("LOCK TABLE embedsync_ledger IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(has_vectors)
        (is_filled,) = cursor.fetchone()
    if maker not in ("", embedder) and is_filled:
        label = sidecar._meta.label
        raise SupersededError(
            f"The vectors of {label} were made by another embedder than the settings now name. If"
            " that was not meant, put MODEL, DIMENSIONS and OPTIONS back. If it was, declare a"
            " second Embedding with the new embedder beside the first, or delete all rows of"
            f" {label} to have them made anew. (There: {maker}. Now: {embedder}.)"
        )
    cursor.execute(
        "UPDATE embedsync_sidecar SET fingerprint = %s, embedder = %s,"
        " former = former - %s::text || to_jsonb(array_remove(ARRAY[fingerprint], '')),"
        # One that nobody has adopted yet: the migration knows whether there is anything to fill.
        " backfill_after = CASE WHEN fingerprint = '' THEN backfill_after END,"
        " backfilled_at = CASE WHEN fingerprint = '' THEN backfilled_at END"
        " WHERE key = %s",
        [fingerprint, embedder, fingerprint, key],
    )


def note_served(cursor: Any, keys: Sequence[str]) -> None:
    """Note that these sidecars are served by a scheduler's worker, which is gone in a minute.

    Only of those that have been served otherwise before, and not more often than once a minute.
    """
    cursor.execute(
        "UPDATE embedsync_sidecar SET served_at = statement_timestamp()"
        " WHERE key = ANY(%s) AND former <> '[]'"
        " AND coalesce(served_at, '-infinity') < statement_timestamp() - interval '1 minute'",
        [list(keys)],
    )


def note_refused(cursor: Any, told: Mapping[str, str]) -> None:
    """Note why no row of a sidecar can be embedded, by key; ``""`` where nothing is wrong.

    For who asks when no worker lives to tell.
    """
    cursor.execute(
        "UPDATE embedsync_sidecar AS s SET refused = told.said"
        " FROM unnest(%s::text[], %s::text[]) AS told(key, said)"
        " WHERE s.key = told.key AND s.refused <> told.said",
        [list(told), list(told.values())],
    )


def assert_unserved(cursor: Any, key: str, adopted: str) -> None:
    """Raise ``SupersededError`` where workers are alive that serve a newer declaration.

    Or where a scheduler's has just done so, which comes and goes.

    A worker with an old one, started by accident, must not take the sidecar back from them. Where
    the old one is meant, as after a deployment that was undone, they end first.
    """
    cursor.execute(
        "SELECT EXISTS (SELECT FROM embedsync_worker WHERE serves ->> %(key)s = %(adopted)s"
        f" AND {statement('heard')} > statement_timestamp() - %(alive)s * interval '1 second')"
        " OR EXISTS (SELECT FROM embedsync_sidecar WHERE key = %(key)s"
        " AND served_at > statement_timestamp() - %(alive)s * interval '1 second')",
        {"key": key, "adopted": adopted, "alive": ALIVE_SECONDS},
    )
    if cursor.fetchone()[0]:
        raise SupersededError(
            f"Other workers serve {key} with a newer declaration, or have until a moment ago:"
            " restart this one with it. If this one is meant, stop those: within some minutes it"
            " begins by itself."
        )


def assert_dimensions(cursor: Any, sidecar: type[EmbeddingModel], table: str) -> None:
    """Raise ``SupersededError`` where the column is not yet, or no longer, what is declared."""
    options: Any = sidecar._meta
    field = options.get_field("vector")
    cursor.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = %s",
        [table, field.column],
    )
    row = cursor.fetchone()
    wanted = field.db_type(cursor.db)
    if row is None or not row[0].endswith(wanted):
        found = "no such column" if row is None else row[0]
        raise SupersededError(
            f"{options.label}.{field.name} is declared as {wanted} and the database has {found}:"
            " run makemigrations and migrate."
        )


def has_table(cursor: Any, sidecars: Iterable[type[EmbeddingModel]]) -> bool:
    """Whether the table of any of them is there."""
    names = [cursor.db.ops.quote_name(sidecar._meta.db_table) for sidecar in sidecars]
    cursor.execute("SELECT count(to_regclass(name)) FROM unnest(%s::text[]) AS t(name)", [names])
    return bool(cursor.fetchone()[0])


def fingerprints(cursor: Any, keys: Sequence[str]) -> dict[str, str]:
    """Under which declarations sidecars are served, by key."""
    cursor.execute("SELECT key, fingerprint FROM embedsync_sidecar WHERE key = ANY(%s)", [keys])
    return dict(cursor.fetchall())


def is_current(key: str, fingerprint: str, found: str | None) -> bool:
    """Whether a sidecar is still served under this declaration; False where it must be adopted.

    Raises ``SupersededError`` where another worker has adopted it under another declaration.
    """
    # A migration that changed the triggers, and a flush, leave the sidecar to whoever comes first.
    if not found:
        return False
    if found != fingerprint:
        raise SupersededError(
            f"A worker with another declaration of {key} has started since:"
            " restart this one with it."
        )
    return True


def heed_missed(cursor: Any, served: Sequence[str]) -> None:
    """Compare all rows again where a trigger has failed since this was last looked at.

    The mark is seen before the transaction that left it has committed. So the comparison waits
    until all that ran when the mark was seen have ended, and until an earlier comparison has.
    """
    cursor.execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM embedsync_missed")
    (missed,) = cursor.fetchone()
    # Looked at first, because an UPDATE of nothing would still cost an idle system its share.
    cursor.execute(
        "SELECT key FROM embedsync_sidecar"
        " WHERE key = ANY(%s) AND (missed <> %s OR missed_seen <> missed)"
        # In the order in which every worker locks, so that two of them cannot deadlock.
        ' ORDER BY key COLLATE "C"',
        [list(served), missed],
    )
    for (key,) in cursor.fetchall():
        # What follows are statements of their own, so that they see the row as it was locked.
        cursor.execute("SELECT FROM embedsync_sidecar WHERE key = %s FOR UPDATE", [key])
        cursor.execute(
            # This transaction's number is above those of all that run; a snapshot's need not be.
            "UPDATE embedsync_sidecar SET missed_seen = %s,"
            " missed_until = pg_current_xact_id()::text::bigint"
            " WHERE key = %s AND missed_seen = missed",
            [missed, key],
        )
        if cursor.rowcount == 0:
            cursor.execute(
                "UPDATE embedsync_sidecar SET missed = missed_seen,"
                " backfill_after = NULL, backfilled_at = NULL"
                " FROM pg_current_snapshot() AS s"
                " WHERE key = %s AND backfilled_at IS NOT NULL"
                " AND (pg_snapshot_xmin(s)::text::bigint >= missed_until"
                # A number that is still to come is another server's: this is a restored database.
                " OR pg_snapshot_xmax(s)::text::bigint <= missed_until)",
                [key],
            )


def refill(cursor: Any, key: str) -> None:
    """Compare all rows of a sidecar from the start."""
    cursor.execute(
        "UPDATE embedsync_sidecar SET backfill_after = NULL, backfilled_at = NULL WHERE key = %s",
        [key],
    )


def unfilled(cursor: Any, served: Sequence[str]) -> list[tuple[str, str | None]]:
    """The sidecars whose fill has not ended, and the last key that each has reached."""
    cursor.execute(
        "SELECT key, backfill_after FROM embedsync_sidecar"
        " WHERE key = ANY(%s) AND backfilled_at IS NULL",
        [list(served)],
    )
    rows: list[tuple[str, str | None]] = cursor.fetchall()
    return rows


def fill_in_hand(cursor: Any, key: str) -> tuple[bool, str | None]:
    """Take a sidecar's fill for this transaction: whether there is one, and its last key."""
    cursor.execute(
        "SELECT backfill_after FROM embedsync_sidecar"
        " WHERE key = %s AND backfilled_at IS NULL FOR UPDATE SKIP LOCKED",
        [key],
    )
    row = cursor.fetchone()
    return (False, None) if row is None else (True, row[0])


def fill_reached(cursor: Any, key: str, last: str | None, *, ended: bool) -> None:
    """Note how far the fill has come."""
    cursor.execute(
        "UPDATE embedsync_sidecar SET backfill_after = coalesce(%s, backfill_after),"
        " backfilled_at = CASE WHEN %s THEN clock_timestamp() END WHERE key = %s",
        [last, ended, key],
    )


def index_is_due(cursor: Any, sidecar: type[EmbeddingModel], seconds: float) -> bool:
    """Whether this worker may build the index now; then no other is told so for ``seconds``.

    Due when all that the fill put into the ledger is done, parked rows aside, there is something to
    index, and nobody is at it: CREATE INDEX holds this kind of lock.
    """
    key = key_of(sidecar)
    table = cursor.db.ops.quote_name(sidecar._meta.db_table)
    cursor.execute(
        "UPDATE embedsync_sidecar SET index_until = clock_timestamp() + %s * interval '1 second'"
        " WHERE key = %s AND backfilled_at IS NOT NULL"
        " AND coalesce(index_until, '-infinity') < clock_timestamp()"
        " AND NOT EXISTS (SELECT FROM embedsync_ledger WHERE sidecar = key"
        " AND run_at IS NOT NULL AND queued_at <= backfilled_at)"
        f" AND EXISTS (SELECT FROM {table})"
        " AND NOT EXISTS (SELECT FROM pg_locks WHERE relation = %s::regclass"
        " AND mode = 'ShareUpdateExclusiveLock'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        [seconds, key, table],
    )
    return bool(cursor.rowcount)


def assert_served(cursor: Any, sidecar: type[EmbeddingModel], embedder: str) -> None:
    """Raise ``SupersededError`` where a sidecar is served under another declaration than this."""
    cursor.execute(
        "SELECT fingerprint, embedder FROM embedsync_sidecar WHERE key = %s", [key_of(sidecar)]
    )
    adopted, maker = cursor.fetchone() or ("", "")
    if adopted in ("", fingerprint_of(sidecar, embedder)):
        return
    label = sidecar._meta.label
    if maker != embedder:
        raise SupersededError(
            f"The vectors of {label} were made by another embedder than the settings now name. If"
            " that was not meant, put MODEL, DIMENSIONS and OPTIONS back. If it was, start a worker"
            f" with these settings, which says what to do. (There: {maker}. Now: {embedder}.)"
        )
    raise SupersededError(
        f"Workers serve {label} under another declaration than this one: deploy the same code"
        " everywhere and restart them."
    )


def sweep_in_hand(cursor: Any, key: str) -> tuple[str | None, dict[str, Any]]:
    """The last key of the sweep in hand, and what it, or else the last one, has found."""
    cursor.execute(
        "SELECT swept_after, swept_found::text FROM embedsync_sidecar WHERE key = %s", [key]
    )
    after, found = cursor.fetchone() or (None, None)
    return after, json.loads(found or "{}")


def sweep_begun(cursor: Any, key: str, found: dict[str, Any]) -> None:
    """Begin a sweep; one in hand ends where it is."""
    cursor.execute(
        "INSERT INTO embedsync_sidecar (key, swept_found) VALUES (%s, %s::jsonb)"
        " ON CONFLICT (key) DO UPDATE SET swept_after = NULL, swept_found = excluded.swept_found",
        [key, json.dumps(found)],
    )


def sweep_reached(
    cursor: Any,
    key: str,
    since: str | None,
    last: str | None,
    found: dict[str, Any],
    *,
    ended: bool,
) -> bool:
    """Note how far a sweep has come; False, and no note, where it is at ``since`` no longer."""
    cursor.execute(
        "UPDATE embedsync_sidecar SET swept_found = %(found)s::jsonb,"
        " swept_after = CASE WHEN NOT %(ended)s THEN %(last)s END,"
        " swept_at = CASE WHEN %(ended)s THEN clock_timestamp() ELSE swept_at END"
        " WHERE key = %(key)s AND swept_after IS NOT DISTINCT FROM %(since)s"
        " AND swept_found ->> 'run' = %(run)s AND NOT (swept_found -> 'finished')::boolean",
        {
            "key": key,
            "since": since,
            "last": last,
            "ended": ended,
            "found": json.dumps(found),
            "run": found["run"],
        },
    )
    return bool(cursor.rowcount)


def by_last_sweep(cursor: Any, keys: Sequence[str]) -> list[str]:
    """Sidecars in turn: those with a sweep in hand, then those whose last is longest ago."""
    cursor.execute(
        "SELECT u.key FROM unnest(%s::text[]) AS u(key)"
        " LEFT JOIN embedsync_sidecar s ON s.key = u.key"
        " ORDER BY s.swept_after IS NULL, s.swept_at NULLS FIRST, u.key",
        [list(keys)],
    )
    return [key for (key,) in cursor.fetchall()]


def forget_dropped(*, using: str, **_: Any) -> None:
    """After a migration: forget the sidecars that no trigger in the database serves any more."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_regclass('embedsync_inbox') IS NOT NULL"
            " AND to_regclass('embedsync_sidecar') IS NOT NULL"
            " AND to_regclass('embedsync_trigger') IS NOT NULL"
        )
        if not cursor.fetchone()[0]:
            return
        cursor.execute(statement("dropped"))
        schema, dropped = cursor.fetchone()
        for key in dropped or []:
            cursor.execute(
                statement("forget").format(schema=schema, key=literal_sql(using, "%s", [key]))
            )
