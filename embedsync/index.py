"""The HNSW index of a sidecar, built when the first fill has ended.

A row costs several times the CPU to write where the index is in place already. So the migration
creates it empty, under its own name, and a worker replaces it by a full one (docs/design.md).
"""

from typing import Any

from django.db import models
from django.db.backends.utils import truncate_name
from pgvector.django import HnswIndex

NAME_LENGTH = 25  # Django cuts index names at 30


class DeferredHnswIndex(HnswIndex):
    """An HNSW index that a migration creates with ``WHERE false``: it exists and costs nothing.

    The planner never uses such an index, and stock ``RenameIndex`` and ``RemoveIndex`` find it
    under its name. ``AddIndexConcurrently`` builds the full index at once.
    """

    @staticmethod
    def name_for(key: str) -> str:
        """An index name for a sidecar's key, no longer than Django permits."""
        return truncate_name(key.replace(".", "_"), NAME_LENGTH) + "_hnsw"

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: Any,
        using: str = "",
        **kwargs: Any,
    ) -> Any:
        sql: Any = super().create_sql(model, schema_editor, using=using, **kwargs)
        if not kwargs.get("concurrently"):
            sql.parts["condition"] = " WHERE false"
        return sql


def deferred_index(sidecar: type[models.Model]) -> DeferredHnswIndex | None:
    """The index of a sidecar that workers build, or None where its Meta has none."""
    indexes = (index for index in sidecar._meta.indexes if isinstance(index, DeferredHnswIndex))
    return next(indexes, None)
