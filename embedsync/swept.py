"""What sweeps find, as people and programs read it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from embedsync.declaration import EmbeddingModel
from embedsync.words import plural

EXAMPLES = 10
DRIFT = ("missing", "stale", "orphaned")
KINDS = (*DRIFT, "waiting", "parked")


@dataclass(frozen=True)
class Swept:
    """What the sweep of one sidecar has found, from its first page on.

    ``missing`` are rows with text and no vector, ``stale`` rows whose vector is not that of their
    text and embedder now, ``orphaned`` vectors of rows that are gone, excluded or blank: together
    the ``drift``. Rows that workers have still to see to are ``waiting`` or ``parked`` instead.
    ``examples`` are some keys of each. ``resumed`` is how many rows an earlier run had compared.
    """

    sidecar: str
    source: str
    compared: int = 0
    missing: int = 0
    stale: int = 0
    orphaned: int = 0
    waiting: int = 0
    parked: int = 0
    enqueued: int = 0
    purged: int = 0
    seconds: float = 0.0
    examples: dict[str, list[str]] = field(default_factory=dict)
    finished: bool = False
    resumed: int = 0
    source_is_gone: bool = False
    error: str = ""

    @property
    def drift(self) -> int:
        return self.missing + self.stale + self.orphaned

    @property
    def ok(self) -> bool:
        """Whether nothing is left to be done: no error, and no drift that was only reported."""
        return not self.error and self.drift == self.enqueued + self.purged

    def plus(self, kinds: dict[str, str], **more: int) -> Self:
        """With the rows of a page: those that are not in step, by key."""
        counts, examples = dict(more), {kind: list(keys) for kind, keys in self.examples.items()}
        for key, kind in kinds.items():
            counts[kind] = counts.get(kind, 0) + 1
            if len(examples.setdefault(kind, [])) < EXAMPLES:
                examples[kind].append(key)
        sums = {name: getattr(self, name) + count for name, count in counts.items()}
        return replace(self, examples=examples, **sums)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {**asdict(self), "drift": self.drift, "ok": self.ok}

    def __str__(self) -> str:
        if self.source_is_gone:
            left = f"{plural(self.orphaned - self.purged, 'vector')} left"
            done = f"{plural(self.purged, 'vector')} removed" if self.purged else left
            return f"{self.sidecar}: the table of its source {self.source} is gone; {done}"
        counts = ", ".join(f"{getattr(self, kind):,} {kind}" for kind in KINDS)
        return f"{self.sidecar}: {plural(self.compared)} compared in {self.seconds:.1f} s: {counts}"


def report(
    using: str, chosen: Sequence[type[EmbeddingModel]], found: Sequence[Swept]
) -> dict[str, Any]:
    """What sweeps have found, for ``json.dumps``."""
    labels = {swept.sidecar for swept in found}
    not_begun = [s._meta.label for s in chosen if s._meta.label not in labels]
    return {
        "database": using,
        "ok": all(swept.ok for swept in found),
        "finished": not not_begun and all(swept.finished for swept in found),
        "drift": sum(swept.drift for swept in found),
        "enqueued": sum(swept.enqueued for swept in found),
        "sidecars": [swept.as_json() for swept in found],
        "not_begun": not_begun,
    }
