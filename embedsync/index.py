"""The HNSW index of a sidecar, built when the first fill has ended.

With the index in place a row costs 4.4 ms of CPU to write; built afterwards, 1.1 ms
(docs/benchmarks.md). So the migration creates it empty, under its own name, and a worker replaces
it by a full one.
"""

import logging
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.utils import truncate_name
from pgvector.django import HnswIndex

NAME_LENGTH = 25  # Django cuts index names at 30

logger = logging.getLogger("embedsync")


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


def is_built(sidecar: type[models.Model], using: str) -> bool:
    """Whether there is nothing to build: the index is there in full, or was dropped by hand."""
    index = deferred_index(sidecar)
    if index is None:
        return True
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s)"
            " AND pg_get_expr(indpred, indrelid) = 'false')",
            [connections[using].ops.quote_name(index.name)],
        )
        return not cursor.fetchone()[0]


def build(sidecar: type[models.Model], using: str) -> None:
    """Build the full index beside the empty one, CONCURRENTLY, and put it in its place.

    Needs ownership of the sidecar's table. Raises what PostgreSQL raises. What an earlier attempt
    left behind is dropped where it is unfinished and used where it is whole.
    """
    index = deferred_index(sidecar)
    assert index is not None
    connection = connections[using]
    full = index.clone()
    full.name = f"{index.name}_full"
    empty_name, full_name = (connection.ops.quote_name(name) for name in (index.name, full.name))
    if not is_valid(full_name, using):
        with connection.cursor() as cursor:
            cursor.execute(f"DROP INDEX IF EXISTS {full_name}")
        with connection.schema_editor(atomic=False) as editor:
            editor.add_index(sidecar, full, concurrently=True)  # type: ignore[call-arg]
    with transaction.atomic(using), connection.cursor() as cursor:
        # Searches wait behind this lock; better to try again than to make them wait for long.
        cursor.execute("SET LOCAL lock_timeout = '2s'")
        cursor.execute(f"DROP INDEX {empty_name}")
        cursor.execute(f"ALTER INDEX {full_name} RENAME TO {empty_name}")
    logger.info("built index %s of %s", index.name, sidecar._meta.label)


def is_valid(quoted_name: str, using: str) -> bool:
    """Whether an index of this name exists and was built to its end."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [quoted_name]
        )
        row = cursor.fetchone()
    return row is not None and row[0]
