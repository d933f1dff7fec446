"""How many bytes of text rows have, which the server knows without reading them."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connections
from django.db.models import (
    BigIntegerField,
    CharField,
    F,
    Func,
    JSONField,
    QuerySet,
    Sum,
    TextField,
)

from embedsync.database import all_rows, given, names_of
from embedsync.declaration import EmbeddingModel, declaration_of, watched_of
from embedsync.path import follow
from embedsync.source import Declaration
from embedsync.sql import statement

SHORT_TEXT = 1000  # characters; columns that hold no more are not measured
COMPRESSED = 100  # PostgreSQL makes a text no smaller than by this factor, roughly


def within(sidecar: type[EmbeddingModel], pks: Sequence[str], using: str, limit: int) -> list[str]:
    """The first of the rows, as many as have ``limit`` bytes of text together; one at least."""
    if len(pks) < 2 or stored_apart(sidecar, using) * COMPRESSED <= limit:
        return list(pks)
    names = names_of(sidecar, using)
    rows = given(all_rows(sidecar, using), names.pk, names.key, pks, names)
    sizes: dict[str, int] = {}
    for query in size_queries(declaration_of(sidecar), rows):
        for pk, *found in query:
            sizes[pk] = sizes.get(pk, 0) + sum(size or 0 for size in found)
    total, fitting = 0, list[str]()
    for pk in pks:
        total += sizes.get(pk, 0)
        if total > limit and fitting:
            break
        fitting.append(pk)
    return fitting


def stored_apart(sidecar: type[EmbeddingModel], using: str) -> float:
    """How many bytes the tables that a text is made of store apart from their rows (TOAST).

    Long texts are stored so; where there are none, no row has to be measured.
    """
    quote = connections[using].ops.quote_name
    tables = [quote(watched.options.db_table) for watched in watched_of(sidecar)]
    with connections[using].cursor() as cursor:
        cursor.execute(statement("stored_apart"), {"tables": tables})
        return float(cursor.fetchone()[0])


def size_queries(declaration: Declaration, rows: "QuerySet[Any]") -> "Iterator[QuerySet[Any, Any]]":
    """Queries of keys and bytes, of the columns that may be long: one, and one a many-valued."""
    single = []
    for name in (*declaration.fields, *declaration.watch):
        path = follow(rows.model._meta, name)
        function = size_function(path.column)
        if function is None or path.rest:
            continue
        size = Func(F(name), function=function, output_field=BigIntegerField())
        if path.many:
            sums = rows.values("embedsync_key").annotate(embedsync_size=Sum(size))
            yield sums.values_list("embedsync_key", "embedsync_size")
        else:
            single.append(size)
    if single:
        yield rows.values_list("embedsync_key", *single)


def size_function(column: Any) -> str | None:
    """What tells how many bytes a column has; None where they are few, or always the same."""
    if isinstance(column, TextField | CharField):
        return None if 0 < (column.max_length or 0) <= SHORT_TEXT else "octet_length"
    return "pg_column_size" if isinstance(column, JSONField) else None
