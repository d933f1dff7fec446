"""``similar()`` on querysets, managers and instances."""

from typing import Any, Self, TypeVar, Unpack

from django.db import models

from embedsync.search import Choices, Searched, similar

M = TypeVar("M", bound=models.Model)


class EmbeddingQuerySet(models.QuerySet[M]):
    """A queryset with ``similar()``. Build your own manager from it: ``from_queryset()``."""

    def similar(self, query: Searched, **choices: Unpack[Choices]) -> Self:
        """The rows nearest to a text, an instance or a vector: see ``embedsync.similar()``."""
        found: Any = similar(self, query, **choices)
        rows: Self = found
        return rows


EmbeddingManager = models.Manager.from_queryset(EmbeddingQuerySet, "EmbeddingManager")


class EmbeddedModel(models.Model):
    """Mixin for a model whose rows are embedded: ``Model.objects.similar()``, ``row.similar()``."""

    objects: Any = EmbeddingManager()

    class Meta:
        abstract = True

    def similar(self, **choices: Unpack[Choices]) -> "models.QuerySet[Self]":
        """The other rows, nearest to this one first: see ``embedsync.similar()``."""
        rows: Any = type(self)._default_manager.using(self._state.db)
        return similar(rows, self, **choices)
