"""What the database has not, of the tables and columns that a sidecar needs."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections

from embedsync.declaration import EmbeddingModel, key_of, source_of, watched_of

# Columns that a model has and the database has not; and whether it has the table.
MISSING = """
SELECT wanted.source, wanted.name, wanted.attribute, to_regclass(wanted.name) IS NOT NULL
FROM unnest(%s::text[], %s::text[], %s::text[]) AS wanted(source, name, attribute)
WHERE NOT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = to_regclass(wanted.name) AND attname = wanted.attribute)
"""

# Columns of another type than their model has. What it calls its type may be unknown here.
RETYPED = """
SELECT wanted.source, wanted.attribute, format_type(atttypid, NULL), wanted.type
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
    AS wanted(source, name, attribute, type)
JOIN pg_attribute ON attrelid = to_regclass(wanted.name) AND attname = wanted.attribute
WHERE atttypid <> to_regtype(wanted.type)
"""


def schema_errors(using: str, wanted: Sequence[type[EmbeddingModel]]) -> dict[str, str]:
    """What of these sidecars is missing in the database, in words, by sidecar."""
    missing = missing_columns(using, wanted)
    return {
        key_of(sidecar): schema_error(sidecar, missing[key_of(sidecar)])
        for sidecar in wanted
        if key_of(sidecar) in missing
    }


def missing_columns(
    using: str, wanted: Iterable[type[EmbeddingModel]]
) -> dict[str, list[tuple[str, str]]]:
    """By sidecar, what is not in the database of its table and those that it watches.

    Pairs of table and column; the column is ``""`` where the whole table is missing.
    """
    quote = connections[using].ops.quote_name
    names = {
        (key_of(sidecar), quote(table), column): table
        for sidecar in wanted
        for table, column in columns_of(sidecar)
    }
    if not names:
        return {}
    with connections[using].cursor() as cursor:
        cursor.execute(MISSING, [list(part) for part in zip(*names, strict=True)])
        rows = cursor.fetchall()
    found: dict[str, dict[tuple[str, str], None]] = {}
    for key, name, column, is_there in rows:
        pair = (names[key, name, column], column if is_there else "")
        found.setdefault(key, {})[pair] = None
    return {key: list(pairs) for key, pairs in found.items()}


def retyped(using: str, sidecar: type[EmbeddingModel]) -> str:
    """Which columns have another type than their model says, in words; ``""`` where none has.

    No error by itself, since it may have been so for years: it explains one.
    """
    connection = connections[using]
    wanted = {
        (table, connection.ops.quote_name(table), field.column, field.db_type(connection))
        for table, field in fields_of(sidecar)
    }
    with connection.cursor() as cursor:
        cursor.execute(RETYPED, [list(part) for part in zip(*wanted, strict=True)])
        found = sorted(cursor.fetchall())
    listed = [f"column {table}.{name} is {now}, not {then}" for table, name, now, then in found]
    return f"schema error: {', '.join(listed)}" if listed else ""


def columns_of(sidecar: type[EmbeddingModel]) -> Iterable[tuple[str, str]]:
    """The columns that have to be in the database, as pairs of table and column."""
    return ((table, field.column) for table, field in fields_of(sidecar))


def fields_of(sidecar: type[EmbeddingModel]) -> Iterable[tuple[str, Any]]:
    """The fields whose columns have to be in the database, and the tables of these."""
    for field in sidecar._meta.concrete_fields:
        yield sidecar._meta.db_table, field
    for watched in watched_of(sidecar):
        options = watched.options
        for field in {*watched.keys, *options.pk_fields, *watched.columns.values()}:
            yield options.db_table, field


def schema_error(sidecar: type[EmbeddingModel], missing: list[tuple[str, str]]) -> str:
    """What is missing in the database, in words; ``""`` where nothing is."""
    if not missing:
        return ""
    source = source_of(sidecar)._meta.db_table
    listed = [
        f"column {table}.{column} is missing" if column else f"table {table} is missing"
        for table, column in sorted(missing)
    ]
    word = "orphaned" if (source, "") in missing else "schema error"
    return f"{word}: {', '.join(listed)}"
