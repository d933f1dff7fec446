"""Search: the rows of a queryset that are nearest in meaning to something.

A search is one INNER JOIN from the source to its sidecar, ordered by the raw distance: other forms
lose the index (docs/design.md).
"""

import math
from collections.abc import Sequence
from inspect import getattr_static
from typing import Any, TypedDict, TypeVar

from django.db import models
from django.utils.functional import Promise

from embedsync.compiler import SimilarQuery
from embedsync.declaration import (
    EmbeddingModel,
    chosen_sidecar,
    declaration_of,
    key_fields,
    key_of_row,
    source_of,
)
from embedsync.embedders import get_embedder
from embedsync.embedders.base import LONGEST
from embedsync.expressions import (
    ExactDistance,
    NearestPassage,
    QueryVector,
    SearchDistance,
    vector_field,
)
from embedsync.freshness import Stale
from embedsync.rescoring import RescoredDistance

M = TypeVar("M", bound=models.Model)
Searched = str | models.Model | Sequence[float]


class PassageChoices(TypedDict, total=False):
    """What ``similar()`` of a sidecar takes by name."""

    exact: bool
    fresh: bool
    min_similarity: float | None
    distance_name: str


class Choices(PassageChoices, total=False):
    """What ``similar()`` takes by name."""

    embedding: str | None


def similar(
    queryset: "models.QuerySet[M] | models.Manager[M]",
    query: Searched,
    *,
    embedding: str | None = None,
    exact: bool = False,
    fresh: bool = False,
    min_similarity: float | None = None,
    distance_name: str = "distance",
) -> "models.QuerySet[M]":
    """The rows of ``queryset`` nearest to ``query``, nearest first, each with its ``.distance``.

    ``query`` is a text, an instance (itself left out) or a vector ``(dimensions,)``. The distance
    is the one declared: cosine, 0 to 2; minus the inner product; or L2. ``embedding`` names one of
    several declarations. ``exact`` compares with every vector, past the index. ``fresh`` leaves out
    rows whose vector may be older than the row: see ``Stale``. ``min_similarity`` is 1 - distance,
    -1 to 1, for cosine, and the inner product where this is declared. ``distance_name`` is what the
    distance is called, where the model has a ``distance`` of its own.

    Where the declaration has chunks a row counts by its nearest passage, and has its text as
    ``.passage``. An instance's vector is then the mean of its passages'.

    Lazy: a text is embedded, and an instance's vector read, when the queryset is first evaluated;
    those made from it then have the same vector. Rows that do not meet the declaration's condition
    now are left out, whatever their vectors say.

    Raises ``ValueError`` where the query cannot be searched for, ``TypeError`` for a queryset that
    is sliced or a union; an instance without a vector raises ``ValueError`` when the queryset is
    evaluated, a text whose embedder is not that of the vectors ``MismatchError``.
    """
    if isinstance(queryset, models.Manager):
        queryset = queryset.all()
    if not isinstance(queryset, models.QuerySet):
        raise TypeError(
            "similar() takes a queryset first: embedsync.similar(Page.objects.all(), ...)."
        )
    sidecar = chosen_sidecar(queryset.model, embedding)
    farthest = None if min_similarity is None else farthest_for(min_similarity, sidecar)
    searched = checked(query, sidecar)
    chunked = declaration_of(sidecar).chunks is not None
    assert_searchable(queryset, distance_name, chunked=chunked)
    relation = sidecar._meta.model_name
    # The filter comes before the annotation, which alone would make a LEFT JOIN.
    kind, plain = distance_for(sidecar, exact)
    vector = QueryVector(searched, sidecar, plain)
    keys = [f"{relation}__{ours.name}" for ours, _ in key_fields(sidecar)]
    ordinal: Any = NearestPassage(sidecar, keys, vector) if chunked else 0
    found: Any = queryset.filter(**{f"{relation}__ordinal": ordinal})
    condition = declaration_of(sidecar).condition
    if condition is not None:
        found = found.filter(condition)
    if isinstance(query, models.Model):
        # Not by pk: a child's may be another than its parent's.
        own = [field for _, field in key_fields(sidecar)]
        found = found.exclude(**{field.attname: getattr(query, field.attname) for field in own})
    if chunked:
        found = found.annotate(passage=models.F(f"{relation}__passage"))
    distance = kind(models.F(f"{relation}__vector"), vector)
    rows: models.QuerySet[M] = nearest_first(queryset, found, distance, farthest, distance_name)
    return rows.filter(~Stale(embedding)) if fresh else rows


def similar_passages(
    passages: "models.QuerySet[M]",
    query: Searched,
    *,
    exact: bool = False,
    fresh: bool = False,
    min_similarity: float | None = None,
    distance_name: str = "distance",
) -> "models.QuerySet[M]":
    """The rows of a sidecar nearest to ``query``, nearest first: several of a row, it may be.

    As ``similar()``, but that each is a passage, with ``.distance`` and ``.source``.
    """
    sidecar: Any = passages.model
    farthest = None if min_similarity is None else farthest_for(min_similarity, sidecar)
    searched = checked(query, sidecar)
    assert_searchable(passages, distance_name)
    keys = {theirs.attname: models.OuterRef(ours.name) for ours, theirs in key_fields(sidecar)}
    source: Any = models.QuerySet(source_of(sidecar))
    condition = declaration_of(sidecar).condition
    # Not the join of select_related(), which a count leaves out.
    found: Any = passages.filter(models.Exists(source.filter(condition or models.Q(), **keys)))
    if isinstance(query, models.Model):
        found = found.exclude(**key_of_row(sidecar, query))
    found = found.select_related("source")
    kind, plain = distance_for(sidecar, exact)
    vector = QueryVector(searched, sidecar, plain)
    distance = kind(models.F("vector"), vector)
    rows: models.QuerySet[M] = nearest_first(passages, found, distance, farthest, distance_name)
    return rows.filter(~Stale()) if fresh else rows


def nearest_first(
    given: Any, found: Any, distance: SearchDistance, farthest: float | None, distance_name: str
) -> Any:
    """The search of the queryset ``given``, whose rows are ``found``, with their distance."""
    found = found.annotate(**{distance_name: distance})
    if farthest is not None:
        found = found.filter(**{f"{distance_name}__lte": farthest})
    found.query = found.query.chain(klass=SimilarQuery)
    found.query.distance_name = distance_name
    own = len(found.query.where.children) - len(given.query.where.children)
    found.query.own_filters = own - len(found.query.bounds)
    found.query.standard_ordering = True  # order_by() leaves a reverse() that came before
    return found.order_by(distance_name)


def distance_for(sidecar: type[EmbeddingModel], exact: bool) -> tuple[type[SearchDistance], bool]:
    """The expression of a search's distance; and whether its vector comes without scan settings."""
    declaration = declaration_of(sidecar)
    if exact or declaration.index is None:
        return ExactDistance, True
    if declaration.storage == "bit":
        return RescoredDistance, True
    return SearchDistance, False


def farthest_for(min_similarity: float, sidecar: type[EmbeddingModel]) -> float:
    """The greatest raw distance of rows so similar. Raises ``ValueError`` where there is none."""
    try:
        is_finite = math.isfinite(min_similarity)
    except TypeError:
        raise ValueError(f"min_similarity is a number, not {min_similarity!r}.") from None
    distance = declaration_of(sidecar).distance
    if distance == "l2":
        raise ValueError(
            f"{sidecar._meta.label} compares by L2 distance, of which no similarity is known: use"
            " similar(...).filter(distance__lte=...)."
        )
    if distance == "inner_product":
        if not is_finite:
            raise ValueError(f"min_similarity is an inner product, not {min_similarity!r}.")
        return -min_similarity
    if not -1 <= min_similarity <= 1:
        raise ValueError(f"min_similarity is 1 - distance, from -1 to 1, not {min_similarity!r}.")
    return 1 - min_similarity


def assert_searchable(
    queryset: "models.QuerySet[Any]", distance_name: str, *, chunked: bool = False
) -> None:
    """Raise ``TypeError`` or ``ValueError`` where a queryset cannot be made a search."""
    query: Any = queryset.query
    if query.is_sliced:
        raise TypeError("similar() on a slice: slice the result, Model.objects.similar(...)[:10].")
    if query.combinator:
        raise TypeError(
            f"similar() on a {query.combinator}: search each part, or filter() by all conditions."
        )
    if isinstance(query, SimilarQuery):
        raise ValueError("This queryset is a search already: similar() can be used once.")
    names = {field.name for field in queryset.model._meta.get_fields()}
    is_property = isinstance(getattr_static(queryset.model, distance_name, None), property)
    if distance_name in query.annotations or distance_name in names or is_property:
        what = "an annotation" if distance_name in query.annotations else "a field or property"
        raise ValueError(
            f"{queryset.model._meta.label} already has {distance_name!r}, {what}: let similar()"
            ' call its own something else, similar(..., distance_name="near").'
        )
    if chunked and "passage" in (distance_name, *query.annotations):
        raise ValueError(
            "This queryset already has an annotation named passage, which similar() needs for the"
            " text it has found: give yours another name."
        )


def checked(query: Any, sidecar: type[EmbeddingModel]) -> Any:
    """What is searched for, found fit. Raises ``ValueError`` that says what to give instead."""
    if isinstance(query, Promise):
        query = str(query)
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
        # pgvector's own classes are no sequences.
        numbers = query.to_list() if hasattr(query, "to_list") else query
        vector = tuple(float(value) for value in numbers)
    except (TypeError, ValueError):
        raise ValueError(
            f"similar() takes a text, an instance or a vector, not {type(query).__name__}."
        ) from None
    declaration = declaration_of(sidecar)
    known = {vector_field(sidecar).dimensions}
    if declaration.dimensions is not None:
        known.add(get_embedder(declaration.embedder).dimensions)  # to be cut as those stored were
    if len(vector) not in known:
        raise ValueError(
            f"similar() got a vector of {len(vector)} dimensions; those of {sidecar._meta.label}"
            f" have {' or '.join(map(str, sorted(known)))}. Embed the text with the same embedder."
        )
    norm = math.hypot(*vector)
    if not math.isfinite(norm) or (norm == 0 and declaration.distance != "l2"):
        raise ValueError("similar() got a vector that is zero or not finite: it has no direction.")
    if declaration.distance == "cosine":
        # Of length 1: its direction is all that counts, and no number leaves a halfvec's range.
        return tuple(value / norm for value in vector)
    if norm > LONGEST:
        raise ValueError(f"similar() got a vector longer than {LONGEST:.0f}, as none is stored.")
    return vector
