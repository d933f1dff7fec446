"""Search: the rows of a queryset that are nearest in meaning to something.

A search is one INNER JOIN from the source to its sidecar, ordered by the raw distance: other forms
lose the index (docs/design.md).
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from django.db import models

from embedsync.compiler import SimilarQuery
from embedsync.declaration import (
    Embedding,
    EmbeddingModel,
    declaration_of,
    key_fields,
    key_of_row,
    sidecars_of,
    source_of,
)
from embedsync.expressions import ExactDistance, QueryVector, SearchDistance, vector_field
from embedsync.retrieval import NearestPassage

M = TypeVar("M", bound=models.Model)
Searched = str | models.Model | Sequence[float]


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

    Where the declaration has chunks a row counts by its nearest passage, and has its text as
    ``.passage``. An instance's vector is then the mean of its passages'.

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
    vector = QueryVector(searched, sidecar, exact)
    chunked = declaration_of(sidecar).chunks is not None
    keys = [f"{relation}__{ours.name}" for ours, _ in key_fields(sidecar)]
    ordinal: Any = NearestPassage(sidecar, keys, vector) if chunked else 0
    found: Any = queryset.filter(**{f"{relation}__ordinal": ordinal})
    condition = declaration_of(sidecar).condition
    if condition is not None:
        found = found.filter(condition)
    if isinstance(query, models.Model):
        found = found.exclude(pk=query.pk)
    if chunked:
        found = found.annotate(passage=models.F(f"{relation}__passage"))
    distance = (ExactDistance if exact else SearchDistance)(models.F(f"{relation}__vector"), vector)
    found = found.annotate(distance=distance)
    if min_similarity is not None:
        found = found.filter(distance__lte=1 - min_similarity)
    found.query = found.query.chain(klass=SimilarQuery)
    ordered: models.QuerySet[M] = found.order_by("distance")
    return ordered


def similar_passages(
    passages: "models.QuerySet[M]",
    query: Searched,
    *,
    exact: bool = False,
    min_similarity: float | None = None,
) -> "models.QuerySet[M]":
    """The rows of a sidecar nearest to ``query``, nearest first: several of a row, it may be.

    As ``similar()``, but that each is a passage, with ``.distance`` and ``.source``.
    """
    sidecar: Any = passages.model
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise ValueError(f"min_similarity is 1 - distance, from -1 to 1, not {min_similarity!r}.")
    searched = checked(query, sidecar)
    if passages.query.is_sliced:
        raise TypeError("similar() on a slice: slice the result, .similar(...)[:10].")
    if "distance" in passages.query.annotations:
        raise ValueError("similar() can be used once, and needs the name distance for itself.")
    keys = {theirs.attname: models.OuterRef(ours.name) for ours, theirs in key_fields(sidecar)}
    source: Any = models.QuerySet(source_of(sidecar))
    condition = declaration_of(sidecar).condition
    # Not the join of select_related(), which a count leaves out.
    found: Any = passages.filter(models.Exists(source.filter(condition or models.Q(), **keys)))
    if isinstance(query, models.Model):
        found = found.exclude(**key_of_row(sidecar, query))
    vector = QueryVector(searched, sidecar, exact)
    distance = (ExactDistance if exact else SearchDistance)(models.F("vector"), vector)
    found = found.select_related("source").annotate(distance=distance)
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
