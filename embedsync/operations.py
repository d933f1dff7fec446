"""Migration operations of embedsync's own migrations."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError, ProgrammingError, transaction
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from embedsync.capture import in_schema, quoted_schema

MINIMUM = (0, 8)
CURE = 'Ask a superuser to run it in database "{database}", then run migrate again.'


class DatabaseOperation(Operation):
    """An operation that changes the database and no model."""

    reversible = True

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        pass

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        pass


class RequireVector(DatabaseOperation):
    """Make sure that pgvector is there and new enough. Never drops it: others may use it."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        connection = schema_editor.connection
        if connection.vendor != "postgresql":
            raise ImproperlyConfigured(
                f"embedsync needs PostgreSQL, and database {connection.alias!r} is"
                f" {connection.display_name}."
            )
        if self.version(connection) is None:
            self.create(schema_editor)
        version = self.version(connection)
        if version is not None and version < MINIMUM:
            found = ".".join(map(str, version))
            raise NotSupportedError(
                f"embedsync needs pgvector 0.8 or newer and found {found}."
                " Install a newer one and run: ALTER EXTENSION vector UPDATE;"
            )

    def create(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        connection = schema_editor.connection
        cure = CURE.format(database=connection.settings_dict["NAME"])
        try:
            with transaction.atomic(connection.alias):
                schema_editor.execute("CREATE EXTENSION IF NOT EXISTS vector", params=None)
        except (ProgrammingError, NotSupportedError) as error:
            raise type(error)(
                f"CREATE EXTENSION vector failed: {str(error).strip()}\n{cure}"
            ) from error

    @staticmethod
    def version(connection: Any) -> tuple[int, ...] | None:
        """The installed version, or None."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            row = cursor.fetchone()
        return tuple(int(part) for part in row[0].split(".")) if row else None

    def describe(self) -> str:
        return "Make sure that the vector extension is installed"


class InstallCapture(DatabaseOperation):
    """Create what triggers need beside their functions."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        schema_editor.execute(in_schema("capture", quoted_schema(schema_editor)), params=None)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        schema = quoted_schema(schema_editor)
        schema_editor.execute(in_schema("drop_functions", schema), params=None)
        for what in (
            "VIEW {}.embedsync_trigger",
            "PROCEDURE {}.embedsync_lock(text[], text)",
            "SEQUENCE {}.embedsync_missed",
        ):
            schema_editor.execute(f"DROP {what.format(schema)}", params=None)

    def describe(self) -> str:
        return "Create what the triggers of embedsync need"
