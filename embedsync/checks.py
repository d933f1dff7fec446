"""System checks: what is wrong with a declaration, its settings or its database, and the cure."""

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import DatabaseError, connections, models, router
from django.db.models import functions
from django.utils import timezone
from django.utils.module_loading import import_string

from embedsync.conf import settings
from embedsync.declaration import (
    Declaration,
    EmbeddingModel,
    EmbeddingSource,
    declaration_of,
    declared,
    key_of,
    relation_of,
    sidecars,
    source_of,
)
from embedsync.embedders import Embedder, get_embedder
from embedsync.operations import MINIMUM, RequireVector
from embedsync.text import template_names

MINIMUM_POSTGRESQL = 160000
FROZEN_SECONDS = 3600  # a datetime this near to now was computed, not written down
KNOBS = {
    "EMBEDSYNC_BATCH_SIZE": ("batch_size", 1, 100_000),
    "EMBEDSYNC_LEASE": ("lease", 0.1, 86_400),
    "EMBEDSYNC_POLL_INTERVAL": ("poll_interval", 0.001, 3600),
    "EMBEDSYNC_MAX_ATTEMPTS": ("max_attempts", 1, 1000),
    "EMBEDSYNC_BACKOFF": ("backoff", 0, 86_400),
    "EMBEDSYNC_MAX_BACKOFF": ("max_backoff", 0, 86_400),
    "EMBEDSYNC_EF_SEARCH": ("ef_search", 1, 1000),
}


@register(Tags.models)
def check_declarations(**_: Any) -> list[CheckMessage]:
    """All that can be told without asking a database."""
    found = [*misplaced(), *managers_without_similar(), *wrong_knobs()]
    for sidecar in sidecars():
        if not has_source(sidecar):
            found.append(
                Error(
                    f"{sidecar._meta.label} has no source.",
                    hint='Add: source = EmbeddingSource("app.Model", "field", ...).',
                    obj=sidecar,
                    id="embedsync.E008",
                )
            )
        # Where the model is still a label there is no such model, and fields.E300 says so.
        elif not isinstance(relation_of(sidecar).remote_field.model, str):
            found += [*wrong_source(sidecar), *wrong_text(sidecar), *wrong_embedder(sidecar)]
            found += [*wrong_condition(sidecar), *wrong_database(sidecar)]
    return found


def has_source(sidecar: type[EmbeddingModel]) -> bool:
    return any(isinstance(field, EmbeddingSource) for field in sidecar._meta.get_fields())


def misplaced() -> Iterator[CheckMessage]:
    """Declarations in the body of a proxy or of a multi-table child."""
    for model in apps.get_models():
        if not (model._meta.proxy or model._meta.parents):
            continue
        for name in declared(model).keys() & vars(model).keys():
            kind = "a proxy" if model._meta.proxy else "a child of a multi-table model"
            yield Error(
                f"{model._meta.label}.{name} is declared on {kind}, which has no table of its own"
                " with all its columns.",
                hint="Declare it on the model that has the table"
                f" ({next(iter(model._meta.all_parents)).__name__}).",
                obj=model,
                id="embedsync.E003",
            )


def managers_without_similar() -> Iterator[CheckMessage]:
    """Models whose own manager lacks the method that their declaration is for."""
    for model in apps.get_models():
        if declared(model) and not hasattr(model._default_manager, "similar"):
            yield Warning(
                f"{model._meta.label} declares an embedding and its manager has no similar().",
                hint="Subclass EmbeddedModel, build your manager with"
                " Manager.from_queryset(EmbeddingQuerySet), or use embedsync.similar().",
                obj=model,
                id="embedsync.W017",
            )


def wrong_knobs() -> Iterator[CheckMessage]:
    """Settings that are no numbers, or out of their range."""
    for name, (attribute, least, most) in KNOBS.items():
        value = getattr(settings, attribute)
        whole = isinstance(least, int) and attribute not in {"backoff", "max_backoff"}
        if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
            kind = "whole number" if whole else "number"
            yield Error(
                f"{name} is {value!r}.",
                hint=f"Set it to a {kind} from {least} to {most}, or leave it out.",
                id="embedsync.E009",
            )


def wrong_source(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """A source whose rows one column does not identify."""
    source = source_of(sidecar)
    if source._meta.proxy or source._meta.parents:
        yield Error(
            f"The source of {sidecar._meta.label}, {source._meta.label}, is a proxy or a child of a"
            " multi-table model.",
            hint="Name the model that has the table.",
            obj=sidecar,
            id="embedsync.E003",
        )
    elif isinstance(source._meta.pk, models.CompositePrimaryKey):
        yield Error(
            f"{source._meta.label}, the source of {sidecar._meta.label}, has a composite primary"
            " key, which embedsync does not support yet.",
            hint="Embed a model whose primary key is one column.",
            obj=sidecar,
            id="embedsync.E004",
        )


def wrong_text(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """Fields and template of a declaration."""
    declaration, source = declaration_of(sidecar), source_of(sidecar)
    if not declaration.fields:
        yield Error(
            f"{sidecar._meta.label} embeds no field.",
            hint='Name at least one: Embedding("title").',
            obj=sidecar,
            id="embedsync.E001",
        )
    for name in declaration.fields:
        yield from unknown_field(sidecar, source, name, "embeds")
    if declaration.template is None:
        return
    try:
        missing = template_names(declaration.template) - set(declaration.fields)
    except ValueError as error:
        yield Error(
            f"The template of {sidecar._meta.label} is not right: {error}.",
            hint='Write field names in braces, "{title}. {body}", and {{ for a brace.',
            obj=sidecar,
            id="embedsync.E007",
        )
        return
    if missing:
        yield Error(
            f"The template of {sidecar._meta.label} uses {', '.join(sorted(missing))}, which it"
            " does not embed.",
            hint="Name in the declaration all fields that the template uses.",
            obj=sidecar,
            id="embedsync.E007",
        )


def unknown_field(
    sidecar: type[EmbeddingModel], source: type[models.Model], name: str, does: str
) -> Iterator[CheckMessage]:
    """A name that is no column of the source."""
    try:
        column = getattr(source._meta.get_field(name), "column", None)
    except FieldDoesNotExist:
        column = None
    if column is None:
        columns = ", ".join(field.name for field in source._meta.concrete_fields)
        related = " Fields of related rows are not supported yet." if "__" in name else ""
        yield Error(
            f"{sidecar._meta.label} {does} {name!r}, which is no column of {source._meta.label}.",
            hint=f"Choose of: {columns}.{related}",
            obj=sidecar,
            id="embedsync.E001",
        )


def wrong_embedder(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """An embedder that is unknown, incomplete or cannot be imported."""
    alias = declaration_of(sidecar).embedder
    try:
        config = settings.embedder(alias)
        backend = import_string(config.backend)
        if not (isinstance(backend, type) and issubclass(backend, Embedder)):
            raise ImproperlyConfigured(f"{config.backend} is no subclass of Embedder.")
        get_embedder(alias)  # MODEL and OPTIONS; the model itself is loaded when it is used
    except (ImproperlyConfigured, ImportError) as error:
        yield Error(
            f"The embedder of {sidecar._meta.label} cannot be used: {error}",
            hint="EMBEDSYNC_EMBEDDERS has the shape of CACHES:"
            f' {{{alias!r}: {{"BACKEND": "path.to.Class", "MODEL": "...", "DIMENSIONS": 384}}}}.',
            obj=sidecar,
            id="embedsync.E002",
        )


def wrong_condition(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """A condition that no trigger can follow."""
    declaration, source = declaration_of(sidecar), source_of(sidecar)
    for name in related_lookups(source, declaration):
        yield Error(
            f"The condition of {sidecar._meta.label} looks at related rows ({name}).",
            hint="Their changes make no event. Use columns of the source itself.",
            obj=sidecar,
            id="embedsync.E010",
        )
    for name in declaration.condition_fields:
        yield from unknown_field(sidecar, source, name, "has a condition on")
    for value in condition_values(declaration):
        now = timezone.now() if timezone.is_aware(value) else datetime.datetime.now()
        if abs((value - now).total_seconds()) < FROZEN_SECONDS:
            yield Error(
                f"The condition of {sidecar._meta.label} holds the moment at which this process"
                " started.",
                hint="Use django.db.models.functions.Now(), which is looked at in each query.",
                obj=sidecar,
                id="embedsync.E011",
            )
    if declaration.condition is not None and any(
        isinstance(node, functions.Now) for node in declaration.condition.flatten()
    ):
        yield Warning(
            f"The condition of {sidecar._meta.label} looks at the clock.",
            hint="A search heeds it at once, but time passing makes no event: a row that comes to"
            " meet it gets its vector when it next changes.",
            obj=sidecar,
            id="embedsync.W012",
        )


def related_lookups(source: type[models.Model], declaration: Declaration) -> Iterator[str]:
    """The lookups of a condition that leave the source's table."""
    if declaration.condition is None:
        return
    for node in declaration.condition.flatten():
        children: Sequence[Any] = node.children if isinstance(node, models.Q) else ()
        lookups = [child[0] for child in children if isinstance(child, tuple)]
        if isinstance(node, models.F):
            lookups.append(node.name)  # type: ignore[attr-defined]
        for name in lookups:
            first, *rest = name.split("__")
            try:
                field = source._meta.get_field(first)
            except FieldDoesNotExist:
                continue  # E001 says so
            target = field.related_model if field.is_relation else None
            known = {f.name for f in target._meta.get_fields()} if isinstance(target, type) else ()
            if rest and rest[0] in known:
                yield name


def condition_values(declaration: Declaration) -> list[datetime.datetime]:
    """The datetimes in a condition."""
    if declaration.condition is None:
        return []
    values = []
    for node in declaration.condition.flatten():
        if isinstance(node, models.Q):
            values += [child[1] for child in node.children if isinstance(child, tuple)]
        elif isinstance(node, models.Value):
            values.append(node.value)
    return [value for value in values if isinstance(value, datetime.datetime)]


def wrong_database(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """A sidecar that is not beside its source, or not in PostgreSQL."""
    source = source_of(sidecar)
    here, there = router.db_for_write(sidecar), router.db_for_write(source)
    if here != there:
        yield Error(
            f"{sidecar._meta.label} is written to database {here!r} and its source"
            f" {source._meta.label} to {there!r}.",
            hint="Triggers and searches need both in one database: change DATABASE_ROUTERS.",
            obj=sidecar,
            id="embedsync.E005",
        )
    elif connections[here].vendor != "postgresql":
        yield Error(
            f"{sidecar._meta.label} is in database {here!r}, which is"
            f" {connections[here].display_name}.",
            hint="embedsync needs PostgreSQL 16 or newer with pgvector 0.8 or newer: set ENGINE to"
            " django.db.backends.postgresql.",
            obj=sidecar,
            id="embedsync.E006",
        )


@register(Tags.database)
def check_databases(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """What only the database can tell; run by ``migrate`` and ``check --database``."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        here = [sidecar for sidecar in sidecars() if router.db_for_write(sidecar) == alias]
        if connection.vendor != "postgresql" or not here:
            continue
        try:
            found += [*wrong_server(connection), *wrong_tables(connection, here)]
        except DatabaseError as error:
            found.append(
                Warning(
                    f"Database {alias!r} could not be looked at: {error}",
                    hint="Other commands will fail for the same reason.",
                    id="embedsync.W016",
                )
            )
    return found


def wrong_server(connection: Any) -> Iterator[CheckMessage]:
    """PostgreSQL or pgvector missing or too old."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version_num')::int, default_version"
            " FROM (SELECT 1) AS one"
            " LEFT JOIN pg_available_extensions ON name = 'vector'"
        )
        server, available = cursor.fetchone()
    if server < MINIMUM_POSTGRESQL:
        yield Error(
            f"Database {connection.alias!r} is PostgreSQL {server // 10000}.",
            hint="embedsync needs PostgreSQL 16 or newer.",
            id="embedsync.E013",
        )
    installed = RequireVector.version(connection)
    if installed is None and available is None:
        yield Error(
            f"The server of database {connection.alias!r} does not have the extension vector.",
            hint="Install pgvector 0.8 or newer on the server: github.com/pgvector/pgvector.",
            id="embedsync.E014",
        )
    elif installed is not None and installed < MINIMUM:
        yield Error(
            f"Database {connection.alias!r} has pgvector {'.'.join(map(str, installed))}.",
            hint="embedsync needs 0.8 or newer. Install it and run: ALTER EXTENSION vector UPDATE;",
            id="embedsync.E014",
        )


def wrong_tables(connection: Any, here: list[type[EmbeddingModel]]) -> Iterator[CheckMessage]:
    """Sources that are no tables, or whose primary key is none in the database."""
    for sidecar in here:
        source = source_of(sidecar)._meta
        if isinstance(source.pk, models.CompositePrimaryKey):
            continue
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT c.relkind, EXISTS (SELECT FROM pg_index i JOIN pg_attribute a"
                " ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
                " WHERE i.indrelid = c.oid AND i.indisunique AND i.indnkeyatts = 1"
                " AND i.indpred IS NULL AND a.attname = %s AND a.attnotnull)"
                " FROM pg_class c JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = %s"
                " WHERE c.oid = to_regclass(%s)",
                [
                    source.pk.column,
                    source.pk.column,
                    connection.ops.quote_name(source.db_table),
                ],
            )
            row = cursor.fetchone()
        if row is None:
            continue  # a migration is yet to make the table or the column
        kind, unique = row
        if kind not in ("r", "p") or not unique:
            what = "is no table" if kind not in ("r", "p") else "has no primary key"
            yield Error(
                f"{source.db_table}, the source of {key_of(sidecar)}, {what} in database"
                f" {connection.alias!r}.",
                hint=f"embedsync needs a table with a unique key on {source.pk.column!r}:"
                f" ALTER TABLE {source.db_table} ADD PRIMARY KEY ({source.pk.column}).",
                obj=sidecar,
                id="embedsync.E015",
            )
