"""Checks of declarations and settings: all that can be told without asking a database."""

import datetime
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.cache import caches
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import connections, models, router
from django.db.models import functions
from django.db.models.sql import Query
from django.utils import timezone
from django.utils.module_loading import import_string

from embedsync.capture import SyncTrigger
from embedsync.conf import settings
from embedsync.declaration import (
    EmbeddingModel,
    declaration_of,
    declared,
    has_source,
    key_of,
    relation_of,
    sidecars,
    sidecars_by_name,
    source_of,
)
from embedsync.embedders import Embedder, get_embedder
from embedsync.path import follow
from embedsync.source import Declaration
from embedsync.text import template_names

FROZEN_SECONDS = 3600  # a datetime this near to now was computed, not written down
KNOBS = {
    "EMBEDSYNC_BATCH_SIZE": ("batch_size", 1, 100_000),
    "EMBEDSYNC_BATCH_BYTES": ("batch_bytes", 1, 2**40),
    "EMBEDSYNC_CONCURRENCY": ("concurrency", 1, 1_000),
    "EMBEDSYNC_LEASE": ("lease", 0.1, 86_400),
    "EMBEDSYNC_GRACE": ("grace", 0.0, 86_400),
    "EMBEDSYNC_POLL_INTERVAL": ("poll_interval", 0.001, 3600),
    "EMBEDSYNC_MAX_ATTEMPTS": ("max_attempts", 1, 1000),
    "EMBEDSYNC_BACKOFF": ("backoff", 0.0, 86_400),
    "EMBEDSYNC_MAX_BACKOFF": ("max_backoff", 0.0, 86_400),
    "EMBEDSYNC_PROBE_INTERVAL": ("probe_interval", 0.1, 86_400),
    "EMBEDSYNC_EF_SEARCH": ("ef_search", 1, 1000),
    "EMBEDSYNC_QUERY_CACHE_SECONDS": ("query_cache_seconds", 0.0, 10**9),
}

QUERIES = (models.QuerySet, models.Subquery, Query)


@register(Tags.models)
def check_declarations(**_: Any) -> list[CheckMessage]:
    """All that can be told without asking a database."""
    found = [*misplaced(), *managers_without_similar(), *wrong_knobs(), *several_defaults()]
    found += same_names()
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
        elif not any(
            isinstance(one, SyncTrigger) and one.key == key_of(sidecar)
            for one in sidecar._meta.constraints
        ):
            found.append(
                Error(
                    f"{sidecar._meta.label} has the source of another class, and no triggers.",
                    hint="Write source = EmbeddingSource(...) in its body: none is handed down.",
                    obj=sidecar,
                    id="embedsync.E035",
                )
            )
        # Where the model is still a label there is no such model, and fields.E300 says so.
        elif not isinstance(relation_of(sidecar).remote_field.model, str):
            found += [*wrong_source(sidecar), *wrong_text(sidecar), *wrong_embedder(sidecar)]
            found += [*wrong_condition(sidecar), *wrong_database(sidecar), *taken_name(sidecar)]
    return found


def misplaced() -> Iterator[CheckMessage]:
    """Declarations in the body of a proxy."""
    for model in apps.get_models():
        if not model._meta.proxy:
            continue
        for name in declared(model).keys() & vars(model).keys():
            yield Error(
                f"{model._meta.label}.{name} is declared on a proxy, which has no table.",
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
        whole = isinstance(least, int)
        if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
            kind = "whole number" if whole else "number"
            yield Error(
                f"{name} is {value!r}.",
                hint=f"Set it to a {kind} from {least} to {most}, or leave it out.",
                id="embedsync.E009",
            )
    alias = settings.query_cache
    if alias is not None and alias not in caches.settings:
        yield Error(
            f"EMBEDSYNC_QUERY_CACHE is {alias!r}, and CACHES has no such alias.",
            hint=f"Name one of {', '.join(map(repr, caches.settings))}, or None for no cache.",
            id="embedsync.E009",
        )


def several_defaults() -> Iterator[CheckMessage]:
    """Models with more than one declaration that is to be searched where none is named."""
    for model in apps.get_models():
        named = sidecars_by_name(model)
        names = [name for name, sidecar in named.items() if is_default(sidecar)]
        if len(names) > 1:
            several = ", ".join(names)
            yield Error(
                f"{model._meta.label} has several embeddings with default=True: {several}.",
                hint="Leave it at one of them.",
                obj=model,
                id="embedsync.E025",
            )


def same_names() -> Iterator[CheckMessage]:
    """Sidecars of one name in several apps: a search of their source could mean any of them."""
    known: dict[tuple[Any, str], type[EmbeddingModel]] = {}
    for sidecar in sidecars():
        if not has_source(sidecar) or isinstance(relation_of(sidecar).remote_field.model, str):
            continue
        source = source_of(sidecar)._meta
        root = source.concrete_model, sidecar._meta.model_name or ""
        first = known.setdefault(root, sidecar)
        if first is not sidecar:
            yield Error(
                f"{first._meta.label} and {sidecar._meta.label} have the same source and the same"
                " name: searches of it cannot tell them apart.",
                hint="Give one of the classes another name.",
                obj=sidecar,
                id="embedsync.E034",
            )


def is_default(sidecar: type[EmbeddingModel]) -> bool:
    return has_source(sidecar) and declaration_of(sidecar).default


def wrong_source(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """A source that has no table, or whose key came to light too late."""
    source = source_of(sidecar)
    if source._meta.proxy:
        yield Error(
            f"The source of {sidecar._meta.label}, {source._meta.label}, is a proxy.",
            hint="Name the model that has the table.",
            obj=sidecar,
            id="embedsync.E003",
        )
    elif relation_of(sidecar).source is None:
        yield Error(
            f"{source._meta.label}, the source of {sidecar._meta.label}, could not be loaded when"
            " its label was read, because its models import yours.",
            hint=f"Import {source.__name__} and write EmbeddingSource({source.__name__}, ...).",
            obj=sidecar,
            id="embedsync.E004",
        )


def wrong_text(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """Where a declaration's text comes from."""
    declaration = declaration_of(sidecar)
    if declaration.text is not None or declaration.watch:
        yield from wrong_method(sidecar, declaration)
    elif not declaration.fields:
        yield Error(
            f"{sidecar._meta.label} embeds no field.",
            hint='Name at least one: Embedding("title").',
            obj=sidecar,
            id="embedsync.E001",
        )
    for name in (*declaration.fields, *declaration.watch):
        yield from unknown_field(sidecar, name, "embeds", plain=True)
    if declaration.template is not None:
        yield from wrong_template(sidecar, declaration.template)


def taken_name(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """A source that has a field of the name that a search gives to the passage it has found."""
    source: Any = source_of(sidecar)
    # A field, a method or a property.
    if declaration_of(sidecar).chunks is not None and hasattr(source, "passage"):
        yield Error(
            f"{sidecar._meta.label} has chunks, and {source._meta.label} something named passage.",
            hint="A search gives each row the passage it has found under this name: rename it (the"
            " column of a field may stay, with db_column).",
            obj=sidecar,
            id="embedsync.E028",
        )


def wrong_method(sidecar: type[EmbeddingModel], declaration: Declaration) -> Iterator[CheckMessage]:
    """A text that a method makes."""
    source, name = source_of(sidecar), declaration.text
    if name is None or declaration.fields or declaration.template is not None:
        wrong = "has watch= without text=" if name is None else "has fields or a template and text="
    elif not declaration.watch:
        wrong = f"has text={name!r} and no watch=, so that no change would make an event"
    elif not callable(getattr(source, name, None)):
        wrong = f"has text={name!r}, which is no method of {source._meta.label}"
    else:
        return
    yield Error(
        f"{sidecar._meta.label} {wrong}.",
        hint='Name fields, Embedding("title"), or a method and all columns that it looks at:'
        ' Embedding(text="as_text", watch=["title", "director__name"]).',
        obj=sidecar,
        id="embedsync.E018",
    )


def wrong_template(sidecar: type[EmbeddingModel], template: str) -> Iterator[CheckMessage]:
    """A template that cannot be filled."""
    try:
        missing = template_names(template) - set(declaration_of(sidecar).fields)
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
    sidecar: type[EmbeddingModel], name: str, does: str, *, plain: bool = False
) -> Iterator[CheckMessage]:
    """A name that leads to no column; ``plain`` where it may not end in a lookup."""
    source = source_of(sidecar)
    try:
        path = follow(source._meta, name)
        if not (plain and path.rest):
            return
        why = f"{'__'.join(path.rest)} is no field"
    except FieldError as error:
        why = str(error).rstrip(".")
    columns = ", ".join(field.name for field in source._meta.concrete_fields)
    yield Error(
        f"{sidecar._meta.label} {does} {name!r}, which is no column of {source._meta.label} or of"
        f" a related model: {why}.",
        hint=f"Choose of: {columns}; or of a related model, as in a filter: relation__field.",
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
    for name in declaration.lookups:
        wrong = list(unknown_field(sidecar, name, "has a condition on"))
        yield from wrong
        if not wrong and follow(source._meta, name).many:
            yield Error(
                f"The condition of {sidecar._meta.label} looks at {name}, of which a row may have"
                " several.",
                hint="Use columns of the source itself, or of a related row of which there is one.",
                obj=sidecar,
                id="embedsync.E010",
            )
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
    if looks_elsewhere(declaration):
        yield Error(
            f"The condition of {sidecar._meta.label} contains a query of its own.",
            hint="No trigger can follow what it looks at. Follow relations by name instead:"
            " Q(author__active=True), not Q(author__in=Author.objects.filter(active=True)).",
            obj=sidecar,
            id="embedsync.E024",
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


def looks_elsewhere(declaration: Declaration) -> bool:
    """Whether a condition has a subquery, or a queryset as a value, in it."""
    if declaration.condition is None:
        return False
    for node in declaration.condition.flatten():
        children = node.children if isinstance(node, models.Q) else [node]
        values = [child[1] if isinstance(child, tuple) else child for child in children]
        if any(isinstance(value, QUERIES) for value in values):
            return True
    return False


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
