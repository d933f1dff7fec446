"""A changed number of dimensions: what a stock ``AlterField`` does to the vectors that are there.

PostgreSQL refuses to cast a vector to another length. So before ``migrate`` runs its plan, each
``AlterField`` of a vector becomes one that knows how, as Django's contenttypes do with theirs.
"""

from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db.migrations.operations import AlterField
from pgvector.django import HalfVectorField, VectorField

from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.embedders import get_embedder
from embedsync.index import DeferredIndex
from embedsync.source import MigrationDependency


class ResizeVectors(AlterField):
    """An ``AlterField`` that cuts vectors, or fills them up with zeros, where it has to.

    Either way they stay comparable with vectors that are cut as they will be, so that searches go
    on finding; and workers make all of them anew. Only where the vectors are those of the embedder
    that the settings name: what another one made must not be taken for its own, and PostgreSQL's
    refusal says so.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        before, after = (
            state.apps.get_model(app_label, self.model_name) for state in (from_state, to_state)
        )
        old, new = (
            getattr(model._meta.get_field(self.name), "dimensions", None)
            for model in (before, after)
        )
        connection = schema_editor.connection
        indexes: list[DeferredIndex] = []
        if (
            old is not None
            and new is not None
            and old != new
            and self.allow_migrate_model(connection.alias, after)
            and is_ours(connection, before)
        ):
            # First, because workers lock in this order.
            key = schema_editor.quote_value(before._meta.label_lower)
            schema_editor.execute(RESET.format(key=key), params=None)
            # One that is built would be built again by ALTER TABLE, while searches wait for it.
            indexes = [one for one in before._meta.indexes if isinstance(one, DeferredIndex)]
            for index in indexes:
                schema_editor.remove_index(before, index)
            sql = resize_sql(before, old, new, schema_editor.quote_name)
            schema_editor.execute(sql, params=None)
        super().database_forwards(app_label, schema_editor, from_state, to_state)
        for index in indexes:
            schema_editor.add_index(after, index)


# To be adopted anew: workers of the old length stop, and those that follow compare all rows.
RESET = """
UPDATE embedsync_sidecar SET fingerprint = '', backfill_after = NULL, backfilled_at = NULL
WHERE key = {key}
"""


def resize_sql(model: Any, old: int, new: int, quote: Any) -> str:
    """SQL that brings a sidecar's vectors from one length to another.

    Without their digests, so that none of them is taken for what its text says.
    """
    field, digest = (model._meta.get_field(name) for name in ("vector", "digest"))
    column, type_name = quote(field.column), field.db_type(None).partition("(")[0]
    if new < old:
        value = f"l2_normalize(subvector({column}, 1, {new}))"
    else:
        value = f"{column} || array_fill(0::real, ARRAY[{new - old}])::{type_name}"
    emptied = quote(digest.column)
    return (
        f"ALTER TABLE {quote(model._meta.db_table)}"
        f" ALTER COLUMN {column} TYPE {type_name}({new}) USING {value},"
        f" ALTER COLUMN {emptied} TYPE bytea USING ''::bytea"
    )


def is_ours(connection: Any, model: Any) -> bool:
    """Whether a migration's model is a sidecar with vectors of the embedder it has now."""
    try:
        if not isinstance(model._meta.get_field("source"), MigrationDependency):
            return False
        sidecar = apps.get_model(model._meta.label)
        if not issubclass(sidecar, EmbeddingModel):
            return False
        embedder = get_embedder(declaration_of(sidecar).embedder).fingerprint
    except (FieldDoesNotExist, LookupError, ImproperlyConfigured):
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT embedder FROM embedsync_sidecar WHERE key = %s", [model._meta.label_lower]
        )
        row = cursor.fetchone()
    return row is not None and row[0] == embedder


def resize_in_plan(*, plan: Any = None, **_: Any) -> None:
    """Before a migration: have its plan's changes of vectors done by ``ResizeVectors``."""
    for migration, _backward in plan or ():
        for position, operation in enumerate(migration.operations):
            field = getattr(operation, "field", None)
            if type(operation) is AlterField and isinstance(field, HalfVectorField | VectorField):
                migration.operations[position] = ResizeVectors(
                    operation.model_name, operation.name, field, operation.preserve_default
                )
