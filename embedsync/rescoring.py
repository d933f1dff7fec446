"""A search through bits: many candidates by the signs of their vectors, then the full distance.

One query: the candidates, filters and all, are a sub-select that an index of bits serves; around it
they are put in order by the distance between full vectors.
"""

from typing import Any

from django.db import models
from django.db.backends.postgresql.compiler import SQLCompiler
from django.db.models.expressions import ColPairs
from django.db.models.sql import Query

from embedsync.declaration import EmbeddingModel
from embedsync.expressions import QueryVector, SearchDistance
from embedsync.index import quantized_sql
from embedsync.scan import candidates

DISTANCE = "embedsync_distance"


class QuantizedVector(QueryVector):
    """The signs of the vector that is searched for."""

    def in_form(self, vector_sql: str) -> str:
        return quantized_sql(vector_sql, self.output_field.dimensions)


class Quantized(models.Func):
    """The signs of a sidecar's vectors, as the index has them."""

    def as_sql(self, compiler: SQLCompiler, connection: Any, *_: Any, **__: Any) -> Any:
        (column,) = self.get_source_expressions()
        sql, parameters = compiler.compile(column)
        return quantized_sql(sql, column.output_field.dimensions), parameters


class BitDistance(models.Func):
    """The Hamming distance: in how many components signs differ."""

    function = ""
    arg_joiner = " <~> "
    output_field = models.FloatField()


class RescoredDistance(SearchDistance):
    """The distance between full vectors, where the index has their signs only."""

    def by_bits(self) -> BitDistance:
        """What the candidates are chosen by."""
        column, query = self.get_source_expressions()
        quantized = QuantizedVector(query.query, query.sidecar, exact=False)
        quantized.memo = query.memo
        return BitDistance(Quantized(column), quantized)


class CandidateCompiler(SQLCompiler):
    """Selects, beside all else, what the candidates are put in order by."""

    def get_extra_select(self, order_by: Any, select: Any) -> Any:
        query: Any = self.query
        distance, alias = query.annotations[query.distance_name], query.get_initial_alias()
        columns = [field.get_col(alias) for field in query.model._meta.pk_fields]
        names = [DISTANCE, *(f"embedsync_key{number}" for number, _ in enumerate(columns))]
        return [
            (part, self.compile(part), name)
            for part, name in zip([distance, *columns], names, strict=True)
        ]


def is_rescored(query: Any) -> bool:
    """Whether this is a plain page of nearest rows; whatever else is asked is computed exactly."""
    name = query.distance_name
    return (
        isinstance(query.annotations.get(name), RescoredDistance)
        # Of passages, a row's nearest one is found by full distances.
        and "passage" not in query.annotations
        and not issubclass(query.model, EmbeddingModel)
        and query.uses_index
        and query.order_by in ((name,), (name, "pk"))
        and query.group_by is None
        and not (query.distinct or query.select_for_update)
        # A key of several columns, asked for as one value, has no name that could be asked for.
        and not any(isinstance(column, ColPairs) for column in query.select)
        and query.low_mark < query.high_mark
    )


def rescored_sql(compiler: Any) -> tuple[str, tuple[Any, ...]]:
    """The SQL of such a page, and its parameters; ``compiler`` is the page's."""
    query, connection = compiler.query, compiler.connection
    before = query.alias_refcount.copy()
    try:
        compiler.setup_query()  # the columns, for whoever reads the rows
        compiler.has_extra_select = False
    finally:
        query.reset_refcounts(before)
    inner: Any = query.unbounded().chain(klass=Query)
    inner.explain_info, inner.subquery, inner.scan_end = None, False, None
    inner.clear_ordering(force=True)
    inner.add_ordering(inner.annotations[query.distance_name].by_bits())
    inner.clear_limits()
    inner.set_limits(0, candidates(query.scan_end or query.high_mark))
    chosen = CandidateCompiler(inner, connection, compiler.using, compiler.elide_empty)
    sql, parameters = chosen.as_sql(with_col_aliases=True)
    quote = connection.ops.quote_name
    columns = ", ".join(quote(alias) for *_, alias in chosen.select)
    keys = (f"embedsync_key{number}" for number, _ in enumerate(query.model._meta.pk_fields))
    # Outside, because the index of bits would walk on for candidates that are within.
    bounds = [f"{DISTANCE} {bound.get_rhs_op(connection, '%s')}" for bound in query.bounds]
    parts = [
        f"SELECT {columns} FROM ({sql}) AS embedsync_candidates",
        f"WHERE {' AND '.join(bounds)}" if bounds else "",
        f"ORDER BY {', '.join([DISTANCE, *keys])}",
        connection.ops.limit_offset_sql(query.low_mark, query.high_mark),
    ]
    if query.explain_info:
        asked = query.explain_info
        parts.insert(0, connection.ops.explain_query_prefix(asked.format, **asked.options))
    return " ".join(filter(None, parts)), (*parameters, *(bound.rhs for bound in query.bounds))
