"""The source of a sidecar: what of its rows is embedded, and the relation that leads to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from typing import Any, TypedDict, Unpack

from django.apps import apps
from django.apps.config import MODELS_MODULE_NAME
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import models
from django.db.migrations.writer import MigrationWriter
from django.utils.module_loading import module_has_submodule

from embedsync.capture import LEVELS, Level
from embedsync.chunks import Chunks
from embedsync.index import DEFAULT, HNSW, IVFFlat, Kind
from embedsync.space import DISTANCES, STORAGES, Distance, Storage

# What a sidecar's copy of a key's column does not take over.
COLUMN_OPTIONS = {
    "primary_key", "db_column", "default", "db_default", "unique", "auto_now", "auto_now_add"
}  # fmt: skip
DEPENDENCY_PATH = "embedsync.source.MigrationDependency"
NO_FIELD = "-"
INTEGERS = (models.BigIntegerField, models.SmallIntegerField, models.IntegerField)


class Options(TypedDict, total=False):
    """What ``Embedding`` and ``EmbeddingSource`` take by name: see ``Declaration``."""

    template: str | None
    text: str | None
    watch: Sequence[str]
    condition: models.Q | None
    embedder: str
    capture: Level
    default: bool
    chunks: Chunks | None
    index: Kind | None
    storage: Storage
    dimensions: int | None
    distance: Distance


@dataclass(frozen=True)
class Declaration:
    """What of a source's row is embedded, which rows, and by what.

    The text of a row comes from ``fields``, names of the source's columns and of related ones
    (``"title"``, ``"genres__name"``), through ``template``, a ``str.format`` text over them; or
    from the model's method ``text``, which looks at the columns ``watch``. Only rows that meet
    ``condition`` have a vector. ``embedder`` is an alias in ``EMBEDSYNC_EMBEDDERS``. ``capture``
    is the kind of trigger: "statement", "row" or "always" (docs/operations.md). ``default`` makes
    it the one of several declarations that is searched where none is named. ``chunks`` cuts
    the text into passages, each with a vector of its own; without it the text is one.

    Vectors are stored as ``storage`` says, "vector" (4 bytes a component), "halfvec" (2), or "bit":
    halfvec with an index of one bit a component; ``index`` is an ``HNSW``, an ``IVFFlat`` or None;
    ``distance`` is "cosine", "inner_product" or "l2" (docs/indexes.md). Of the embedder's vectors
    the first ``dimensions`` components are kept, brought to length 1 again; None keeps them all.
    """

    fields: tuple[str, ...]
    template: str | None = None
    text: str | None = None
    watch: Sequence[str] = ()
    condition: models.Q | None = None
    embedder: str = "default"
    capture: Level = "statement"
    default: bool = False
    chunks: Chunks | None = None
    index: Kind | None = DEFAULT
    storage: Storage = "halfvec"
    dimensions: int | None = None
    distance: Distance = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.watch, str) or not all(
            isinstance(name, str) for name in (*self.fields, *self.watch)
        ):
            raise TypeError('Name the fields one by one: Embedding("title", "body").')
        if self.condition is not None and not isinstance(self.condition, models.Q):
            raise TypeError(f"condition= is a Q object, not {type(self.condition).__name__}.")
        if self.capture not in LEVELS:
            raise TypeError(f"capture= is one of {', '.join(LEVELS)}, not {self.capture!r}.")
        if self.chunks is not None and not isinstance(self.chunks, Chunks):
            raise TypeError(f"chunks= is Chunks(size=200, overlap=20), say, not {self.chunks!r}.")
        if not isinstance(self.index, HNSW | IVFFlat | None):
            raise TypeError(f"index= is HNSW(), IVFFlat() or None, not {self.index!r}.")
        if self.storage not in STORAGES:
            raise TypeError(f"storage= is one of {', '.join(STORAGES)}, not {self.storage!r}.")
        if self.distance not in DISTANCES:
            raise TypeError(f"distance= is one of {', '.join(DISTANCES)}, not {self.distance!r}.")
        if self.dimensions is not None and (
            type(self.dimensions) is not int or self.dimensions < 1
        ):
            raise TypeError(f"dimensions= is a whole number above 0, not {self.dimensions!r}.")

    @property
    def lookups(self) -> list[str]:
        """The names in the condition, lookups included (``"year__gte"``), in order, each once."""
        if self.condition is None:
            return []
        names: dict[str, None] = {}
        for node in self.condition.flatten():
            if isinstance(node, models.Q):
                found = [child[0] for child in node.children if isinstance(child, tuple)]
                names.update(dict.fromkeys(found))
            elif isinstance(node, models.F):
                name: str = node.name  # type: ignore[attr-defined]
                names[name] = None
        return list(names)

    @property
    def watched(self) -> list[str]:
        """The names whose change makes an event: of the text's columns and the condition's."""
        return list(dict.fromkeys([*self.fields, *self.watch, *self.lookups]))

    @property
    def fingerprint(self) -> str:
        """Changes with anything declared that decides which rows are embedded, and of what text.

        But for the embedder, and for the body of a method that makes the text.
        """
        # As a migration would have it: sets sorted, and no object's address in it.
        condition = self.condition and MigrationWriter.serialize(self.condition)[0]
        more = filter(None, [self.text, self.chunks, self.dimensions])
        parts = (self.fields, self.template, condition, *more)
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


class MigrationDependency(models.ForeignObject):  # type: ignore[type-arg]
    """A relation without a column, which makes migrations depend on those of ``to``.

    Django's autodetector takes dependencies from relations and from nothing else. It names no
    field of ``to``: else a migration that alters this field would alter a column here, too.
    """

    def __init__(self, to: Any) -> None:
        super().__init__(
            to,
            on_delete=models.DO_NOTHING,
            from_fields=[NO_FIELD],
            to_fields=[NO_FIELD],
            related_name="+",
            null=True,
            editable=False,
            serialize=False,
        )

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, DEPENDENCY_PATH, args, {"to": kwargs["to"]}

    def resolve_related_fields(self) -> list[Any]:
        """None: Django asks for them when it deletes what a row of ``to`` belongs to."""
        return []

    def check(self, **kwargs: Any) -> list[Any]:
        """Nothing to check: it joins nothing."""
        return []


class EmbeddingSource(models.ForeignObject):  # type: ignore[type-arg]
    """The relation from a sidecar to its source, and what of the source is embedded.

    The sidecar repeats the columns of the source's key: the source notices nothing, no constraint,
    no cascade, no reverse accessor, and a key may have several columns. Migrations see a
    ``MigrationDependency``. ``to`` is a model or its label; the rest is ``Declaration``'s.
    """

    def __init__(self, to: Any, *fields: str, **options: Unpack[Options]) -> None:
        self.declaration = Declaration(fields, **options)
        self.source = loaded(to)
        self.key = key_columns(self.source)
        super().__init__(
            to,
            on_delete=models.DO_NOTHING,
            from_fields=list(self.key),
            to_fields=[part.name for part in parts_of(self.source)] or ["pk"],
            related_name="+",
            related_query_name="%(class)s",
            serialize=False,  # fixtures have its columns
        )

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, DEPENDENCY_PATH, args, {"to": kwargs["to"]}

    def clone(self) -> Any:
        return MigrationDependency(self.deconstruct()[3]["to"])


def loaded(model: Any) -> Any:
    """A model that may be given by its label; None where there is none, or it cannot be loaded yet.

    Its app's models are imported if need be: the sidecar needs the source's key.
    """
    if not isinstance(model, str):
        return model
    try:
        label, name = model.split(".")
        config = apps.get_app_config(label)
        if module_has_submodule(config.module, MODELS_MODULE_NAME):
            import_module(f"{config.name}.{MODELS_MODULE_NAME}")
        return apps.get_registered_model(label, name)
    except (LookupError, ValueError):
        return None


def parts_of(model: Any) -> list[Any]:
    """The fields of a model's primary key; none where the model is not known."""
    return [] if model is None else list(model._meta.pk_fields)


def key_columns(model: Any) -> dict[str, Any]:
    """The fields with which a sidecar repeats its source's key, by name."""
    parts = parts_of(model)
    if len(parts) > 1:
        return {f"source_{part.attname}": column_of(part) for part in parts}
    return {"source_id": column_of(parts[0]) if parts else models.BigIntegerField()}


def column_of(part: Any) -> Any:
    """A field of the type of a key's column, which is not a key itself."""
    while part.is_relation:
        target = loaded(part.remote_field.model)
        if target is None:
            raise ImproperlyConfigured(
                f"The primary key {part.model._meta.label}.{part.name} refers to"
                f" {part.remote_field.model}, which is not loaded yet: define it before."
            )
        part = target._meta.get_field(part.to_fields[0] or target._meta.pk.name)
    kind = type(part)
    if isinstance(part, models.fields.AutoFieldMixin):
        return next(base for base in kind.__mro__ if base in INTEGERS)()
    _, _, args, kwargs = part.deconstruct()
    kept = {name: value for name, value in kwargs.items() if name not in COLUMN_OPTIONS}
    return kind(*args, **kept)


def watched_names(declaration: Declaration, model: Any) -> list[str]:
    """What a declaration watches, for a migration: a column's name without the condition's lookup.

    What leads over a relation stays as it is, because the related model may not be loaded yet.
    """
    names: dict[str, None] = {}
    for name in declaration.watched:
        first = name.split("__")[0]
        try:
            plain = model is not None and not model._meta.get_field(first).is_relation
        except FieldDoesNotExist:
            plain = False
        names[first if plain else name] = None
    return list(names)
