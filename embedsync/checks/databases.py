"""Checks that look into the database."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, connections

from embedsync.checks.triggers import wrong_triggers
from embedsync.declaration import EmbeddingModel, key_of, sidecars_in, source_of
from embedsync.operations import MINIMUM, RequireVector

MINIMUM_POSTGRESQL = 160000

# The kind of a table, and whether a unique index tells its rows apart by these columns. That of a
# partitioned table may have those of the partitions in addition.
UNIQUE_KEY = """
WITH source AS (SELECT to_regclass(%s) AS oid, %s::text[] AS columns)
SELECT c.relkind, EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL
        AND (i.indnkeyatts = cardinality(k.numbers) OR c.relkind = 'p')
        AND k.numbers <@ (i.indkey::int2[])[0:i.indnkeyatts - 1]
        AND k.required)
FROM source
JOIN pg_class c ON c.oid = source.oid
CROSS JOIN LATERAL (
    SELECT array_agg(attnum) AS numbers, bool_and(attnotnull) AS required
    FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY(source.columns)
) k
WHERE cardinality(k.numbers) = cardinality(source.columns)
"""


@register(Tags.database)
def check_databases(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """What only the database can tell; run by ``migrate`` and ``check --database``."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        here = sidecars_in(alias)
        if connection.vendor != "postgresql":
            continue
        try:
            if here:
                found += wrong_server(connection)
            wrong = list(wrong_tables(connection, here))
            unfit = [message.obj for message in wrong]
            found += wrong
            found += wrong_triggers(connection, [one for one in here if one not in unfit])
        except DatabaseError as error:
            found.append(
                Warning(
                    f"Database {alias!r} could not be looked at: {error}",
                    hint="Other commands will fail for the same reason.",
                    id="embedsync.W016",
                )
            )
    return found


def wrong_server(connection: Any) -> Iterator[CheckMessage]:
    """PostgreSQL or pgvector missing or too old."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version_num')::int, default_version,"
            " to_regclass('embedsync_inbox') IS NOT NULL"
            " FROM (SELECT 1) AS one"
            " LEFT JOIN pg_available_extensions ON name = 'vector'"
        )
        server, available, migrated = cursor.fetchone()
    if server < MINIMUM_POSTGRESQL:
        yield Error(
            f"Database {connection.alias!r} is PostgreSQL {server // 10000}.",
            hint="embedsync needs PostgreSQL 16 or newer.",
            id="embedsync.E013",
        )
    installed = RequireVector.version(connection)
    if installed is None and available is None:
        yield Error(
            f"The server of database {connection.alias!r} does not have the extension vector.",
            hint="Install pgvector 0.8 or newer on the server: github.com/pgvector/pgvector.",
            id="embedsync.E014",
        )
    elif installed is None and migrated:
        # A dump of one schema leaves it out, and DROP EXTENSION ... CASCADE takes columns along.
        yield Error(
            f"Database {connection.alias!r} has embedsync's tables and no extension vector.",
            hint="Run as a superuser: CREATE EXTENSION vector; then manage.py embed_status, which"
            " names the columns that went with it.",
            id="embedsync.E014",
        )
    elif installed is not None and installed < MINIMUM:
        yield Error(
            f"Database {connection.alias!r} has pgvector {'.'.join(map(str, installed))}.",
            hint="embedsync needs 0.8 or newer. Install it and run: ALTER EXTENSION vector UPDATE;",
            id="embedsync.E014",
        )


def wrong_tables(connection: Any, here: list[type[EmbeddingModel]]) -> Iterator[CheckMessage]:
    """Sources that are no tables, or whose primary key is none in the database."""
    for sidecar in here:
        source = source_of(sidecar)._meta
        columns = [str(field.column) for field in source.pk_fields]
        with connection.cursor() as cursor:
            cursor.execute(UNIQUE_KEY, [connection.ops.quote_name(source.db_table), columns])
            row = cursor.fetchone()
        if row is None:
            continue  # a migration is yet to make the table or the column
        kind, unique = row
        if kind not in ("r", "p") or not unique:
            table, *names = map(connection.ops.quote_name, (source.db_table, *columns))
            key = ", ".join(names)
            what, cure = "has no primary key", f"ALTER TABLE {table} ADD PRIMARY KEY ({key})."
            if kind not in ("r", "p"):
                what, cure = "is no table", "name the model of the table that has the rows."
            yield Error(
                f"{source.db_table}, the source of {key_of(sidecar)}, {what} in database"
                f" {connection.alias!r}.",
                hint=f"embedsync needs a table with a unique key on {', '.join(columns)}: {cure}",
                obj=sidecar,
                id="embedsync.E015",
            )
