"""The work in hand: parts of claims on their way through read, embed and write.

While some are being embedded, in threads, the worker's own thread reads the next and writes the
last. Only that thread talks to the database.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, ProgrammingError

from embedsync import state
from embedsync.claim import Claim
from embedsync.conf import settings
from embedsync.database import QUERY_CANCELED, TOO_LONG, has_failed, sqlstate, summary
from embedsync.declaration import EmbeddingModel, declaration_of, key_of
from embedsync.embedders import RefusedError, UnansweredError, UnavailableError
from embedsync.lane import Lane
from embedsync.part import Part, Settled
from embedsync.passages import passages_of
from embedsync.queue import Queue
from embedsync.service import Asked, Embedded, Service, halves
from embedsync.text import read

logger = logging.getLogger("embedsync")

LATE = UnansweredError("no answer until the worker had to end")
HUNG_SECONDS = 540.0  # of a call; a supervisor gives up on the worker later (docs/deployment.md)


class Pipeline:
    """What a worker has in hand, in a lane for each embedder.

    ``claims`` are those of which something is left, for the lease keeper. ``is_over`` says that the
    worker is to end, ``give_up`` that a sidecar cannot be served; ``settled`` is told what became
    of each part, after the transaction.
    """

    def __init__(
        self,
        queue: Queue,
        services: Mapping[str, Service],
        concurrency: int,
        *,
        is_over: Callable[[], bool],
        give_up: Callable[[type[EmbeddingModel], Exception], None],
        settled: Callable[[Settled], None],
    ) -> None:
        self.queue = queue
        self.services = services
        self.concurrency = concurrency
        self.claims: list[Claim] = []
        self.lost = 0
        self._advanced_at = time.monotonic()
        self.has_abandoned = False  # calls that were not answered, and whose threads go on
        self._is_over = is_over
        self._give_up = give_up
        self._settled = settled
        self._lanes: dict[str, Lane] = {}
        # To be handed back, now or when the database answers again; whether with a refund; and why.
        self._owed: list[tuple[Claim, list[str], bool, str]] = []

    @property
    def busy(self) -> bool:
        return any(lane.parts for lane in self._lanes.values())

    @property
    def stuck_seconds(self) -> float:
        """For how long the slowest provider has not answered; 0 where none is being asked."""
        return max((lane.stuck_seconds for lane in self._lanes.values()), default=0.0)

    def is_stuck(self) -> bool:
        """Whether the worker's own thread does not come back: from a receiver of signals, say."""
        return time.monotonic() - self._advanced_at >= HUNG_SECONDS

    @property
    def doing(self) -> str:
        """For people to read."""
        parts = (part for lane in self._lanes.values() for part in lane.parts)
        keys = sorted({part.claim.key for part in parts})
        return f"embedding {', '.join(keys)}" if keys else ""

    def wants(self, service: Service) -> bool:
        """Whether there is room for rows of a sidecar."""
        return self._lane(service).wants

    def wants_retried(self, service: Service) -> bool:
        """Whether there is room for rows of a sidecar that are to be tried again."""
        return self._lane(service).wants_retried

    def _lane(self, service: Service) -> Lane:
        alias = declaration_of(service.sidecar).embedder
        if alias not in self._lanes:
            self._lanes[alias] = Lane(alias, self.concurrency)
        return self._lanes[alias]

    def accept(self, claims: Iterable[Claim]) -> None:
        """Put claims in line, in parts that keep all threads of their lane busy."""
        spared: list[Part] = []
        for claim in claims:
            service = self.services.get(claim.key)
            if service is None:  # given up since it was claimed
                self._owed.append((claim, claim.pks, True, ""))
                continue
            self.claims.append(claim)
            new, again = self._lane(service).line_up(service, claim)
            spared += [*again, *(new if self._holds_suspect else ())]
        self._spare(spared)

    def _spare(self, parts: Iterable[Part]) -> None:
        """Count the attempt of parts that wait when their turn comes: they kill nobody."""
        of_claim: dict[int, list[Part]] = {}
        for part in parts:
            if part.counted:
                of_claim.setdefault(id(part.claim), []).append(part)
        for spared in of_claim.values():
            self.queue.count(spared[0].claim, [pk for part in spared for pk in part.pks], -1)
            for part in spared:
                part.counted = False

    def advance(self, patience: float) -> int:
        """Begin what may begin, and write what has been embedded; wait for that at most so long.

        Returns the number of parts that moved.
        """
        self._advanced_at = time.monotonic()
        self._return_owed()
        moved = 0
        # Rows that may kill a worker go one at a time: each lane has its turn.
        for lane in sorted(self._lanes.values(), key=lambda lane: lane.suspected_at):
            # No more than that, because what cannot be read takes long and comes back in halves.
            for _ in range(lane.room):
                part = lane.next(suspect_elsewhere=self._suspect_elsewhere(lane))
                if part is None:
                    break
                moved += 1
                with self._answering_for(part):
                    if part.alone:
                        self._spare(one for each in self._lanes.values() for one in each.waiting)
                    self._begin(lane, part)
        calls: list[Future[Any]] = [
            call
            for lane in self._lanes.values()
            for call in [*lane.running, *(lane.loading or ())[:1]]
        ]
        if calls:
            wait(calls, 0.0 if moved else patience, FIRST_COMPLETED)
        for lane in self._lanes.values():
            for call in [call for call in lane.running if call.done()]:
                part = lane.running.pop(call)
                moved += 1
                with self._answering_for(part), self._blaming(lane, part):
                    self._write(part, call.result())
            moved += self._see_to_loading(lane)
            self._abandon_hung(lane)
        self._return_owed()
        held = {id(part.claim) for lane in self._lanes.values() for part in lane.parts}
        self.claims[:] = [claim for claim in self.claims if id(claim) in held]
        return moved

    @property
    def _holds_suspect(self) -> bool:
        return any(lane.holds_suspect for lane in self._lanes.values())

    def _suspect_elsewhere(self, lane: Lane) -> bool:
        """Whether another lane has a row in hand that may kill this worker, and be blamed."""
        return any(other.holds_suspect for other in self._lanes.values() if other is not lane)

    def finish(self, is_over: Callable[[], bool]) -> None:
        """Hand back what waits, and write what comes of the calls in hand until ``is_over()``."""
        for lane in self._lanes.values():
            self._owe(lane.clear())
        while self.busy or self._owed:
            for lane in self._lanes.values():
                lane.ask_harmless()
            self.advance(0.1)
            if is_over():
                break

    def let_go(self) -> None:
        """Hand back all that is in hand; what is being embedded is lost."""
        for lane in self._lanes.values():
            going_on = [call for call in lane.unanswered if not call.done()]
            abandoned = bool(lane.running or lane.loading or going_on)
            self.has_abandoned = self.has_abandoned or abandoned
            for call, part in lane.running.items():
                self._owe([part], part.told(LATE) if part.is_late(call) else "")
            self._owe(lane.clear())
            lane.running.clear()
            lane.close()
        self._lanes.clear()
        self._return_owed()
        self.claims.clear()

    @contextmanager
    def _answering_for(self, part: Part) -> Iterator[None]:
        """Whatever happens, its rows are handed back: nobody else's rows pay for an error."""
        try:
            yield
        except (DatabaseError, InterfaceError) as error:
            # A server that breaks off without a word may have crashed of these very rows.
            said = sqlstate(error) is not None
            self._owed.append((part.claim, part.pks, part.counted and said, ""))
            raise
        except BaseException:
            self._owe([part])
            raise

    def _owe(self, parts: Iterable[Part], why: str = "") -> None:
        self._owed += [(part.claim, part.pks, part.counted, why) for part in parts]

    def _return_owed(self) -> None:
        while self._owed:
            claim, pks, refund, why = self._owed[-1]
            self.queue.hand_back(claim, dict.fromkeys(pks, 0.0), why, refund=refund)
            self._owed.pop()

    def _is_left(self, part: Part) -> bool:
        """Whether rows are to be handed back instead of being embedded."""
        service = part.service
        return self._is_over() or part.claim.key not in self.services or service.breaker.is_open

    def _begin(self, lane: Lane, part: Part) -> None:
        """Read some rows, and have those embedded that need it."""
        if self._is_left(part):
            self._owe([part])
            return
        wanted: dict[Asked, str] = {}
        with self._blaming(lane, part):
            using, sidecar = self.queue.using, part.service.sidecar
            if not part.service.can_cut:
                lane.load(part)
                return
            if not part.counted:
                self.queue.count(part.claim, part.pks, 1)
                part.counted = True
            most = part.bytes_of(settings.batch_bytes // (2 * self.concurrency))
            found = read(sidecar, part.pks, using, most, to_write=True)
            if len(found.pks) < len(part.pks):
                lane.put_back(replace(part, pks=part.pks[len(found.pks) :]))
                part.pks = found.pks
            part.rows = passages_of(found, part.service.embedder.fingerprint, part.service.splitter)
            part.blank = [pk for pk in found.texts if pk not in part.rows]
            part.unchanged = {pk for pk, row in part.rows.items() if row.is_stored}
            if left := part.leave_to_budget():
                key, about = part.claim.key, {"sidecar": part.claim.key, "rows": len(left)}
                said = "%s: the budget of its embedder has no room for %d rows now"
                logger.info(said, key, len(left), extra=about)
                self._owed.append((part.claim, left, part.counted, ""))
            wanted = part.wanted
            if not wanted:
                self._write(part, Embedded())
        if wanted:
            lane.begin(part, wanted, lambda: self._is_left(part))

    def _see_to_loading(self, lane: Lane) -> int:
        """Where a model has been loaded parts may begin; or its sidecar is given up, and theirs."""
        if lane.loading is None or not lane.loading[0].done():
            return 0
        (loaded, service), lane.loading = lane.loading, None
        self._note(service, loaded.result())
        return 1

    def _abandon_hung(self, lane: Lane) -> None:
        """Give up calls that hang, and hand their rows back with no attempt counted.

        A text may be what its embedder hangs in. So these rows go alone from now on; one in which
        it hangs again, though it has just answered another text, pays for it.
        """
        trouble = UnansweredError(f"no answer in {HUNG_SECONDS:.0f} s")
        for service, part in lane.abandon(HUNG_SECONDS):
            if part and part.has_hung and not part.call.is_probing:
                lane.silence = None
                with self._answering_for(part):
                    self._blame(lane, part, trouble)
                continue
            service.breaker.failed(trouble)
            self._note(service, trouble)
            if part:
                self._owe([part], part.told(trouble))

    def _write(self, part: Part, found: Embedded) -> None:
        """Write vectors and settle rows, and see to those that could not be embedded."""
        claim, service = part.claim, part.service
        vectors, passages = part.ready(found)
        done = self.queue.complete(
            service.sidecar,
            claim,
            service.fingerprint,
            vectors,
            blank=part.blank,
            gone=[pk for pk in part.pks if pk not in part.rows and pk not in part.blank],
            unchanged=sorted(part.unchanged),
            passages=passages,
            cut=found.cut,
        )
        service.warn_of(len(found.cut))
        if done.lost:
            about = {"sidecar": claim.key, "rows": done.lost}
            logger.warning("lost the lease of %d rows of %s", done.lost, claim.key, extra=about)
            self.lost += done.lost
        failed = {pk: self._hand_back(part, [pk], fault) for pk, fault in found.failed.items()}
        ready = vectors.keys() | passages.keys()
        left = [pk for pk in part.changed if pk not in ready and pk not in failed]
        self._note(service, found.trouble)
        self.release(part, left, found.trouble)
        # Not lost to another worker, if a migration has just reset the sidecar's state.
        lost = [pk for pk in part.pks if pk not in done.settled and pk not in (*failed, *left)]
        self.release(part, lost)
        self._settled(Settled(part, len(done.settled) + len(failed), done.written, failed))

    def _note(self, service: Service, trouble: Exception | None) -> None:
        """A provider is waited for; a sidecar whose settings are wrong is given up."""
        if isinstance(trouble, UnavailableError):
            level = logging.ERROR if isinstance(trouble, RefusedError) else logging.WARNING
            key, seconds = key_of(service.sidecar), service.breaker.seconds_left
            about = {"sidecar": key, "seconds": seconds}
            said = "%s waits %.1f s for its provider: %s"
            logger.log(level, said, key, seconds, trouble, extra=about)
        elif trouble is not None:
            self._give_up(service.sidecar, trouble)

    @contextmanager
    def _blaming(self, lane: Lane, part: Part) -> Iterator[None]:
        """What an error of reading or writing means for the rows of a part."""
        claim, service = part.claim, part.service
        try:
            yield
        except (OperationalError, InterfaceError) as error:
            if not has_failed(error, self.queue.using):
                self._blame(lane, part, error)
                return
            if sqlstate(error) not in TOO_LONG:
                raise
            logger.warning(
                "%s: %d rows took too long: %s", claim.key, len(part.pks), summary(error)
            )
            if len(part.pks) > 1 and sqlstate(error) == QUERY_CANCELED:
                self._halve(lane, part)
            else:
                # Not at once: each look takes as long as the timeout.
                self._hand_back(part, part.pks, error, longest=settings.probe_interval)
        except state.SupersededError as error:
            self._give_up(service.sidecar, error)
            self.release(part, part.pks)
        except ProgrammingError as error:
            # A schema that is changing, most likely: the rows are owed, and not to blame.
            self._give_up(service.sidecar, error)
            self.release(part, part.pks, error)
        except Exception as error:
            self._blame(lane, part, error)

    def _blame(self, lane: Lane, part: Part, error: Exception) -> None:
        """A row that cannot be read or written: which one?"""
        if len(part.pks) > 1:
            self._halve(lane, part)
        else:
            failed = {part.pks[0]: self._hand_back(part, part.pks, error)}
            self._settled(Settled(part, 1, [], failed))

    def _halve(self, lane: Lane, part: Part) -> None:
        parts = [Part(part.service, part.claim, half) for half in halves(part.pks)]
        lane.waiting.extendleft(reversed(parts))

    def _hand_back(
        self, part: Part, pks: list[str], error: Exception, longest: float | None = None
    ) -> tuple[str, float | None]:
        """Return rows that failed; the error in a line, and for how many seconds the last waits.

        ``longest`` is the longest wait in seconds of rows that are not to blame.
        """
        refund, said = longest is not None, summary(error)
        delays = part.delays(pks, longest)
        for pk in pks if not refund else ():
            attempts = part.claim.attempts[pk]
            about = {"sidecar": part.claim.key, "source_pk": pk, "attempts": attempts}
            logger.error("%s %s: %s", part.claim.key, pk, said, extra=about)
        self.queue.hand_back(part.claim, delays, said, refund=refund and part.counted)
        return said, delays[pks[-1]]

    def release(self, part: Part, pks: list[str], why: Exception | None = None) -> None:
        """Return rows that are not to blame: due at once, with their attempt refunded."""
        if pks:
            # What is noted of one that hangs stays.
            said = "" if why is None or part.has_hung else summary(why)
            delays: dict[str, float | None] = dict.fromkeys(pks, 0.0)
            self.queue.hand_back(part.claim, delays, said, refund=part.counted)
