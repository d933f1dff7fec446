"""The index of a sidecar: as it is declared, and as a migration makes it, to be built later.

A row costs several times the CPU to write where the index is in place already. So the migration
creates it empty, under its own name, and a worker replaces it by a full one (docs/design.md).
"""

import math
from dataclasses import dataclass
from typing import Any, Self

from django.db import models
from django.db.backends.utils import truncate_name
from pgvector.django import HnswIndex, IvfflatIndex

from embedsync.space import OPERATOR_CLASSES, Distance, Storage, column_type

NAME_LENGTH = 25  # Django cuts index names at 30


@dataclass(frozen=True)
class HNSW:
    """A graph: fast and exact enough, larger and slower to build.

    ``m`` is how many neighbours a vector has (2 to 100), ``ef_construction`` how many are looked at
    to find them (4 to 1000, at least twice ``m``).
    """

    m: int = 16
    ef_construction: int = 128  # 64 finds less on real search texts (docs/benchmarks.md)


@dataclass(frozen=True)
class IVFFlat:
    """Lists of near vectors, of which a search reads some: quick to build, slower to search.

    ``lists`` is their number (1 to 32768); where it is None, the square root of the number of
    vectors when the index is built, or built again by ``embed_reindex``.
    """

    lists: int | None = None


Kind = HNSW | IVFFlat
DEFAULT = HNSW()


class DeferredIndex(models.Index):
    """An index that a migration creates with ``WHERE false``: it exists and costs nothing.

    The planner never uses such an index, and stock ``RenameIndex`` and ``RemoveIndex`` find it
    under its name. ``AddIndexConcurrently`` builds the full index at once.
    """

    @property
    def full_name(self) -> str:
        """The name under which a worker builds it, beside the empty one."""
        return f"{self.name}_full"

    def sized(self, rows: int) -> Self:
        """The index to be built over so many rows."""
        index: Any = self.clone()
        same: Self = index
        return same

    def create_sql(
        self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any
    ) -> Any:
        sql: Any = super().create_sql(model, schema_editor, using=using, **kwargs)
        if not kwargs.get("concurrently"):
            sql.parts["condition"] = " WHERE false"
        return sql

    def remove_sql(self, model: type[models.Model], schema_editor: Any, **kwargs: Any) -> Any:
        sql: Any = super().remove_sql(model, schema_editor, **kwargs)
        if not kwargs.get("concurrently"):
            # What a worker did not finish would go on to serve, or would bar a change of type.
            both = map(schema_editor.quote_name, (self.name, self.full_name))
            sql.parts["name"] = ", ".join(both)
        return sql


class DeferredHnswIndex(DeferredIndex, HnswIndex):
    """An HNSW index; with ``bits``, of the signs of vectors that have so many dimensions."""

    def __init__(self, *expressions: Any, bits: int | None = None, **kwargs: Any) -> None:
        self.bits = bits
        super().__init__(*expressions, **kwargs)

    @staticmethod
    def name_for(key: str) -> str:
        """An index name for a sidecar's key, no longer than Django permits."""
        return truncate_name(key.replace(".", "_"), NAME_LENGTH) + "_hnsw"

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        if self.bits is not None:
            kwargs["bits"] = self.bits
        return path, args, kwargs

    def create_sql(
        self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any
    ) -> Any:
        sql: Any = super().create_sql(model, schema_editor, using=using, **kwargs)
        if self.bits is not None:
            # Not an expression of Django's: one with fields follows a rename of the column.
            columns, quote, bits = sql.parts["columns"], schema_editor.quote_name, self.bits
            columns.quote_name = lambda name: quantized_sql(quote(name), bits)
        return sql


class DeferredIvfflatIndex(DeferredIndex, IvfflatIndex):
    """An IVFFlat index, whose number of lists is known when it is built if not before."""

    @staticmethod
    def name_for(key: str) -> str:
        """An index name for a sidecar's key, no longer than Django permits."""
        return truncate_name(key.replace(".", "_"), NAME_LENGTH) + "_ivf"

    def sized(self, rows: int) -> Self:
        index = super().sized(rows)
        index.lists = self.lists or lists_for(rows)
        return index


def quantized_sql(column: str, bits: int) -> str:
    """The signs of a vector's components; index and search have to write it alike."""
    return f"(binary_quantize({column})::bit({bits}))"


def lists_for(rows: int) -> int:
    """How many lists an IVFFlat index has for so many rows, if nobody has said."""
    return min(max(math.isqrt(rows), 1), 32768)


def index_for(
    key: str, kind: Kind | None, storage: Storage, distance: Distance, dimensions: int | None
) -> DeferredIndex | None:
    """The index of the sidecar of this key, as its migration has it; None where it has none."""
    bits = dimensions if storage == "bit" else None
    opclass = f"{column_type(storage)}_{OPERATOR_CLASSES[distance]}"
    options: Any = {
        "fields": ["vector"],
        "opclasses": [opclass if bits is None else "bit_hamming_ops"],
    }
    if isinstance(kind, IVFFlat):
        return DeferredIvfflatIndex(
            name=DeferredIvfflatIndex.name_for(key), lists=kind.lists, **options
        )
    if kind is None:
        return None
    return DeferredHnswIndex(
        name=DeferredHnswIndex.name_for(key),
        m=kind.m,
        ef_construction=kind.ef_construction,
        bits=bits,
        **options,
    )


def deferred_index(sidecar: type[models.Model]) -> DeferredIndex | None:
    """The index of a sidecar that workers build, or None where its Meta has none."""
    indexes = (index for index in sidecar._meta.indexes if isinstance(index, DeferredIndex))
    return next(indexes, None)
