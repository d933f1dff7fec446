"""The triggers that a database has, compared with those that it ought to have."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.apps import apps as django_apps
from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import connections, router

from embedsync.capture import (
    SyncTrigger,
    Trigger,
    TriggerStatement,
    in_schema,
    quoted_schema,
)

logger = logging.getLogger("embedsync")

# tgenabled of a trigger that fires as it is to, by its level.
ENABLED = {"statement": "O", "row": "O", "always": "A"}


INSTALLED = """
SELECT source::oid, name, key, source::text, arguments,
    -- Those of its partitions may each be set otherwise.
    (SELECT string_agg(DISTINCT tgenabled::text, '') FROM pg_trigger WHERE tgname = name
     AND (tgrelid = source OR tgrelid IN (SELECT relid FROM pg_partition_tree(source)))),
    for_each_row, function
FROM embedsync_trigger
"""


@dataclass(frozen=True)
class TriggerState:
    """One trigger, and how it is. ``table`` is as PostgreSQL writes it, quoted where need be.

    ``state`` is "installed", "outdated" (made for another declaration or other column names),
    "missing", "disabled", or "orphan": there, and of no sidecar of this project.
    """

    key: str
    table: str
    name: str
    state: str


class Installed(NamedTuple):
    """A trigger as the database has it. ``enabled`` are the ``tgenabled`` of all its partitions."""

    key: str
    table: str
    arguments: bytes
    enabled: str
    for_each_row: bool
    function: str


class Wanted(NamedTuple):
    """A trigger as it ought to be; ``oid`` is its table's, None where there is none."""

    oid: int | None
    table: str
    trigger: Trigger


# By table and name.
Triggers = dict[tuple[int | None, str], Installed]


def constraints(apps: Any) -> Iterator[tuple[Any, SyncTrigger]]:
    """The sidecars, and their triggers as a constraint."""
    for model in apps.get_models():
        for trigger in model._meta.constraints:
            if isinstance(trigger, SyncTrigger):
                yield model, trigger


def constraints_in(using: str, apps: Any) -> Iterator[tuple[Any, SyncTrigger]]:
    """Those of the sidecars whose tables are in a database, and are this project's to migrate."""
    quote_name = connections[using].ops.quote_name
    for model, trigger in constraints(apps):
        options = model._meta
        ours = options.managed and router.allow_migrate_model(using, model)
        if ours and has_relation(using, quote_name(options.db_table)):
            yield model, trigger


def has_relation(using: str, name: str) -> bool:
    """Whether a database has a table or view of this name, quoted where it needs that."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name])
        return bool(cursor.fetchone()[0])


def installed(using: str) -> Triggers:
    """All triggers of embedsync in a database."""
    if not has_relation(using, "embedsync_trigger"):
        return {}
    with connections[using].cursor() as cursor:
        cursor.execute(INSTALLED)
        return {(oid, name): Installed(*row) for oid, name, *row in cursor.fetchall()}


def trigger_states(using: str, apps: Any = django_apps) -> list[TriggerState]:
    """How each trigger of a database is, in the order of keys and tables.

    A declaration that does not fit its models is left out: the checks of models say why.
    """
    there = installed(using)
    states = []
    for model, constraint in constraints_in(using, apps):
        with suppress(FieldDoesNotExist, FieldError):
            wanted = wanted_triggers(connections[using], model, constraint)
            states += states_of(constraint.key, wanted, there)
    known = {constraint.key for _, constraint in constraints(apps)}
    states += [
        TriggerState(row.key, row.table, name, "orphan")
        for (_, name), row in there.items()
        if row.key not in known
    ]
    return sorted(states, key=lambda state: (state.key, state.table, state.name))


def wanted_triggers(connection: Any, model: Any, constraint: SyncTrigger) -> list[Wanted]:
    """The triggers of one sidecar."""
    statement = TriggerStatement(constraint, model, connection.schema_editor())
    triggers = list(statement.triggers())
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_regclass(name)::oid,"
            " coalesce(to_regclass(name)::text, array_to_string(parse_ident(name), '.'))"
            " FROM unnest(%s::text[]) AS name",
            [[trigger.table for trigger in triggers]],
        )
        tables = cursor.fetchall()
    return [
        Wanted(oid, table, trigger) for (oid, table), trigger in zip(tables, triggers, strict=True)
    ]


def states_of(key: str, wanted: list[Wanted], there: Triggers) -> list[TriggerState]:
    """The triggers of one sidecar, those included that are there and ought not to be."""
    others = {place: row.table for place, row in there.items() if row.key == key}
    states = []
    for oid, table, trigger in wanted:
        place = (oid, trigger.name)
        others.pop(place, None)
        states.append(TriggerState(key, table, trigger.name, state_of(there.get(place), trigger)))
    return states + [TriggerState(key, others[place], place[1], "outdated") for place in others]


def state_of(row: Installed | None, wanted: Trigger) -> str:
    if row is None:
        return "missing"
    if "D" in row.enabled:
        return "disabled"
    expected = b"".join(argument.encode() + b"\0" for argument in wanted.arguments)
    same = (
        bytes(row.arguments) == expected
        and row.enabled == ENABLED[wanted.level]
        and row.for_each_row == wanted.for_each_row
        and row.function == wanted.function
    )
    return "installed" if same else "outdated"


def renew_triggers(*, using: str, apps: Any = django_apps, **_: Any) -> None:
    """After a migration: make triggers anew that are missing, or that name what has been renamed.

    A migration may rename a column without a change of the declaration, in another app above all;
    and one that drops a sidecar's table leaves the functions of its triggers.
    ``apps`` are the models as they are in the database now.
    """
    connection: Any = connections[using]
    if connection.vendor != "postgresql":
        return
    there = installed(using)
    for model, constraint in constraints_in(using, apps):
        key = constraint.key
        try:
            wanted = wanted_triggers(connection, model, constraint)
        except (FieldDoesNotExist, FieldError) as error:
            logger.warning("the triggers of %s wait for its migration: %s", key, error)
            continue
        gone = sorted({table for oid, table, _ in wanted if oid is None})
        if gone:
            logger.warning("the triggers of %s wait for a table: %s", key, ", ".join(gone))
            continue
        # That somebody has disabled one is no reason: the checks tell of it.
        states = {state.state for state in states_of(key, wanted, there)}
        if states & {"missing", "outdated"}:
            with connection.schema_editor() as editor:
                # What the next statements use may have gone with the triggers.
                editor.execute(in_schema("capture", quoted_schema(editor)), params=None)
                editor.remove_constraint(model, constraint)
                editor.add_constraint(model, constraint)
    if has_relation(using, "embedsync_trigger"):
        with connection.schema_editor() as editor:
            editor.execute(in_schema("drop_functions", quoted_schema(editor)), params=None)
