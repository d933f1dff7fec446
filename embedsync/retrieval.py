"""Retrieval: the passages that are nearest in meaning to something, as prompts of models want them.

And, of a row that has several passages, the nearest.
"""

from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from django.apps import apps
from django.db import models
from django.db.models.sql.compiler import SQLCompiler

from embedsync.space import OPERATORS

if TYPE_CHECKING:
    from embedsync.search import PassageChoices, Searched

M = TypeVar("M", bound=models.Model)


class PassageQuerySet(models.QuerySet[M]):
    """Rows of a sidecar, with ``similar()``."""

    def similar(self, query: "Searched", **choices: "Unpack[PassageChoices]") -> Self:
        """The passages nearest to ``query``, nearest first: see ``embedsync.search``.

        Each has its ``.distance`` and its ``.source``; those whose row is gone, or does not meet
        the declaration's condition now, are left out. An instance's own passages are, too.
        """
        # Not above: a search needs the declarations, which need this.
        from embedsync.search import similar_passages

        found: Any = similar_passages(self, query, **choices)
        rows: Self = found
        return rows


PassageManager = models.Manager.from_queryset(PassageQuerySet, "PassageManager")


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
