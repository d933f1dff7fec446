"""A lane: the calls of one embedder, and the parts of claims that they are for."""

import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pgvector import HalfVector, Vector

from embedsync.claim import Claim
from embedsync.embedders.usage import tokens_of
from embedsync.passages import Passages, Rewritten
from embedsync.service import Asked, Embedded, Service


@dataclass(eq=False)
class Part:
    """Rows of a claim that are read, embedded and written together.

    One that failed before, or was there when a worker died, is ``alone``, so that one bad row harms
    one row. Its attempt is ``counted`` when its turn comes: a death shall count for the one in
    hand, and not for those that wait.
    """

    service: Service
    claim: Claim
    pks: list[str]
    alone: bool = False
    counted: bool = True
    claimed_at: float = field(default_factory=time.monotonic)
    rows: dict[str, Passages] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    unchanged: set[str] = field(default_factory=set)

    @property
    def changed(self) -> list[str]:
        """The rows of which something is to be written."""
        return [pk for pk in self.rows if pk not in self.unchanged]

    @property
    def wanted(self) -> dict[Asked, str]:
        """The texts that need a new vector."""
        return {
            (pk, ordinal): self.rows[pk].texts[ordinal]
            for pk in self.changed
            for ordinal in self.rows[pk].wanted.values()
        }

    def leave_to_budget(self) -> list[str]:
        """Take out the rows for which the embedder's budget has no room now; their keys."""
        if not self.service.budget.is_limited:
            return []
        wanted = {pk: set(self.rows[pk].wanted_texts) for pk in self.changed}
        every = {text for texts in wanted.values() for text in texts}
        paid = {text for text in every if self.service.recent.get(text) is not None}
        costs, seen = dict[str, int](), set(paid)
        for pk, texts in wanted.items():
            if new := texts - seen:
                costs[pk] = tokens_of(list(new))
                seen |= new
        if self.service.breaker.failures:
            # Of these only a probe is certain to be asked.
            costs = dict(list(costs.items())[:1])
        for pk in self.service.budget.grant(costs) if costs else ():
            paid |= wanted[pk]
        left = {pk for pk, texts in wanted.items() if not texts <= paid}
        for pk in left:
            del self.rows[pk]
        self.pks = [pk for pk in self.pks if pk not in left]
        return sorted(left)

    def ready(
        self, found: Embedded
    ) -> tuple[dict[str, tuple[bytes, HalfVector | Vector]], dict[str, Rewritten]]:
        """What can be written: of rows with one passage digest and vector, of others all passages.

        All passages of a row, or none.
        """
        vectors, several = {}, {}
        plain = self.service.chunks is None
        for pk in self.changed:
            row = self.rows[pk]
            if not all((pk, ordinal) in found.vectors for ordinal in row.wanted.values()):
                continue
            if plain and row.wanted:
                vectors[pk] = row.digests[0], found.vectors[pk, 0]
                if not row.is_plain:
                    several[pk] = Rewritten([], 1)  # what it has too many, since it had chunks
            else:
                several[pk] = row.rewritten({n: found.vectors[pk, n] for n in row.wanted.values()})
        return vectors, several


@dataclass(frozen=True)
class Settled:
    """What became of a part: how many rows are settled, which of them got a vector, which failed.

    ``failed`` has the error and the seconds until the next attempt: None for those that are parked.
    """

    part: Part
    rows: int
    embedded: list[str]
    failed: Mapping[str, tuple[str, float | None]]


class Lane:
    """The calls of one embedder: parts that wait, and those that are being embedded."""

    def __init__(self, alias: str, concurrency: int) -> None:
        self.waiting: deque[Part] = deque()
        self.running: dict[Future[Embedded], Part] = {}
        # Of a model that counts tokens, before texts are cut: it may take long, or hang.
        self.loading: tuple[Future[Exception | None], Service] | None = None
        self.moved_at = time.monotonic()  # when a call began or was answered
        self.suspected_at = 0.0  # when the last row began that may kill a worker
        self._concurrency = concurrency
        self._threads = ThreadPoolExecutor(concurrency, f"embedsync-{alias}")

    @property
    def parts(self) -> list[Part]:
        return [*self.waiting, *self.running.values()]

    @property
    def wants(self) -> bool:
        """Whether to claim more."""
        return not self.waiting and self.room > 0

    @property
    def holds_suspect(self) -> bool:
        """Whether a row is in hand that may have killed a worker."""
        return any(part.alone for part in self.running.values())

    @property
    def stuck_seconds(self) -> float:
        """For how long none of the calls has been answered."""
        return time.monotonic() - self.moved_at if self.running or self.loading else 0.0

    @property
    def room(self) -> int:
        """How many parts may begin: what is to follow is read while others are being embedded."""
        return 2 * self._concurrency - len(self.running)

    def next(self, *, suspect_elsewhere: bool) -> Part | None:
        """The next part, if it may begin now."""
        if self.loading or not self.waiting or self.room <= 0:
            return None
        if self.waiting[0].service.breaker.failures and not self.running:
            # Any of them: the first may be what makes the provider fail.
            self.waiting.rotate(-random.randrange(len(self.waiting)))  # noqa: S311
        first = self.waiting[0]
        if first.alone and suspect_elsewhere:
            return None
        in_doubt = first.alone or first.service.breaker.failures > 0
        if self.running and (in_doubt or self.holds_suspect):
            return None
        if first.alone:
            self.suspected_at = time.monotonic()
        return self.waiting.popleft()

    def begin(self, part: Part, texts: Mapping[Asked, str], is_left: Callable[[], bool]) -> None:
        """Have texts embedded in a thread of this lane, until ``is_left()``."""

        def stopped() -> bool:
            self.moved_at = time.monotonic()  # it is asked between two calls
            return is_left()

        self._note_begin()
        call = self._threads.submit(part.service.embed, texts, stopped, suspect=part.alone)
        self.running[call] = part

    def load(self, part: Part) -> None:
        """Have a part's model loaded in a thread of this lane; until then none begins."""
        self._note_begin()
        self.loading = self._threads.submit(part.service.load), part.service
        self.waiting.appendleft(part)

    def _note_begin(self) -> None:
        if not self.running:
            self.moved_at = time.monotonic()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
