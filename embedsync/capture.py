"""Capture: the triggers that put the key of every changed row into the inbox.

Idea of the triggers: the PgVectorizer article. Why they are statement triggers with transition
tables, and what their cost is: docs/design.md.
"""

from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.utils import truncate_name

from embedsync.sql import statement

OLD = "OLD TABLE AS old_rows"
NEW = "NEW TABLE AS new_rows"
EVENTS = {"INSERT": [NEW], "UPDATE": [OLD, NEW], "DELETE": [OLD], "TRUNCATE": []}
# PostgreSQL cuts names at 63 bytes; the longest suffix is "_truncate".
NAME_LENGTH = 54


def quoted_schema(schema_editor: BaseDatabaseSchemaEditor) -> str:
    """The schema into which the migration in hand creates its tables, quoted."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        return cursor.fetchone()[0]


def function_sql(schema: str) -> str:
    """The trigger function and its sequence, for a quoted schema."""
    return statement("capture").replace("{schema}", schema)


class SyncTrigger(models.BaseConstraint):
    """The triggers of one sidecar on its source, as a constraint of the sidecar.

    A constraint, because stock ``makemigrations`` writes, compares and removes constraints. It
    stands in the sidecar's ``Meta`` because the source may belong to somebody else.

    ``key`` names the sidecar in trigger, inbox and ledger; ``fields`` are the source's fields whose
    change makes an event.
    """

    def __init__(self, *, key: str, fields: list[str], name: str) -> None:
        self.key = key
        self.fields = list(fields)
        super().__init__(name=name)

    @staticmethod
    def name_for(key: str) -> str:
        """A constraint name for a sidecar's key, short enough for the triggers made from it."""
        return truncate_name(f"{key.replace('.', '_')}_sync", NAME_LENGTH)

    def deconstruct(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "key": self.key, "fields": self.fields}

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SyncTrigger):
            return self.deconstruct() == other.deconstruct()
        return NotImplemented

    def __repr__(self) -> str:
        return f"<SyncTrigger: {self.key} on {', '.join(self.fields)}>"

    def constraint_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor
    ) -> None:
        """Nothing for CREATE TABLE: the triggers are made after it."""
        schema_editor.deferred_sql.append(self.create_sql(model, schema_editor))

    def create_sql(self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor) -> str:
        # The source from the sidecar's relation as of this migration: a stored label would be
        # stale after a rename.
        source = model._meta.get_field("source").remote_field.model._meta
        columns = [source.pk.column, *(source.get_field(name).column for name in self.fields)]
        schema = quoted_schema(schema_editor)
        quote_name, quote_value = schema_editor.quote_name, schema_editor.quote_value
        triggers = [
            statement("trigger").format(
                trigger=quote_name(self.trigger_name(event)),
                event=event,
                source=quote_name(source.db_table),
                referencing=f"REFERENCING {' '.join(tables)}\n" if tables else "",
                sidecar=quote_value(quote_name(model._meta.db_table)),
                schema=schema,
                arguments=", ".join(map(quote_value, [self.key, *columns])),
            )
            for event, tables in EVENTS.items()
        ]
        added = statement("trigger_added").format(
            schema=schema,
            key=quote_value(self.key),
            source=quote_name(source.db_table),
            sidecar=quote_name(model._meta.db_table),
        )
        # The function too, because tests that run without migrations have nothing else to make it.
        return "\n".join([function_sql(schema), *triggers, added])

    def remove_sql(self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor) -> str:
        source = model._meta.get_field("source").remote_field.model._meta
        quote_name = schema_editor.quote_name
        drops = [
            f"DROP TRIGGER IF EXISTS {quote_name(self.trigger_name(event))}"
            f" ON {quote_name(source.db_table)};"
            for event in EVENTS
        ]
        forget = statement("forget").format(
            schema=quoted_schema(schema_editor), key=schema_editor.quote_value(self.key)
        )
        # Django's remove_constraint() reads % as the start of a parameter.
        return "\n".join([*drops, forget]).replace("%", "%%")

    def trigger_name(self, event: str) -> str:
        return f"{self.name}_{event.lower()}"

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to validate: it is a constraint in name only."""
