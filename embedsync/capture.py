"""Capture: the triggers that put the key of every changed row into the inbox.

Idea of the triggers: the PgVectorizer article. Why they are statement triggers with transition
tables, and what their cost is: docs/design.md.
"""

import logging
from typing import Any

from django.apps import apps as django_apps
from django.core.exceptions import FieldDoesNotExist
from django.db import connections, models, router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Columns, Statement, Table
from django.db.backends.utils import truncate_name
from django.db.migrations.exceptions import IrreversibleError

from embedsync.sql import statement

logger = logging.getLogger("embedsync")

OLD = "OLD TABLE AS old_rows"
NEW = "NEW TABLE AS new_rows"
EVENTS = {"INSERT": [NEW], "UPDATE": [OLD, NEW], "DELETE": [OLD], "TRUNCATE": []}
# PostgreSQL cuts names at 63 bytes; the longest suffix is "_truncate".
NAME_LENGTH = 54


def quoted_schema(schema_editor: BaseDatabaseSchemaEditor) -> str:
    """The schema of embedsync's tables, quoted; until they are made, the one they will be in."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(
            "SELECT quote_ident(coalesce((SELECT nspname FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass('embedsync_inbox')), current_schema()))"
        )
        schema: str = cursor.fetchone()[0]
    return schema


def function_sql(schema: str) -> str:
    """The trigger function and its sequence, for a quoted schema."""
    return statement("capture").replace("{schema}", schema)


def source_options(sidecar: Any) -> Any:
    """The ``_meta`` of a sidecar's source, as of the migration that the sidecar comes from."""
    try:
        return sidecar._meta.get_field("source").remote_field.model._meta
    except FieldDoesNotExist:
        # makemigrations takes the relation away first where source and sidecar go together.
        name = sidecar._meta.object_name
        raise IrreversibleError(
            f"This migration deleted {name} together with its source, and cannot make it again as"
            f" it is written. Take RemoveField of {name}.source out of it and put DeleteModel of"
            f" {name} before that of the source; then migrate again."
        ) from None


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

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "key": self.key, "fields": self.fields}

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SyncTrigger):
            return bool(self.deconstruct() == other.deconstruct())
        return NotImplemented

    def __repr__(self) -> str:
        return f"<SyncTrigger: {self.key} on {', '.join(self.fields)}>"

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        """Nothing for CREATE TABLE: the triggers are made after it."""
        schema_editor.deferred_sql.append(self.create_sql(model, schema_editor))

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        return TriggerStatement(self, model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> str:
        deferred = schema_editor.deferred_sql
        deferred[:] = [sql for sql in deferred if getattr(sql, "trigger", None) != self]
        source = source_options(model)
        quote_name = schema_editor.quote_name
        drops = [
            f"DROP TRIGGER IF EXISTS {quote_name(self.trigger_name(event))}"
            f" ON {quote_name(source.db_table)};"
            for event in EVENTS
        ]
        # First what a worker's fill locks first: DROP TRIGGER shuts everybody out of the source.
        # The sidecar is forgotten after the migration, if no other trigger has come to serve it.
        state = (
            f"SELECT FROM {quoted_schema(schema_editor)}.embedsync_sidecar"
            f" WHERE key = {schema_editor.quote_value(self.key)} FOR UPDATE;"
        )
        # Django's remove_constraint() reads % as the start of a parameter.
        return "\n".join([state, *drops]).replace("%", "%%")

    def columns(self, model: Any) -> list[str]:
        """The columns of the source that the triggers name: the primary key's, then the watched."""
        source = source_options(model)
        return [source.pk.column, *(source.get_field(name).column for name in self.fields)]

    def trigger_name(self, event: str) -> str:
        return f"{self.name}_{event.lower()}"

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to validate: it is a constraint in name only."""


class TriggerStatement(Statement):
    """The SQL of the triggers, as one of Django's statements that follow what comes after them.

    A migration runs the triggers of a new table at its end. What it renames until then is renamed
    here too, and what it drops takes this along.
    """

    def __init__(self, trigger: SyncTrigger, sidecar: Any, schema_editor: Any) -> None:
        self.trigger = trigger
        self.schema = quoted_schema(schema_editor)
        self.quote_name, self.quote_value = schema_editor.quote_name, schema_editor.quote_value
        source = source_options(sidecar).db_table
        parts = {
            "source": Table(source, self.quote_name),
            "sidecar": Table(sidecar._meta.db_table, self.quote_name),
            "columns": Columns(source, trigger.columns(sidecar), self.quote_name),
        }
        super().__init__("", **parts)

    def __str__(self) -> str:
        key = self.quote_value(self.trigger.key)
        columns: Any = self.parts["columns"]  # renamed there, where a migration renames one
        names = {"source": str(self.parts["source"]), "schema": self.schema}
        triggers = [
            statement("trigger").format(
                trigger=self.quote_name(self.trigger.trigger_name(event)),
                event=event,
                referencing=f"REFERENCING {' '.join(tables)}\n" if tables else "",
                sidecar=self.quote_value(str(self.parts["sidecar"])),
                arguments=", ".join([key, *map(self.quote_value, columns.columns)]),
                **names,
            )
            for event, tables in EVENTS.items()
        ]
        before, after = (
            statement(name).format(key=key, sidecar=self.parts["sidecar"], **names)
            for name in ("trigger_added", "nothing_to_fill")
        )
        # The function too, because tests that run without migrations have nothing else to make it.
        return "\n".join([function_sql(self.schema), before, *triggers, after])


def renew_triggers(*, using: str, apps: Any = django_apps, **_: Any) -> None:
    """After a migration: make triggers anew that are missing, or that name what has been renamed.

    A migration may rename a column without a change of the declaration, in another app above all.
    ``apps`` are the models as they are in the database now.
    """
    connection: Any = connections[using]
    if connection.vendor != "postgresql":
        return
    tables = set(connection.introspection.table_names())
    for model in apps.get_models():
        for trigger in model._meta.constraints:
            if not isinstance(trigger, SyncTrigger) or model._meta.db_table not in tables:
                continue
            if not router.allow_migrate_model(using, model):
                continue
            try:
                wanted = [trigger.key, *trigger.columns(model)]
            except FieldDoesNotExist as error:
                logger.warning("the triggers of %s wait for its migration: %s", trigger.key, error)
                continue
            if is_outdated(connection, trigger, source_options(model).db_table, wanted):
                with connection.schema_editor() as editor:
                    editor.execute(trigger.create_sql(model, editor), params=None)


def is_outdated(connection: Any, trigger: SyncTrigger, table: str, arguments: list[str]) -> bool:
    """Whether one of the triggers is missing or has other arguments than these."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgargs FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgname = ANY(%s)",
            [
                connection.ops.quote_name(table),
                [trigger.trigger_name(event) for event in EVENTS],
            ],
        )
        found = [bytes(arguments) for (arguments,) in cursor.fetchall()]
    wanted = b"".join(argument.encode() + b"\0" for argument in arguments)
    return found != [wanted] * len(EVENTS)
