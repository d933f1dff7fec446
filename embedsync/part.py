"""A part: rows of a claim that are read, embedded and written together, and what became of them."""

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from pgvector import HalfVector, Vector

from embedsync.breaker import jitter
from embedsync.claim import Claim
from embedsync.conf import settings
from embedsync.database import summary
from embedsync.embedders import UnansweredError
from embedsync.embedders.usage import CHARACTERS, tokens_of
from embedsync.passages import Passages, Rewritten
from embedsync.service import Asked, Call, Embedded, Service

CALLS_OF_A_PART = 8  # of the embedder, about, where texts are cut into passages


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
    moved_at: float = math.inf  # when its call began, or was last answered
    call: Call = field(default_factory=Call)
    rows: dict[str, Passages] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    unchanged: set[str] = field(default_factory=set)

    @property
    def has_hung(self) -> bool:
        """Whether its embedder may have hung in one of its texts."""
        return not self.claim.hung.isdisjoint(self.pks)

    @property
    def stuck_seconds(self) -> float:
        """For how long its call has not been answered."""
        return max(0.0, time.monotonic() - self.moved_at)

    def is_late(self, call: Future[Embedded]) -> bool:
        """Whether its call takes too long for a worker that ends, and no silence of the provider.

        Too slow for the time that a scheduler has for it, or it hangs: it goes alone, next time.
        """
        has_begun = self.moved_at < math.inf and not call.done()
        breaker = self.service.breaker
        return has_begun and (breaker.is_answering() or breaker.answered_at > self.moved_at)

    def told(self, silence: UnansweredError) -> str:
        """What to note of a call that was given up: due.sql knows by it what is to go alone."""
        if self.has_hung:
            return ""  # it is noted
        # A harmless text was not answered either.
        return f"UnavailableError: {silence}" if self.call.is_probing else summary(silence)

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

    def bytes_of(self, most: int) -> int:
        """How many bytes of text to read at once: ``most``, or a few calls where they are cut.

        What is being embedded is lost when a worker dies, and a page of long texts may take hours.
        """
        service = self.service
        if service.chunks is None:
            return most
        call = service.embedder.batch_size * service.chunks.size * CHARACTERS
        return min(most, CALLS_OF_A_PART * call)

    def delays(self, pks: list[str], longest: float | None) -> dict[str, float | None]:
        """For how many seconds rows that failed wait; None for those that are parked.

        ``longest`` is the longest wait of rows that are not to blame.
        """
        found = dict[str, float | None]()
        for pk in pks:
            attempts = self.claim.attempts[pk]
            backoff = min(settings.backoff * 2 ** (attempts - 1), settings.max_backoff)
            parked = attempts >= settings.max_attempts and longest is None
            found[pk] = None if parked else jitter(backoff if longest is None else longest)
        return found

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
