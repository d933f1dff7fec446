"""The space of a sidecar's vectors: how many components they have, their type, their distance."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pgvector import HalfVector, Vector
from pgvector.django import HalfVectorField, VectorField

from embedsync.embedders.base import SHORTEST, EmbedderError

Storage = Literal["vector", "halfvec", "bit"]
Distance = Literal["cosine", "inner_product", "l2"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
DISTANCES: tuple[Distance, ...] = get_args(Distance)

# pgvector's names: of the operator, and of the operator class behind that of the type.
OPERATORS: dict[Distance, str] = {"cosine": "<=>", "inner_product": "<#>", "l2": "<->"}
OPERATOR_CLASSES: dict[Distance, str] = {
    "cosine": "cosine_ops",
    "inner_product": "ip_ops",
    "l2": "l2_ops",
}
LONGEST_COLUMN = 16_000  # dimensions
LONGEST_INDEX: dict[Storage, int] = {"vector": 2_000, "halfvec": 4_000, "bit": LONGEST_COLUMN}


def column_type(storage: Storage) -> str:
    """The type of the column, which has full vectors where the index has bits."""
    return "vector" if storage == "vector" else "halfvec"


def column(storage: Storage, dimensions: int | None) -> Any:
    """The field of a sidecar's vectors."""
    field = VectorField if storage == "vector" else HalfVectorField
    return field(dimensions=dimensions)


def stored(vector: Any, storage: Storage, dimensions: int | None) -> HalfVector | Vector:
    """What is written of an embedder's vector ``(n,)``. Raises as ``fitted()`` does."""
    kind = Vector if storage == "vector" else HalfVector
    return kind(fitted(vector, dimensions))


def fitted(vector: Any, dimensions: int | None) -> Any:
    """The first ``dimensions`` components of ``(n,)``, of length 1 again; all, where it is None.

    Models of the Matryoshka kind are trained so that these alone are a good vector. Raises
    ``EmbedderError`` where they are zero.
    """
    if dimensions is None or len(vector) <= dimensions:
        return vector
    first: Sequence[float] = [float(value) for value in vector[:dimensions]]
    norm = math.hypot(*first)
    if not norm >= SHORTEST:
        raise EmbedderError(
            f"The first {dimensions} of {len(vector)} components are (nearly) zero: is this a model"
            " whose vectors may be cut?"
        )
    return [value / norm for value in first]
