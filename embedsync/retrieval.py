"""Retrieval: the passages that are nearest in meaning to something, as prompts of models want."""

from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from django.db import models

if TYPE_CHECKING:
    from embedsync.search import PassageChoices, Searched

M = TypeVar("M", bound=models.Model)


class PassageQuerySet(models.QuerySet[M]):
    """Rows of a sidecar, with ``similar()``."""

    def similar(self, query: "Searched", **choices: "Unpack[PassageChoices]") -> Self:
        """The passages nearest to ``query``, nearest first: see ``embedsync.search``.

        Each has its ``.distance`` and its ``.source``; those whose row is gone, or does not meet
        the declaration's condition now, are left out. An instance's own passages are, too.
        """
        # Not above: a search needs the declarations, which need this.
        from embedsync.search import similar_passages

        found: Any = similar_passages(self, query, **choices)
        rows: Self = found
        return rows


PassageManager = models.Manager.from_queryset(PassageQuerySet, "PassageManager")
