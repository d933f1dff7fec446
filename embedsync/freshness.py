"""Freshness: which rows may have changed since their vectors were made."""

from typing import Any, Self

from django.apps import apps
from django.db import models
from django.db.models.sql.compiler import SQLCompiler

from embedsync.database import key_columns, related_sql
from embedsync.declaration import (
    EmbeddingModel,
    chosen_sidecar,
    key_fields,
    key_of,
    watched_of,
)
from embedsync.sql import statement


class Stale(models.Expression):
    """Whether a row's vector may be older than the row: ``annotate(stale=Stale())``.

    True while an event or a worker has the row before it, where its text could not be embedded, and
    where a fill has not come to it. So in the transaction that changes it, too, and in no other
    before the commit. ``embedding`` names one of several declarations.

    It reads the queue once a query: with a million rows waiting, that takes some tenths of a
    second. Needs SELECT on ``embedsync_inbox``, ``embedsync_ledger``, ``embedsync_sidecar`` and
    ``embedsync_missed``.
    """

    output_field: Any = models.BooleanField()

    def __init__(self, embedding: str | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.label = ""  # not the class: a queryset can be pickled
        self.columns: list[Any] = []

    def get_source_expressions(self) -> list[Any]:
        return self.columns

    def set_source_expressions(self, exprs: Any) -> None:
        self.columns = list(exprs)

    def resolve_expression(self, query: Any = None, *args: Any, **kwargs: Any) -> Self:
        if self.label:  # in a sub-query: the query around it resolves it once more
            return super().resolve_expression(query, *args, **kwargs)
        model = query.model
        if issubclass(model, EmbeddingModel):
            sidecar = model
            names = [ours.attname for ours, _ in key_fields(sidecar)]
        else:
            sidecar = chosen_sidecar(model, self.embedding)
            names = [theirs.attname for _, theirs in key_fields(sidecar)]
        resolved: Self = self.copy()
        resolved.label = sidecar._meta.label
        resolved.columns = [
            models.F(name).resolve_expression(query, *args, **kwargs) for name in names
        ]
        return resolved

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> tuple[str, tuple[Any, ...]]:
        sidecar: Any = apps.get_model(self.label)
        key, using = key_of(sidecar), connection.alias
        types = [ours.db_type(connection) for ours, _ in key_fields(sidecar)]
        # Plain columns, so none of them has parameters.
        columns = ", ".join(compiler.compile(column)[0] for column in self.columns)
        hops = {watched.lookup for watched in watched_of(sidecar) if watched.lookup}
        related = {hop: related_sql(sidecar, hop, using) for hop in sorted(hops)}
        sql = statement("stale").format(
            columns=columns,
            given_key=key_columns("embedsync_given.key", types),
            after_key=key_columns("filled.backfill_after", types),
            hops="\n".join(
                statement("stale_hop").format(columns=columns, related=keys)
                for keys in related.values()
            ),
        )
        return sql, (key, key, *(part for hop in related for part in (key, hop)), key)
