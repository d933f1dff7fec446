"""What a worker takes on: retries, events and pages of a fill, each with its share of a batch."""

import logging
from collections.abc import Callable

from django.db import DatabaseError, OperationalError

from embedsync.claim import Claim
from embedsync.database import QUERY_CANCELED, TOO_LONG, sqlstate
from embedsync.declaration import EmbeddingModel
from embedsync.queue import Queue
from embedsync.service import Service
from embedsync.signals import tell_failed

logger = logging.getLogger("embedsync")

WORKERS_DIED = "The worker died while it held this row."  # as due.sql has it

RETRIED_AT_ONCE = 20  # rows, which go one by one, and wait in the hands of this worker meanwhile

GiveUp = Callable[[type[EmbeddingModel], Exception], None]


class Intake:
    """Takes work for ``services``, which are those of the worker, by key.

    ``give_up`` is called for a sidecar that cannot be served. ``unfilled`` are the sidecars whose
    fill has not ended; ``behind`` says that there was more to do than one batch holds.
    """

    def __init__(self, queue: Queue, services: dict[str, Service], give_up: GiveUp) -> None:
        self.queue = queue
        self.services = services
        self.give_up = give_up
        self.unfilled: set[str] = set()
        self.behind = True
        self._share = 1  # of the rows asked for that are claimed at a time

    def take(
        self, claims: list[Claim], ready: list[str], size: int, retried: list[str] | None = None
    ) -> int:
        """Take about ``size`` rows of the sidecars ``ready`` into ``claims``.

        Of rows that are to be tried again a few, and of the sidecars ``retried`` only. Less for a
        while where a timeout of this role has ended a statement.

        Returns how many events and rows moved.
        """
        try:
            moved = self._take(claims, ready, max(1, size // self._share), retried)
        except OperationalError as error:
            if sqlstate(error) != QUERY_CANCELED or self._share >= size:
                raise
            logger.warning("a claim took too long, the next is smaller: %s", error)
            self._share = min(self._share * 4, size)
            return 1
        if moved:
            self._share = max(1, self._share // 2)
        return moved

    def _take(
        self, claims: list[Claim], ready: list[str], size: int, retried: list[str] | None
    ) -> int:

        def room() -> int:
            return size - sum(len(claim.attempts) for claim in claims)

        events, rare, due = self.queue.peek(list(self.services), ready, retried)
        truncated, hops = self.queue.rare(list(self.services)) if rare else ([], [])
        self.unfilled |= set(truncated)
        expanded = self._expand(hops)
        ready = [key for key in ready if key in self.services]  # some may just have been given up
        # A share for retries and one for the fill, however many events come in.
        if due or expanded:
            claims += self._due(ready, max(1, size // 4), retried=False)
        late = size - room()
        if due:
            again = [key for key in ready if retried is None or key in retried]
            claims += self._due(again, min(size, RETRIED_AT_ONCE), retried=True)
        unfilled = sorted(self.unfilled.intersection(ready))
        reserve = size // 4 if unfilled else 0
        picked = 0
        if events:
            picked, folded = self.queue.fold(ready, max(1, room() - reserve))
            claims += folded
        if late >= size // 4 and room() > reserve:
            claims += self._due(ready, room() - reserve, retried=False)
        for key in unfilled:
            if room() <= 0:
                break
            picked += self._fill(key, room(), claims)
        self.behind = room() <= 0 or picked >= size
        return len(truncated) + expanded + picked + size - room()

    def _due(self, ready: list[str], limit: int, *, retried: bool) -> list[Claim]:
        claims = self.queue.due(ready, limit, retried=retried)
        for key, pk, attempts in self.queue.parked:
            about = {"sidecar": key, "source_pk": pk, "attempts": attempts}
            logger.error("%s %s: parked, %s", key, pk, WORKERS_DIED, extra=about)
            tell_failed(self.services[key].sidecar, self.queue.using, pk, WORKERS_DIED, attempts)
        return claims

    def _fill(self, key: str, asked: int, claims: list[Claim]) -> int:
        """Take a page of a fill. Returns how many rows it had."""
        sidecar = self.services[key].sidecar
        try:
            page, filling = self.queue.fill(sidecar, asked)
        except OperationalError as error:
            if sqlstate(error) not in TOO_LONG:
                raise
            logger.warning("%s: a page of its fill took too long: %s", key, error)
            return 0
        except DatabaseError as error:
            self.give_up(sidecar, error)
            return 0
        claims += filling
        if page < asked:
            self.unfilled.discard(key)
        return page

    def _expand(self, hops: list[tuple[str, str]]) -> int:
        """Expand events of related rows. Returns how many events and rows moved."""
        moved = 0
        for key, hop in hops:
            if key not in self.services:
                continue
            sidecar = self.services[key].sidecar
            try:
                moved += self.queue.expand(sidecar, hop)
            except OperationalError as error:
                if sqlstate(error) not in TOO_LONG:
                    raise
                logger.warning("%s: related rows took too long to find: %s", key, error)
                if sqlstate(error) == QUERY_CANCELED:
                    self.queue.hurry()
            except DatabaseError as error:
                self.give_up(sidecar, error)
        return moved
