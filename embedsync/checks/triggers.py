"""Checks of the triggers that a database has, and of changes that they cannot see."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from django.core.checks import CheckMessage, Warning
from django.db.migrations.loader import MigrationLoader

from embedsync.declaration import (
    EmbeddingModel,
    declaration_of,
    key_of,
    source_of,
    watched_of,
)
from embedsync.triggers import TriggerState, has_relation, trigger_states

COMPARE = "compare all rows: manage.py embed_sweep --repair."
# Each table with its partitions and inheritance children, and with what it is one of itself.
FAMILIES = """
WITH RECURSIVE watched AS (
    SELECT name, to_regclass(name)::oid AS root FROM unnest(%s::text[]) AS name
), below AS (
    SELECT root, root AS member FROM watched
    UNION SELECT root, inhrelid FROM below JOIN pg_inherits ON inhparent = member
), above AS (
    SELECT root, root AS member FROM watched
    UNION SELECT root, inhparent FROM above JOIN pg_inherits ON inhrelid = member
)
SELECT name, root::regclass::text, relkind = 'p',
    EXISTS (SELECT FROM pg_inherits WHERE inhparent = root),
    EXISTS (SELECT FROM pg_inherits WHERE inhrelid = root),
    EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid IN (
        SELECT member FROM below WHERE below.root = watched.root
        UNION SELECT member FROM above WHERE above.root = watched.root))
FROM watched JOIN pg_class ON pg_class.oid = root
"""


class Family(NamedTuple):
    """A watched table. ``children`` may be partitions; ``is_child`` of another table."""

    table: str
    partitioned: bool
    children: bool
    is_child: bool
    replicated: bool


def wrong_triggers(connection: Any, here: Sequence[type[EmbeddingModel]]) -> list[CheckMessage]:
    """What is wrong with the triggers of a database that has embedsync's tables."""
    if not has_relation(connection.alias, "embedsync_inbox"):
        return []
    families = families_of(connection, here)
    states = trigger_states(connection.alias)
    found = [
        *not_as_wanted(connection, here, states),
        *disabled(connection, here, states),
        *orphans(connection, states),
    ]
    for sidecar in here:
        for table in tables_of(sidecar):
            if table in families:
                found += [*unseen_parts(sidecar, families[table])]
                found += [*unseen_replication(sidecar, families[table])]
    return found


def tables_of(sidecar: type[EmbeddingModel]) -> list[str]:
    """The tables whose changes concern a sidecar, each once."""
    return list(dict.fromkeys(watched.options.db_table for watched in watched_of(sidecar)))


def families_of(connection: Any, here: Sequence[type[EmbeddingModel]]) -> dict[str, Family]:
    """The watched tables that are there, by the name that their model gives them."""
    names = {
        connection.ops.quote_name(table): table for sidecar in here for table in tables_of(sidecar)
    }
    with connection.cursor() as cursor:
        cursor.execute(FAMILIES, [list(names)])
        return {names[name]: Family(*row) for name, *row in cursor.fetchall()}


def unmigrated(connection: Any) -> set[str]:
    """The apps that have migrations which have not run."""
    loader = MigrationLoader(connection)
    return {app for app, name in loader.graph.nodes if (app, name) not in loader.applied_migrations}


def apps_of(sidecar: type[EmbeddingModel]) -> set[str]:
    """The apps whose migrations decide a sidecar's triggers."""
    models = [sidecar, source_of(sidecar), *(w.options.model for w in watched_of(sidecar))]
    return {"embedsync", *(model._meta.app_label for model in models)}


def by_table(states: Iterable[TriggerState]) -> str:
    """Triggers and their tables, for a message."""
    tables: dict[str, list[str]] = {}
    for state in states:
        tables.setdefault(state.table, []).append(state.name)
    return "; ".join(f"{', '.join(names)} on {table}" for table, names in tables.items())


def not_as_wanted(
    connection: Any, here: Sequence[type[EmbeddingModel]], states: list[TriggerState]
) -> Iterator[CheckMessage]:
    """Triggers that are missing or outdated, unless a migration is still to see to them."""
    wrong = [state for state in states if state.state in ("missing", "outdated")]
    waiting = unmigrated(connection) if wrong else set()
    for sidecar in here:
        mine = [state for state in wrong if state.key == key_of(sidecar)]
        if not mine or apps_of(sidecar) & waiting:
            continue
        listed = [
            f"{word}: {by_table(found)}"
            for word in ("missing", "outdated")
            if (found := [state for state in mine if state.state == word])
        ]
        yield Warning(
            f"Triggers of {key_of(sidecar)} in database {connection.alias!r} are not as they should"
            f" be. {'. '.join(listed)}. Until they are, changes there may not reach the vectors.",
            hint="Run makemigrations and migrate: it makes the triggers anew, and workers then"
            " compare all rows. If they stay missing, see manage.py embed_status.",
            obj=sidecar,
            id="embedsync.W019",
        )


def disabled(
    connection: Any, here: Sequence[type[EmbeddingModel]], states: list[TriggerState]
) -> Iterator[CheckMessage]:
    """Triggers that somebody has switched off."""
    quote = connection.ops.quote_name
    for sidecar in here:
        key = key_of(sidecar)
        mine = [state for state in states if state.key == key and state.state == "disabled"]
        if not mine:
            continue
        enable = "ENABLE ALWAYS" if declaration_of(sidecar).capture == "always" else "ENABLE"
        cure = [f"ALTER TABLE {s.table} {enable} TRIGGER {quote(s.name)};" for s in mine]
        yield Warning(
            f"Triggers of {key} in database {connection.alias!r} are disabled: {by_table(mine)}."
            " Changes there do not reach the vectors.",
            hint=f"Run in the database: {' '.join(cure)} Then {COMPARE}",
            obj=sidecar,
            id="embedsync.W020",
        )


def orphans(connection: Any, states: list[TriggerState]) -> Iterator[CheckMessage]:
    """Triggers of sidecars that this project does not have, and that no migration will drop."""
    lost = [state for state in states if state.state == "orphan"]
    waiting = unmigrated(connection) if lost else set()
    quote = connection.ops.quote_name
    for key in sorted({state.key for state in lost}):
        if key.split(".")[0] in waiting:
            continue
        mine = [state for state in lost if state.key == key]
        cure = [f"DROP TRIGGER {quote(state.name)} ON {state.table};" for state in mine]
        yield Warning(
            f"Database {connection.alias!r} has triggers of {key}, which is no sidecar of this"
            f" project: {by_table(mine)}. Their events wait for ever.",
            hint=f"Unless another project shares the database, run in it: {' '.join(cure)}",
            id="embedsync.W021",
        )


def unseen_parts(sidecar: type[EmbeddingModel], family: Family) -> Iterator[CheckMessage]:
    """Tables that are written to by way of other tables, without a trigger's notice."""
    table, level = family.table, declaration_of(sidecar).capture
    by_row = f'Declare capture="row" for {key_of(sidecar)}, then run makemigrations and migrate.'
    if family.children and not family.partitioned:
        what = f"is written directly into an inheritance child of {table}"
        if level != "statement":
            what = f"changes in the inheritance children of {table}"
        # PostgreSQL inherits no triggers, and a row trigger runs for the rows of its own table.
        hint = f'Write by way of {table}, with capture="statement"; or now and then {COMPARE}'
    elif level == "statement" and family.partitioned:
        what, hint = f"is written directly into a partition of {table}", by_row
    elif level == "statement" and family.is_child:
        what, hint = f"is written into {table} by way of the table that it is a part of", by_row
    else:
        return
    yield Warning(
        f"{key_of(sidecar)} does not hear of what {what}.",
        hint=hint,
        obj=sidecar,
        id="embedsync.W022",
    )


def unseen_replication(sidecar: type[EmbeddingModel], family: Family) -> Iterator[CheckMessage]:
    """Tables that are filled by replication, which ordinary triggers sleep through."""
    if family.replicated and declaration_of(sidecar).capture != "always":
        yield Warning(
            f"{key_of(sidecar)} does not hear of what logical replication writes into"
            f" {family.table}.",
            hint=f'Declare capture="always" for {key_of(sidecar)}, then run makemigrations and'
            " migrate.",
            obj=sidecar,
            id="embedsync.W023",
        )
