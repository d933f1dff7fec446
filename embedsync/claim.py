"""A claim: rows that are leased to a worker, and what became of them."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

logger = logging.getLogger("embedsync")


@dataclass(frozen=True)
class Claim:
    """Rows of one sidecar that are leased to this worker: attempts by key, this one counted.

    ``filling`` says that a fill found them, rather than an event or a retry. ``hung`` are those in
    whose call their embedder may have hung.
    """

    key: str
    token: UUID
    attempts: dict[str, int]
    filling: bool = False
    hung: frozenset[str] = frozenset()

    @property
    def pks(self) -> list[str]:
        # In the order in which every worker locks; Python's order of str is that of COLLATE "C".
        return sorted(self.attempts)


@dataclass
class Written:
    """What one COMPLETE did: keys that got a vector, keys that are settled, and how many are not.

    Those are lost: no longer leased to this worker.
    """

    written: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    lost: int = 0


def claims(
    rows: Iterable[tuple[str, str, int]], token: UUID, hung: Collection[tuple[str, str]] = ()
) -> list[Claim]:
    """Leased rows (sidecar, key, attempts), by sidecar; ``hung`` are sidecars and keys, too."""
    by_sidecar: dict[str, dict[str, int]] = {}
    for key, pk, attempts in rows:
        by_sidecar.setdefault(key, {})[pk] = attempts
    return [
        Claim(key, token, attempts, hung=frozenset(pk for pk in attempts if (key, pk) in hung))
        for key, attempts in sorted(by_sidecar.items())
    ]


def tell_too_long(found: Iterable[Sequence[str]] | None) -> None:
    """Say in the log which sidecars have keys that are too long to be owed anything.

    By sidecar: how many, and the bytes of the longest. They are left out, and so have no vectors.
    """
    for key, keys, longest in found or ():
        said = "%s: %s rows are left out, their keys are too long: of up to %s bytes"
        logger.error(said, key, keys, longest, extra={"sidecar": key, "rows": int(keys)})
