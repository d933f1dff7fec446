"""From a declaration to a sidecar: the model beside the source that holds its vectors."""

import copy
import sys
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.migrations.writer import MigrationWriter
from django.db.models.base import ModelBase
from django.db.models.functions import Now
from django.db.models.signals import class_prepared
from pgvector.django import HalfVectorField

from embedsync.capture import SyncTrigger
from embedsync.conf import settings
from embedsync.index import DeferredHnswIndex


@dataclass(frozen=True)
class Declaration:
    """What of a source's row is embedded, which rows, and by what."""

    fields: tuple[str, ...]
    template: str | None = None
    condition: models.Q | None = None
    embedder: str = "default"

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in self.fields):
            raise TypeError('Name the fields one by one: Embedding("title", "body").')
        if self.condition is not None and not isinstance(self.condition, models.Q):
            raise TypeError(f"condition= is a Q object, not {type(self.condition).__name__}.")

    @property
    def condition_fields(self) -> list[str]:
        """The names of fields and relations that the condition looks at, in order, each once."""
        if self.condition is None:
            return []
        names: dict[str, None] = {}
        for node in self.condition.flatten():
            if isinstance(node, models.Q):
                lookups = [child[0] for child in node.children if isinstance(child, tuple)]
                names.update(dict.fromkeys(lookup.split("__")[0] for lookup in lookups))
            elif isinstance(node, models.F):
                name: str = node.name  # type: ignore[attr-defined]
                names[name.split("__")[0]] = None
        return list(names)

    @property
    def watched(self) -> list[str]:
        """The fields whose change makes an event: the embedded ones and the condition's."""
        return list(dict.fromkeys([*self.fields, *self.condition_fields]))

    @property
    def fingerprint(self) -> str:
        """Changes with anything that decides which rows are embedded and what their text is."""
        # As a migration would have it: sets sorted, and no object's address in it.
        condition = self.condition and MigrationWriter.serialize(self.condition)[0]
        parts = (self.fields, self.template, condition)
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


class EmbeddingSource(models.ForeignKey):  # type: ignore[type-arg]
    """The relation from a sidecar to its source, and what of the source is embedded.

    The source notices nothing: no constraint, no cascade, no reverse accessor. Migrations see a
    plain ``ForeignKey``.

    ``to`` is a model or its label; ``fields`` name its fields; ``template`` is a ``str.format``
    text over them; only rows that meet ``condition`` have a vector; ``embedder`` is an alias in
    ``EMBEDSYNC_EMBEDDERS``.
    """

    def __init__(
        self,
        to: Any,
        *fields: str,
        template: str | None = None,
        condition: models.Q | None = None,
        embedder: str = "default",
    ) -> None:
        self.declaration = Declaration(fields, template, condition, embedder)
        super().__init__(
            to,
            on_delete=models.DO_NOTHING,
            db_constraint=False,
            db_index=False,
            related_name="+",
            related_query_name="%(class)s",
        )

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.ForeignKey", args, kwargs

    def clone(self) -> Any:
        _, _, args, kwargs = self.deconstruct()
        return models.ForeignKey(*args, **kwargs)


class MigrationDependency(models.ForeignObject):  # type: ignore[type-arg]
    """A relation without a column, which makes migrations depend on those of ``to``.

    Django's autodetector takes dependencies from relations and from nothing else.
    """

    def __init__(self, to: Any) -> None:
        super().__init__(
            to,
            on_delete=models.DO_NOTHING,
            from_fields=["source"],
            to_fields=[None],  # type: ignore[list-item]  # the primary key, as ForeignKey says it
            related_name="+",
            null=True,
            editable=False,
            serialize=False,
        )

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, {"to": kwargs["to"]}

    def check(self, **kwargs: Any) -> list[Any]:
        """Nothing to check: it joins nothing."""
        return []


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
        trigger = SyncTrigger(
            key=key, fields=source.declaration.watched, name=SyncTrigger.name_for(key)
        )
        index = DeferredHnswIndex(
            name=DeferredHnswIndex.name_for(key),
            fields=["vector"],
            opclasses=["halfvec_cosine_ops"],
            m=16,
            ef_construction=128,  # 64 finds less on real search texts (docs/benchmarks.md)
        )
        try:
            dimensions = settings.embedder(source.declaration.embedder).dimensions
        except ImproperlyConfigured:
            dimensions = None  # embedsync.E002 says so before anything is written
        return {
            "vector": HalfVectorField(dimensions=dimensions),
            "Meta": type(
                "Meta",
                (meta,),
                {
                    "indexes": [*getattr(meta, "indexes", []), index],
                    "constraints": [*getattr(meta, "constraints", []), trigger],
                },
            ),
        }


class EmbeddingModel(models.Model, metaclass=EmbeddingModelBase):
    """A sidecar: the vectors of a source's rows.

    ``source`` is the row; ``ordinal`` its passage, from 0; ``vector`` ``(dimensions,)``;
    ``digest`` tells whether the text has changed since ``embedded_at``.
    """

    source_id: Any
    pk = models.CompositePrimaryKey("source_id", "ordinal")
    ordinal = models.IntegerField(default=0)
    embedded_at = models.DateTimeField(db_default=Now())
    digest = models.BinaryField(max_length=16)
    queue = MigrationDependency("embedsync.inbox")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.source_id}/{self.ordinal}"


class Embedding:
    """Declares, in a model's body, that its rows are embedded: see ``EmbeddingSource``.

    ``Movie.embedding.model`` is the sidecar, named ``MovieEmbedding``; ``movie.embedding`` is the
    row's sidecar row, read anew at each access, or None.
    """

    name: str
    model: type[EmbeddingModel]

    def __init__(
        self,
        *fields: str,
        template: str | None = None,
        condition: models.Q | None = None,
        embedder: str = "default",
    ) -> None:
        self.declaration = Declaration(fields, template, condition, embedder)

    def contribute_to_class(self, cls: type[models.Model], name: str) -> None:
        self.name = name
        setattr(cls, name, self)

    def __get__(self, instance: models.Model | None, owner: type[models.Model]) -> Any:
        if instance is None:
            return self
        return rows_of(self.model, instance._state.db).filter(source=instance.pk).first()

    def attach(self, source: type[models.Model]) -> None:
        """Make the sidecar of one concrete model."""
        attribute = "".join(part.capitalize() for part in self.name.split("_"))
        name = f"{source.__name__}{attribute}"
        declaration = self.declaration
        relation = EmbeddingSource(
            source,
            *declaration.fields,
            template=declaration.template,
            condition=declaration.condition,
            embedder=declaration.embedder,
        )
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
    """The declarations in a model's body and those of its abstract bases, by attribute."""
    found: dict[str, Any] = {}
    for base in model.__mro__:
        options = getattr(base, "_meta", None)
        if base is model or options is None or options.abstract:
            for name, value in vars(base).items():
                found.setdefault(name, value)
    return {name: value for name, value in found.items() if isinstance(value, Embedding)}


def attach_all(sender: type[models.Model], **_: Any) -> None:
    """Make the sidecars of a model that has just been defined."""
    # What stands on a proxy or a multi-table child is embedsync.E003. A migration's model, which
    # Django calls __fake__, has its sidecar in the migration.
    if sender._meta.proxy or sender._meta.parents or sender.__module__ == "__fake__":
        return
    for name, embedding in declared(sender).items():
        own = copy.copy(embedding)  # an abstract base serves several children
        own.name = name
        setattr(sender, name, own)
        own.attach(sender)


class_prepared.connect(attach_all, dispatch_uid="embedsync.attach_all")


def sidecars() -> list[type[EmbeddingModel]]:
    """All sidecars of the project."""
    return [model for model in apps.get_models() if issubclass(model, EmbeddingModel)]


def sidecars_of(model: type[models.Model]) -> list[type[EmbeddingModel]]:
    """The sidecars whose source is this model, its concrete model or one of its parents."""
    family = {model._meta.concrete_model, *model._meta.get_parent_list()}
    return [sidecar for sidecar in sidecars() if source_of(sidecar) in family]


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


def rows_of(sidecar: type[EmbeddingModel], using: str | None) -> Any:
    """The first vector of each row, past any manager of the application's."""
    return sidecar._base_manager.using(using).filter(ordinal=0)


def key_of(sidecar: type[EmbeddingModel]) -> str:
    """The name of a sidecar in triggers, inbox and ledger."""
    return sidecar._meta.label_lower
