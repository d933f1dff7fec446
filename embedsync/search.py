"""Search: ``similar()`` on querysets, managers and instances, and the expressions it is made of.

A search is one INNER JOIN from the source to its sidecar, ordered by the raw distance: other forms
lose the index (docs/design.md).
"""

import copy
import math
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, Self, TypeVar

from django.apps import apps
from django.db import connections, models
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI
from pgvector.django import HalfVectorField

from embedsync.conf import settings
from embedsync.declaration import (
    Embedding,
    EmbeddingModel,
    declaration_of,
    key_of_row,
    rows_of,
    sidecars_of,
    source_of,
)
from embedsync.embedders import get_embedder

M = TypeVar("M", bound=models.Model)
Searched = str | models.Model | Sequence[float]

# What makes an HNSW scan go on until the filters have let enough rows through, whatever lies in
# between. strict_order alone gives up at its limits of tuples and of memory.
SCAN_SETTINGS = {
    "hnsw.iterative_scan": "strict_order",
    "hnsw.max_scan_tuples": "2147483647",
    "hnsw.scan_mem_multiplier": "1000",
}

INDEX_MAY_BE_FIRST_PART_OF_SORT = 170000


class QueryVector(models.Expression):
    """The vector that is searched for; a text is embedded when the SQL is made, and only once."""

    output_field: Any

    def __init__(self, query: Any, sidecar: type[EmbeddingModel], exact: bool) -> None:
        self.query = query
        self.label = sidecar._meta.label  # not the class: a queryset can be pickled
        self.exact = exact
        # Shared by all copies of this expression, so that a count and a page embed once: the
        # vector, then its literal.
        self.memo: list[Any] = []
        super().__init__(output_field=vector_field(sidecar))

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What Django compares and hashes; its own walk over a vector's numbers costs half a ms."""
        return type(self), self.label, self.exact, self.query

    @property
    def sidecar(self) -> Any:
        return apps.get_model(self.label)

    def vector(self, using: str) -> list[float]:
        """The vector, ``(dimensions,)``. Raises ``ValueError`` where an instance has none yet."""
        if not self.memo:
            self.memo.append(self._vector(using))
        vector: list[float] = self.memo[0]
        return vector

    def literal(self, using: str) -> str:
        """The vector as SQL has it; made once, because hundreds of numbers take their time."""
        if len(self.memo) < 2:
            self.memo[:] = [self.vector(using), HalfVectorField().get_prep_value(self.memo[0])]
        return str(self.memo[1])

    def _vector(self, using: str) -> list[float]:
        if isinstance(self.query, str):
            embedder = declaration_of(self.sidecar).embedder
            return get_embedder(embedder).checked_query(self.query)
        if not isinstance(self.query, models.Model):
            return list(self.query)
        rows = rows_of(self.sidecar, using).filter(**key_of_row(self.sidecar, self.query))
        stored = rows.values_list("vector", flat=True).first()
        if stored is None:
            raise ValueError(
                f"{self.query!r} has no vector in {self.label} (yet): its text is"
                " blank, it does not meet the condition, or no worker has embedded it. Run"
                " manage.py embed_worker, or search by text."
            )
        return list(stored)

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> tuple[str, tuple[Any, ...]]:
        literal = self.literal(connection.alias)
        vector_sql = f"%s::{self.output_field.db_type(connection)}"
        if self.exact:
            return vector_sql, (literal,)
        scan = {**SCAN_SETTINGS, "hnsw.ef_search": str(settings.ef_search)}
        calls = ", ".join(["set_config(%s, %s, true)"] * len(scan))
        parameters = [part for pair in scan.items() for part in pair]
        # PostgreSQL runs a sub-select that depends on nothing before the index scan that uses its
        # result. OFFSET 0 keeps it from being folded into a constant without the settings.
        sql = f"(SELECT {vector_sql} FROM (SELECT {calls} OFFSET 0) AS scan_settings)"
        return sql, (literal, *parameters)


def vector_field(sidecar: type[EmbeddingModel]) -> Any:
    """The field that holds a sidecar's vectors."""
    options: Any = sidecar._meta
    return options.get_field("vector")


class SearchDistance(models.Func):
    """The cosine distance, 0 to 2, between a sidecar's vector and the one searched for."""

    function = ""
    arg_joiner = " <=> "
    output_field = models.FloatField()

    def exactly(self) -> "SearchDistance":
        """The same distance in a form that no index serves."""
        column, query = self.get_source_expressions()
        again = copy.copy(query)
        again.exact = True
        vars(again).pop("identity", None)
        return ExactDistance(column, again)


class ExactDistance(SearchDistance):
    # Adding 0 changes nothing but this: the planner does not recognise the index's operator.
    template = "((%(expressions)s) + 0)"


class SimilarCompiler(SQLCompiler):
    """Runs a search again exactly where the index has returned fewer rows than were asked for.

    strict_order skips rows that it meets too late to be in order, and VACUUM can lag behind deleted
    rows: so a short answer may be short of rows that exist.
    """

    query: "SimilarQuery"

    def execute_sql(
        self,
        result_type: Any = MULTI,
        chunked_fetch: bool = False,
        chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
    ) -> Any:
        query = self.query
        if (
            result_type != MULTI
            or query.high_mark is None
            or query.explain_info is not None
            or query.is_exact()
        ):
            return super().execute_sql(result_type, chunked_fetch, chunk_size)
        wanted = query.high_mark - query.low_mark
        # A page, at most: nothing is lost by fetching it whole.
        chunks = super().execute_sql(MULTI, False, chunk_size)
        rows = [row for chunk in chunks or [] for row in chunk]
        if len(rows) < wanted:
            again = query.exactly().get_compiler(self.using)
            assert isinstance(again, SimilarCompiler)
            again.setup_query()
            return again.execute_sql(MULTI, chunked_fetch, chunk_size)
        return [rows]


class SimilarQuery(models.sql.Query):
    """The query of a search: it knows how to become an exact one."""

    def get_compiler(
        self, using: str | None = None, connection: Any = None, elide_empty: bool = True
    ) -> SQLCompiler:
        connection = connection or connections[using]  # type: ignore[index]
        query: Any = self
        # The key as second column makes the order of pages stable. Before PostgreSQL 17 it would
        # lose the index, which could not be the first part of a sort.
        if self.order_by == ("distance",) and (
            self.is_exact() or connection.pg_version >= INDEX_MAY_BE_FIRST_PART_OF_SORT
        ):
            query = self.clone()
            query.order_by = ("distance", "pk")
        return SimilarCompiler(query, connection, using, elide_empty)

    def is_exact(self) -> bool:
        distance = self.annotations.get("distance")
        return not isinstance(distance, SearchDistance) or isinstance(distance, ExactDistance)

    def exactly(self) -> "SimilarQuery":
        query: Any = self.clone()
        distance: Any = self.annotations["distance"]
        query.annotations = {**self.annotations, "distance": distance.exactly()}
        exact: SimilarQuery = query
        return exact


def similar(
    queryset: "models.QuerySet[M] | models.Manager[M]",
    query: Searched,
    *,
    embedding: str | None = None,
    exact: bool = False,
    min_similarity: float | None = None,
) -> "models.QuerySet[M]":
    """The rows of ``queryset`` nearest to ``query``, nearest first, each with its ``.distance``.

    ``query`` is a text, an instance (itself left out) or a vector ``(dimensions,)``. The distance
    is the cosine distance, 0 to 2. ``embedding`` names one of several declarations. ``exact``
    compares with every vector, past the index. ``min_similarity`` is 1 - distance, -1 to 1.

    Lazy: a text is embedded, and an instance's vector read, when the queryset is evaluated. Rows
    that do not meet the declaration's condition now are left out, whatever their vectors say.

    Raises ``ValueError`` where the query cannot be searched for, ``TypeError`` for a sliced
    queryset; an instance without a vector raises ``ValueError`` when the queryset is evaluated.
    """
    if isinstance(queryset, models.Manager):
        queryset = queryset.all()
    if not isinstance(queryset, models.QuerySet):
        raise TypeError(
            "similar() takes a queryset first: embedsync.similar(Page.objects.all(), ...)."
        )
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise ValueError(f"min_similarity is 1 - distance, from -1 to 1, not {min_similarity!r}.")
    sidecar = chosen_sidecar(queryset.model, embedding)
    searched = checked(query, sidecar)
    if queryset.query.is_sliced:
        raise TypeError("similar() on a slice: slice the result, Model.objects.similar(...)[:10].")
    if "distance" in queryset.query.annotations:
        raise ValueError(
            "This queryset already has an annotation named distance: similar() can be used once,"
            " and needs the name for itself."
        )
    relation = sidecar._meta.model_name
    # The filter comes before the annotation, which alone would make a LEFT JOIN.
    found: Any = queryset.filter(**{f"{relation}__ordinal": 0})
    condition = declaration_of(sidecar).condition
    if condition is not None:
        found = found.filter(condition)
    if isinstance(query, models.Model):
        found = found.exclude(pk=query.pk)
    vector = QueryVector(searched, sidecar, exact)
    distance = (ExactDistance if exact else SearchDistance)(models.F(f"{relation}__vector"), vector)
    found = found.annotate(distance=distance)
    if min_similarity is not None:
        found = found.filter(distance__lte=1 - min_similarity)
    found.query = found.query.chain(klass=SimilarQuery)
    ordered: models.QuerySet[M] = found.order_by("distance")
    return ordered


def chosen_sidecar(model: type[models.Model], embedding: str | None) -> type[EmbeddingModel]:
    """The sidecar of a model that ``embedding`` names; the only one where it is None.

    Raises ``ValueError`` with the names to choose from.
    """
    candidates = sidecars_by_name(model)
    if not candidates:
        raise ValueError(
            f"{model._meta.label} has no embedding: declare one in its body, or a sidecar with an"
            " EmbeddingSource, then run makemigrations and migrate."
        )
    if embedding is None and len(candidates) == 1:
        return next(iter(candidates.values()))
    if embedding in candidates:
        return candidates[embedding]
    known = ", ".join(map(repr, sorted(candidates)))
    wrong = "has several embeddings" if embedding is None else f"has no embedding {embedding!r}"
    raise ValueError(f"{model._meta.label} {wrong}: choose one with embedding=, of {known}.")


@cache
def sidecars_by_name(model: type[models.Model]) -> dict[str, type[EmbeddingModel]]:
    """The sidecars of a model by the attribute that declares them, or by their own name."""
    named = {sidecar.__name__: sidecar for sidecar in sidecars_of(model)}
    # A child's declaration hides that of its parent, as attributes do.
    for base in reversed(model.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Embedding) and hasattr(value, "model"):
                named.pop(value.model.__name__, None)
                named[name] = value.model
    return named


def checked(query: Any, sidecar: type[EmbeddingModel]) -> Any:
    """What is searched for, found fit. Raises ``ValueError`` that says what to give instead."""
    if isinstance(query, str):
        if not query.strip():
            raise ValueError("similar() got a blank text: give it some words to search for.")
        return query
    if isinstance(query, models.Model):
        source = source_of(sidecar)
        if not isinstance(query, source):
            raise ValueError(
                f"similar() got a {type(query)._meta.label}, whose vectors are not those of"
                f" {source._meta.label}: give it a text, a vector or one of these."
            )
        if query.pk is None or query._state.adding:
            raise ValueError(
                f"similar() got an unsaved {source._meta.label}, which has no vector: save it and"
                " wait for a worker, or search by its text."
            )
        return query
    try:
        vector = tuple(float(value) for value in query)
    except (TypeError, ValueError):
        raise ValueError(
            f"similar() takes a text, an instance or a vector, not {type(query).__name__}."
        ) from None
    dimensions = vector_field(sidecar).dimensions
    if len(vector) != dimensions:
        raise ValueError(
            f"similar() got a vector of {len(vector)} dimensions; those of {sidecar._meta.label}"
            f" have {dimensions}. Embed the text with the same embedder."
        )
    norm = math.hypot(*vector)
    if not math.isfinite(norm) or norm == 0:
        raise ValueError("similar() got a vector that is zero or not finite: it has no direction.")
    # Of length 1: its direction is all that counts, and no number leaves a halfvec's range.
    return tuple(value / norm for value in vector)


class EmbeddingQuerySet(models.QuerySet[M]):
    """A queryset with ``similar()``. Build your own manager from it: ``from_queryset()``."""

    def similar(
        self,
        query: Searched,
        *,
        embedding: str | None = None,
        exact: bool = False,
        min_similarity: float | None = None,
    ) -> Self:
        """The rows nearest to a text, an instance or a vector: see ``embedsync.similar()``."""
        options: Any = {"embedding": embedding, "exact": exact, "min_similarity": min_similarity}
        found: Any = similar(self, query, **options)
        rows: Self = found
        return rows


EmbeddingManager = models.Manager.from_queryset(EmbeddingQuerySet, "EmbeddingManager")


class EmbeddedModel(models.Model):
    """Mixin for a model whose rows are embedded: ``Model.objects.similar()``, ``row.similar()``."""

    objects: Any = EmbeddingManager()

    class Meta:
        abstract = True

    def similar(self, **options: Any) -> "models.QuerySet[Self]":
        """The other rows, nearest to this one first. Options: see ``embedsync.similar()``."""
        rows: Any = type(self)._default_manager.using(self._state.db)
        return similar(rows, self, **options)
