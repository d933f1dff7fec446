"""From a declaration to a sidecar: the model beside the source that holds its vectors."""

import copy
import sys
from functools import cache
from typing import Any, Unpack

from django.apps import apps
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import models, router
from django.db.backends.utils import truncate_name
from django.db.models.base import ModelBase
from django.db.models.functions import Now
from django.db.models.signals import class_prepared

from embedsync.capture import SyncTrigger
from embedsync.conf import settings
from embedsync.index import index_for
from embedsync.path import Watched, watched_tables
from embedsync.retrieval import PassageManager
from embedsync.source import (
    Declaration,
    EmbeddingSource,
    MigrationDependency,
    Options,
    watched_names,
)
from embedsync.space import column

CUT_LENGTH = 25  # of an index's name before its ending; Django allows 30


class EmbeddingModelBase(ModelBase):
    """Gives a class that has an ``EmbeddingSource`` the columns, index and triggers of a sidecar.

    In the metaclass, so that the class has them from the beginning and stock ``makemigrations``
    finds them where it always looks.
    """

    def __new__(
        mcs, name: str, bases: tuple[type, ...], attrs: dict[str, Any], **kwargs: Any
    ) -> Any:
        source = attrs.get("source")
        if isinstance(source, EmbeddingSource):
            attrs = {**attrs, **mcs.sidecar_attrs(name, attrs, source)}
        return super().__new__(mcs, name, bases, attrs, **kwargs)

    @staticmethod
    def sidecar_attrs(name: str, attrs: dict[str, Any], source: EmbeddingSource) -> dict[str, Any]:
        meta = attrs.get("Meta", object)
        label = getattr(meta, "app_label", None)
        if label is None:
            config = apps.get_containing_app_config(attrs["__module__"])
            label = config.label if config else ""
        key = f"{label}.{name}".lower()
        declaration = source.declaration
        trigger = SyncTrigger(
            key=key,
            fields=watched_names(declaration, source.source),
            name=SyncTrigger.name_for(key),
            level=declaration.capture,
        )
        try:
            dimensions = (
                declaration.dimensions or settings.embedder(declaration.embedder).dimensions
            )
        except ImproperlyConfigured:
            dimensions = None  # embedsync.E002 says so before anything is written
        passage = {"passage": models.TextField(db_default="")} if declaration.chunks else {}
        cut = models.Index(
            fields=["ordinal"],
            condition=models.Q(cut=True),
            name=f"{truncate_name(key.replace('.', '_'), CUT_LENGTH)}_cut",
        )
        index = index_for(
            key, declaration.index, declaration.storage, declaration.distance, dimensions
        )
        return {
            **source.key,
            **passage,
            "pk": models.CompositePrimaryKey(*source.key, "ordinal"),
            "vector": column(declaration.storage, dimensions),
            "Meta": type(
                "Meta",
                (meta,),
                {
                    "indexes": [
                        *getattr(meta, "indexes", []),
                        *([index] if index else []),
                        cut,
                    ],
                    "constraints": [*getattr(meta, "constraints", []), trigger],
                },
            ),
        }


class EmbeddingModel(models.Model, metaclass=EmbeddingModelBase):
    """A sidecar: the vectors of a source's rows.

    ``source`` is the row, known by its key (``source_id``, or a column for each part of a composite
    one); ``ordinal`` its passage, from 0, whose text ``passage`` has where the declaration has
    chunks; ``vector`` ``(dimensions,)``; ``digest`` tells whether the text has changed since
    ``embedded_at``; ``cut`` says that the model has read the beginning of the text only.
    """

    ordinal = models.IntegerField(default=0)
    embedded_at = models.DateTimeField(db_default=Now())
    digest = models.BinaryField(max_length=16)
    cut = models.BooleanField(db_default=False)
    queue = MigrationDependency("embedsync.inbox")

    objects: Any = PassageManager()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return "/".join(map(str, self.pk))


class Embedding:
    """Declares, in a model's body, that its rows are embedded: see ``EmbeddingSource``.

    ``Movie.embedding.model`` is the sidecar, named ``MovieEmbedding``; ``movie.embedding`` is the
    row's sidecar row, read anew at each access, or None.
    """

    name: str
    model: type[EmbeddingModel]

    def __init__(self, *fields: str, **options: Unpack[Options]) -> None:
        self.declaration = Declaration(fields, **options)

    def contribute_to_class(self, cls: type[models.Model], name: str) -> None:
        self.name = name
        setattr(cls, name, self)

    def __get__(self, instance: models.Model | None, owner: type[models.Model]) -> Any:
        if instance is None:
            return self
        return (
            rows_of(self.model, instance._state.db)
            .filter(**key_of_row(self.model, instance))
            .first()
        )

    def attach(self, source: type[models.Model]) -> None:
        """Make the sidecar of one concrete model."""
        attribute = "".join(part.capitalize() for part in self.name.split("_"))
        name = f"{source.__name__}{attribute}"
        relation = EmbeddingSource(source)
        relation.declaration = self.declaration
        meta = type("Meta", (), {"app_label": source._meta.app_label})
        attrs = {
            "__module__": source.__module__,
            "__doc__": f"The vectors of {source._meta.label}.{self.name}.",
            "source": relation,
            "Meta": meta,
        }
        self.model = EmbeddingModelBase(name, (EmbeddingModel,), attrs)
        # Where a class of its name would stand, so that it can be imported, and querysets pickled.
        vars(sys.modules[source.__module__]).setdefault(name, self.model)


def declared(model: type[models.Model]) -> dict[str, Embedding]:
    """The declarations in a model's body and those of its abstract bases, by attribute.

    What a multi-table parent declares, or inherits, is that parent's own.
    """
    found: dict[str, Any] = {}
    parents = {base for parent in model._meta.all_parents for base in parent.__mro__}
    for base in model.__mro__:
        options = getattr(base, "_meta", None)
        if base is model or (base not in parents and (options is None or options.abstract)):
            for name, value in vars(base).items():
                found.setdefault(name, value)
    return {name: value for name, value in found.items() if isinstance(value, Embedding)}


def attach_all(sender: type[models.Model], **_: Any) -> None:
    """Make the sidecars of a model that has just been defined."""
    # What stands on a proxy is embedsync.E003. A migration's model, which Django calls __fake__,
    # has its sidecar in the migration.
    if sender._meta.proxy or sender.__module__ == "__fake__":
        return
    for name, embedding in declared(sender).items():
        own = copy.copy(embedding)  # an abstract base serves several children
        own.name = name
        setattr(sender, name, own)
        own.attach(sender)


class_prepared.connect(attach_all, dispatch_uid="embedsync.attach_all")


def add_dependencies() -> None:
    """Make the migrations of sidecars depend on those of the related models that they watch.

    When all models are loaded, because a reverse relation is not known before.
    """
    for sidecar in sidecars():
        known = {sidecar, source_of(sidecar)}
        for watched in watched_of(sidecar):
            # The table of a many-to-many field comes with the model that has the field.
            model = watched.options.auto_created or watched.options.model
            if model not in known:
                known.add(model)
                name = "watches_" + model._meta.label_lower.replace(".", "_")
                sidecar.add_to_class(name, MigrationDependency(model))


def watched_of(sidecar: type["EmbeddingModel"]) -> list[Watched]:
    """The tables whose changes concern a sidecar; its source's alone where a name leads nowhere."""
    source, declaration = source_of(sidecar), declaration_of(sidecar)
    try:
        return watched_tables(source._meta, declaration.watched)
    except FieldError:
        return watched_tables(source._meta, [])  # embedsync.E001 says so


def sidecars() -> list[type[EmbeddingModel]]:
    """All sidecars of the project."""
    return [
        model
        for model in apps.get_models()
        if issubclass(model, EmbeddingModel) and not model._meta.proxy
    ]


def sidecars_in(using: str) -> list[type[EmbeddingModel]]:
    """The sidecars of one database; one that is not managed is somebody else's to see to."""
    return [
        sidecar
        for sidecar in sidecars()
        if router.db_for_write(sidecar) == using and sidecar._meta.managed
    ]


def sidecars_of(model: type[models.Model]) -> list[type[EmbeddingModel]]:
    """The sidecars whose source is this model, its concrete model or one of its parents."""
    family = {model._meta.concrete_model, *model._meta.get_parent_list()}
    return [sidecar for sidecar in sidecars() if source_of(sidecar) in family]


def chosen_sidecar(model: type[models.Model], embedding: str | None) -> type[EmbeddingModel]:
    """The sidecar of a model that ``embedding`` names; where it is None the default or only one.

    Raises ``ValueError`` with the names to choose from.
    """
    candidates = sidecars_by_name(model)
    if not candidates:
        raise ValueError(
            f"{model._meta.label} has no embedding: declare one in its body, or a sidecar with an"
            " EmbeddingSource, then run makemigrations and migrate."
        )
    if embedding is None:
        preferred = [s for s in candidates.values() if declaration_of(s).default]
        only = preferred or list(candidates.values())
        if len(only) == 1:
            return only[0]
    elif embedding in candidates:
        return candidates[embedding]
    known = ", ".join(map(repr, sorted(candidates)))
    wrong = "has several embeddings" if embedding is None else f"has no embedding {embedding!r}"
    raise ValueError(
        f"{model._meta.label} {wrong}: choose one with embedding=, of {known}, or declare one of"
        " them with default=True."
    )


@cache
def sidecars_by_name(model: type[models.Model]) -> dict[str, type[EmbeddingModel]]:
    """The sidecars of a model by the attribute that declares them, or by their own name."""
    named = {sidecar.__name__: sidecar for sidecar in sidecars_of(model)}
    # A child's declaration hides that of its parent, as attributes do.
    for base in reversed(model.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Embedding) and hasattr(value, "model"):
                named.pop(value.model.__name__, None)
                named[name] = value.model
    return named


def has_source(sidecar: type[EmbeddingModel]) -> bool:
    """Whether a sidecar has an ``EmbeddingSource``; it is embedsync.E008 where it has none."""
    return any(isinstance(field, EmbeddingSource) for field in sidecar._meta.get_fields())


def relation_of(sidecar: type[EmbeddingModel]) -> Any:
    """The field of a sidecar that points to its source: an ``EmbeddingSource``."""
    options: Any = sidecar._meta
    return options.get_field("source")


def source_of(sidecar: type[EmbeddingModel]) -> type[models.Model]:
    """The source of a sidecar."""
    source: type[models.Model] = relation_of(sidecar).remote_field.model
    return source


def declaration_of(sidecar: type[EmbeddingModel]) -> Declaration:
    """The declaration of a sidecar."""
    declaration: Declaration = relation_of(sidecar).declaration
    return declaration


def key_fields(sidecar: type[EmbeddingModel]) -> list[tuple[Any, Any]]:
    """The fields of a sidecar that hold its source's key, each with the source's own."""
    relation = relation_of(sidecar)
    return list(zip(relation.local_related_fields, relation.foreign_related_fields, strict=True))


def key_of_row(sidecar: type[EmbeddingModel], row: models.Model) -> dict[str, Any]:
    """The key of a source's row, as the sidecar's fields have it."""
    return {ours.name: getattr(row, theirs.attname) for ours, theirs in key_fields(sidecar)}


def rows_of(sidecar: type[EmbeddingModel], using: str | None) -> Any:
    """The first vector of each row, past any manager of the application's."""
    return all_passages(sidecar, using).filter(ordinal=0)


def all_passages(sidecar: type[EmbeddingModel], using: str | None) -> Any:
    """All vectors, of which a row has several where its text is cut into passages."""
    return sidecar._base_manager.using(using)


def key_of(sidecar: type[EmbeddingModel]) -> str:
    """The name of a sidecar in triggers, inbox and ledger."""
    return sidecar._meta.label_lower
