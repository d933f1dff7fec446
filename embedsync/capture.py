"""Capture: the triggers that put the key of every changed row into the inbox.

Idea of the triggers: the PgVectorizer article. Why they are statement triggers with transition
tables, and what their cost is: docs/design.md.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Columns, Statement, Table
from django.db.backends.utils import truncate_name
from django.db.migrations.exceptions import IrreversibleError

from embedsync.events import EventColumns, event_sql, row_event_sql, settings_for
from embedsync.path import watched_tables
from embedsync.sql import statement

logger = logging.getLogger("embedsync")

Level = Literal["statement", "row", "always"]
LEVELS: tuple[Level, ...] = ("statement", "row", "always")

OLD = "OLD TABLE AS old_rows"
NEW = "NEW TABLE AS new_rows"
TRANSITION_TABLES = {"INSERT": [NEW], "UPDATE": [OLD, NEW], "DELETE": [OLD], "TRUNCATE": []}
USES = ("keys", "identity", "values")  # of columns: see EventColumns
# PostgreSQL cuts names at 63 bytes; the longest suffix is "_99_truncate".
NAME_LENGTH = 51
FUNCTION = "embedsync_capture"


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


def in_schema(name: str, schema: str) -> str:
    """A statement about embedsync's own objects, for a quoted schema."""
    in_a_string = schema.replace("'", "''")
    return statement(name).replace("{schema}", schema).replace("{literal}", in_a_string)


def shortened(name: str, length: int) -> str:
    """A name of so many bytes at most, which is how PostgreSQL counts; Django counts letters."""
    letters = length
    while len((short := truncate_name(name, letters)).encode()) > length:
        letters -= 1
    return short


def source_options(sidecar: Any) -> Any:
    """The ``_meta`` of a sidecar's source, as of the migration that the sidecar comes from."""
    try:
        return sidecar._meta.get_field("source").remote_field.model._meta
    except FieldDoesNotExist:
        # makemigrations takes the relation away first where it removes the sidecar and something
        # else, its source say; Django makes it one operation where nothing stands in between.
        name = sidecar._meta.object_name
        raise IrreversibleError(
            f"This migration deleted {name} with another operation between its two halves, and"
            f" cannot make it again as it is written. Take RemoveField of {name}.source out of it;"
            f" if the source goes, too, put DeleteModel of {name} before that of the source; then"
            " migrate again."
        ) from None


@dataclass(frozen=True)
class Trigger:
    """One trigger as it has to be. ``table`` is quoted; ``body`` is that of its function.

    ``settings`` are what the function sets while it runs, as lines of SQL.
    """

    name: str
    table: str
    event: str
    arguments: tuple[str, ...]
    level: Level
    body: str
    settings: str

    @property
    def for_each_row(self) -> bool:
        return self.level != "statement" and self.event != "TRUNCATE"

    @property
    def function(self) -> str:
        """The name of its function. Another one, or another way to call it, has another name."""
        content = statement("trigger") + statement("function") + self.settings + self.body
        return f"{FUNCTION}_{blake2b(content.encode(), digest_size=8).hexdigest()}"

    def sql(self, schema: str, sidecar: str, quote_name: Any, quote_value: Any) -> str:
        """The statements that make it; ``schema`` and ``sidecar`` are quoted identifiers."""
        tables = [] if self.for_each_row else TRANSITION_TABLES[self.event]
        function = in_schema("function", schema).replace("{name}", self.function)
        made = statement("trigger").format(
            trigger=quote_name(self.name),
            event=self.event,
            table=self.table,
            referencing=f"REFERENCING {' '.join(tables)}\n" if tables else "",
            level="ROW" if self.for_each_row else "STATEMENT",
            sidecar=quote_value(sidecar),
            schema=schema,
            function=self.function,
            arguments=", ".join(map(quote_value, self.arguments)),
        )
        made = function.replace("{settings}", self.settings).replace("{body}", self.body) + made
        if self.level == "always":
            made += f"ALTER TABLE {self.table} ENABLE ALWAYS TRIGGER {quote_name(self.name)};\n"
        return made


class SyncTrigger(models.BaseConstraint):
    """The triggers of one sidecar on its source and on related tables, as a constraint.

    A constraint, because stock ``makemigrations`` writes, compares and removes constraints. It
    stands in the sidecar's ``Meta`` because the source may belong to somebody else.

    ``key`` names the sidecar in trigger, inbox and ledger; ``fields`` are the names, from the
    source on, whose change makes an event (``"title"``, ``"director__name"``); ``level`` is
    "statement", or "row" for triggers that run once for each row, or "always" for such that also
    do so where rows are replicated.
    """

    def __init__(
        self, *, key: str, fields: list[str], name: str, level: Level = "statement"
    ) -> None:
        self.key = key
        self.fields = list(fields)
        self.level = level
        super().__init__(name=name)

    @staticmethod
    def name_for(key: str) -> str:
        """A constraint name for a sidecar's key, short enough for the triggers made from it."""
        return shortened(f"{key.replace('.', '_')}_sync", NAME_LENGTH)

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        kwargs |= {"key": self.key, "fields": self.fields}
        if self.level != "statement":
            kwargs["level"] = self.level
        return path, args, kwargs

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SyncTrigger):
            return bool(self.deconstruct() == other.deconstruct())
        return NotImplemented

    def __repr__(self) -> str:
        return f"<SyncTrigger: {self.key} on {', '.join(self.fields)}>"

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        """Nothing for CREATE TABLE: the triggers are made after it."""
        self.create_sql(model, schema_editor)

    def create_sql(self, model: Any, schema_editor: Any) -> str:
        """Nothing now: writers wait from CREATE TRIGGER on, so it comes last in a migration."""
        try:
            triggers = TriggerStatement(self, model, schema_editor)
        except (FieldDoesNotExist, FieldError) as error:
            # Django may add a relation after what looks over it. After the migration the triggers
            # are found missing (triggers.py).
            logger.info("the triggers of %s are made after the migration: %s", self.key, error)
        else:
            schema_editor.deferred_sql.append(triggers)
        return ""

    def remove_sql(self, model: Any, schema_editor: Any) -> str:
        deferred = schema_editor.deferred_sql
        deferred[:] = [sql for sql in deferred if getattr(sql, "trigger", None) != self]
        schema = quoted_schema(schema_editor)
        sql = in_schema("drop_triggers", schema) + in_schema("drop_functions", schema)
        sql = sql.replace("{key}", schema_editor.quote_value(self.key))
        # Django's remove_constraint() reads % as the start of a parameter.
        return sql.replace("%", "%%")

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
        self.server = schema_editor.connection.pg_version
        self.watched = watched_tables(source_options(sidecar), trigger.fields)
        self.settings: list[str] = []
        self.identity_types: list[list[str]] = []
        parts: dict[str, Any] = {"sidecar": Table(sidecar._meta.db_table, self.quote_name)}
        for number, watched in enumerate(self.watched):
            table = watched.options.db_table
            parts[f"table{number}"] = Table(table, self.quote_name)
            keys, identity = (
                [field.rel_db_type(schema_editor.connection) for field in fields]
                for fields in (watched.keys, watched.options.pk_fields)
            )
            self.settings.append(settings_for(keys))
            self.identity_types.append(identity)
            uses = (watched.keys, watched.options.pk_fields, watched.columns.values())
            for name, fields in zip(USES, uses, strict=True):
                columns = [field.column for field in fields]
                parts[f"{name}{number}"] = Columns(table, columns, self.quote_name)
        super().__init__("", **parts)

    def triggers(self) -> Iterator[Trigger]:
        """The triggers under the names that tables and columns have now."""
        trigger = self.trigger
        for number, watched in enumerate(self.watched):
            parts: dict[str, Any] = {name: self.parts[f"{name}{number}"] for name in USES}
            columns = EventColumns(
                **{name: [*map(self.quote_name, part.columns)] for name, part in parts.items()},
                identity_types=self.identity_types[number],
                related=not watched.is_source,
                sidecar=self.quote_value(trigger.key),
                hop=self.quote_value(watched.lookup) if watched.lookup else None,
            )
            base = f"{trigger.name}_{number}" if number else trigger.name
            for event in watched.events:
                row = trigger.level != "statement"
                yield Trigger(
                    f"{base}_{event.lower()}",
                    str(self.parts[f"table{number}"]),
                    event,
                    (trigger.key, watched.lookup),
                    trigger.level,
                    (row_event_sql if row else event_sql)(event, columns, self.schema, self.server),
                    self.settings[number],
                )

    def __str__(self) -> str:
        source, sidecar = str(self.parts["table0"]), str(self.parts["sidecar"])
        triggers = list(self.triggers())
        names = {
            "key": self.quote_value(self.trigger.key),
            "schema": self.schema,
            "source": source,
            "sidecar": sidecar,
            "tables": ", ".join({self.quote_value(trigger.table): None for trigger in triggers}),
        }
        made = [
            trigger.sql(self.schema, sidecar, self.quote_name, self.quote_value)
            for trigger in triggers
        ]
        before, after = (
            statement(name).format(**names) for name in ("trigger_added", "nothing_to_fill")
        )
        # What belongs to them too, for tests that run without migrations.
        return "\n".join([in_schema("capture", self.schema), before, *made, after])
