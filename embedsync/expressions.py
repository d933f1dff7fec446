"""The expressions of a search: the vector that is searched for, the distance, the passage."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from django.apps import apps
from django.db import models
from django.db.models.sql.compiler import SQLCompiler
from django.utils.functional import Promise
from pgvector.django import HalfVectorField

from embedsync.declaration import (
    EmbeddingModel,
    all_passages,
    declaration_of,
    key_of,
    key_of_row,
)
from embedsync.embedders import Embedder, get_embedder, query_vector
from embedsync.scan import settings_sql
from embedsync.space import OPERATORS, fitted
from embedsync.sql import statement


class QueryVector(models.Expression):
    """The vector that is searched for; a text is embedded when the SQL is made, and only once."""

    output_field: Any

    def __init__(self, query: Any, sidecar: type[EmbeddingModel], exact: bool) -> None:
        self.query = query
        # An instance that is deleted later can no longer be compared.
        is_row = isinstance(query, models.Model)
        self.searched = (query._meta.label, query.pk) if is_row else query
        self.label = sidecar._meta.label  # not the class: a queryset can be pickled
        self.exact = exact
        # Shared by all copies of this expression, so that a count and a page embed once: the
        # vector, then its literal.
        self.memo: list[Any] = []
        super().__init__(output_field=vector_field(sidecar))

    def __getstate__(self) -> dict[str, Any]:
        # Whoever takes it out of a pickle may have another embedder by then.
        state: Any = super().__getstate__()
        return {**state, "memo": []}

    def __copy__(self) -> "QueryVector":
        again = object.__new__(type(self))
        vars(again).update(vars(self))
        return again

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What Django compares and hashes; its own walk over a vector's numbers costs half a ms."""
        return type(self), self.label, self.exact, self.searched

    @property
    def sidecar(self) -> Any:
        return apps.get_model(self.label)

    @property
    def embedder(self) -> Embedder:
        return get_embedder(declaration_of(self.sidecar).embedder)

    def exactly(self) -> "QueryVector":
        """The same vector for a comparison that no index serves."""
        again = copy.copy(self)
        again.exact = True
        vars(again).pop("identity", None)
        return again

    def vector(self, using: str) -> list[float]:
        """The vector, ``(dimensions,)``. Raises ``ValueError`` where an instance has none yet."""
        if not self.memo:
            dimensions = declaration_of(self.sidecar).dimensions
            self.memo.append(fitted(self._vector(using), dimensions))
        vector: list[float] = self.memo[0]
        return vector

    def literal(self, using: str) -> str:
        """The vector as SQL has it; made once, because hundreds of numbers take their time."""
        if len(self.memo) < 2:
            self.memo[:] = [self.vector(using), self.output_field.get_prep_value(self.memo[0])]
        return str(self.memo[1])

    def _vector(self, using: str) -> list[float]:
        if isinstance(self.query, str):
            return query_vector(self.embedder, self.query)
        if not isinstance(self.query, models.Model):
            return list(self.query)
        # In another database the same key may be another row's.
        there = self.query._state.db or using
        rows = all_passages(self.sidecar, there).filter(**key_of_row(self.sidecar, self.query))
        # Of its only vector, or of its passages'.
        stored = rows.aggregate(mean=models.Avg("vector"))["mean"]
        if stored is None:
            raise ValueError(
                f"{self.query!r} has no vector in {self.label} (yet): its text is"
                " blank, it does not meet the condition, or no worker has embedded it. Run"
                " manage.py embed_worker, or search by text."
            )
        return list(stored)

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> tuple[str, tuple[Any, ...]]:
        cast = self.output_field.db_type(connection)
        vector_sql, parameters = f"%s::{cast}", [self.literal(connection.alias)]
        if isinstance(self.query, str):
            vector_sql = statement("made_by").format(vector=vector_sql, cast=cast)
            key, maker = key_of(self.sidecar), self.embedder.fingerprint
            parameters = [key, maker, *parameters, self.label, key, maker]
        vector_sql = self.in_form(f"({vector_sql})")
        if self.exact:
            return vector_sql, tuple(parameters)
        end = getattr(compiler.query, "scan_end", None) or compiler.query.high_mark
        calls, more = settings_sql(self.sidecar, end, connection.ops.quote_name)
        # PostgreSQL runs a sub-select that depends on nothing before the index scan that uses its
        # result. OFFSET 0 keeps it from being folded into a constant without the settings.
        sql = f"(SELECT {vector_sql} FROM (SELECT {calls} OFFSET 0) AS scan_settings)"
        return sql, (*parameters, *more)

    def in_form(self, vector_sql: str) -> str:
        """SQL for what the vector is compared as."""
        return vector_sql


def vector_field(sidecar: type[EmbeddingModel]) -> Any:
    """The field that holds a sidecar's vectors."""
    options: Any = sidecar._meta
    return options.get_field("vector")


class SearchDistance(models.Func):
    """The raw distance between a sidecar's vector and the one searched for; nearest is least.

    As the sidecar's declaration has it: the cosine distance, 0 to 2; minus the inner product; or
    the Euclidean distance, 0 and more.
    """

    function = ""
    output_field = models.FloatField()

    def __init__(self, column: Any, query: QueryVector) -> None:
        operator = OPERATORS[declaration_of(query.sidecar).distance]
        super().__init__(column, query, arg_joiner=f" {operator} ")

    def exactly(self) -> "SearchDistance":
        """The same distance in a form that no index serves."""
        column, query = self.get_source_expressions()
        return ExactDistance(column, query.exactly())


class ExactDistance(SearchDistance):
    """The distance as no index can order by it: every row is compared."""

    # Adding 0 changes nothing but this: the planner does not recognise the index's operator.
    template = "((%(expressions)s) + 0)"


class NearestPassage(models.Expression):
    """The ordinal of a row's passage that is nearest to what is searched for.

    ``keys`` are the columns of the sidecar that hold the row's key, as the search has joined them.
    The sub-select is made so that no index on vectors can serve it: the primary key does.
    """

    output_field: Any = models.IntegerField()

    def __init__(self, sidecar: Any, keys: list[str], query: Any) -> None:
        super().__init__()
        self.label = sidecar._meta.label  # not the class: a queryset can be pickled
        self.columns = [sidecar._meta.get_field(name.rpartition("__")[2]).column for name in keys]
        self.outer: list[Any] = [models.F(name) for name in keys]
        self.query = query.exactly()

    @property
    def identity(self) -> tuple[Any, ...]:
        return type(self), self.label, *self.outer, self.query

    def get_source_expressions(self) -> list[Any]:
        return [*self.outer, self.query]

    def set_source_expressions(self, expressions: Any) -> None:
        *self.outer, self.query = expressions

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> tuple[str, tuple[Any, ...]]:
        quote = connection.ops.quote_name
        conditions, parameters = [], list[Any]()
        for column, outer in zip(self.columns, self.outer, strict=True):
            sql, more = compiler.compile(outer)
            conditions.append(f"embedsync_nearest.{quote(column)} = {sql}")
            parameters += more
        query, more = compiler.compile(self.query)
        sidecar: Any = apps.get_model(self.label)
        table = quote(sidecar._meta.db_table)
        operator = OPERATORS[sidecar._meta.get_field("source").declaration.distance]
        sql = (
            f"(SELECT embedsync_nearest.ordinal FROM {table} AS embedsync_nearest"
            f" WHERE {' AND '.join(conditions)}"
            f" ORDER BY (embedsync_nearest.vector {operator} {query}) + 0,"
            " embedsync_nearest.ordinal LIMIT 1)"
        )
        return sql, (*parameters, *more)


class TextEmbedding(models.Expression):
    """The vector of a text, for the distances of ``pgvector.django`` and wherever a vector may be.

    ``order_by(CosineDistance("movieembedding__vector", TextEmbedding("robots")))``. The text is
    embedded by ``embedder`` when the SQL is made, and cut to ``dimensions``, where the declaration
    names them. What ``similar()`` sees to is left to the caller: a filter on ``ordinal``, the
    settings of the index's scan, the same embedder on both sides.

    Raises ``ValueError`` where the text is blank.
    """

    def __init__(
        self, text: str, *, embedder: str = "default", dimensions: int | None = None
    ) -> None:
        text = str(text) if isinstance(text, Promise) else text
        if not isinstance(text, str) or not text.strip():
            raise ValueError("TextEmbedding() takes a text that is not blank.")
        self.text = text
        self.embedder = embedder
        self.dimensions = dimensions
        super().__init__(output_field=HalfVectorField())

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        return type(self), self.text, self.embedder, self.dimensions

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> tuple[str, tuple[Any, ...]]:
        # No cast: PostgreSQL takes a bare literal for what stands on the operator's other side, be
        # it vector or halfvec.
        return "%s", (str(HalfVectorField().get_prep_value(self._vector)),)

    @cached_property
    def _vector(self) -> Sequence[float]:
        vector = query_vector(get_embedder(self.embedder), self.text)
        cut: Sequence[float] = fitted(vector, self.dimensions)
        return cut
