"""What the database has not, of the tables and columns that a sidecar needs."""

from collections.abc import Iterable, Sequence

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


def columns_of(sidecar: type[EmbeddingModel]) -> Iterable[tuple[str, str]]:
    """The columns that have to be in the database, as pairs of table and column."""
    for field in sidecar._meta.concrete_fields:
        yield sidecar._meta.db_table, str(field.column)
    for watched in watched_of(sidecar):
        options = watched.options
        for column in {*watched.keys, *options.pk_fields, *watched.columns.values()}:
            yield options.db_table, column.column


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
