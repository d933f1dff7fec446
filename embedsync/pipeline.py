"""The work in hand: parts of claims on their way through read, embed and write.

While some are being embedded, in threads, the worker's own thread reads the next and writes the
last. Only that thread talks to the database.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from django.db import DatabaseError, InterfaceError, OperationalError, ProgrammingError

from embedsync import state
from embedsync.breaker import jitter
from embedsync.conf import settings
from embedsync.database import DISK_FULL, QUERY_CANCELED, TOO_LONG, sqlstate
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.embedders import RefusedError, UnavailableError
from embedsync.queue import Claim, Queue
from embedsync.service import Embedded, Service, halves
from embedsync.text import digest, read, within

logger = logging.getLogger("embedsync")


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
    digests: dict[str, bytes] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> list[str]:
        """The rows that need a new vector."""
        return [pk for pk in self.digests if pk not in self.unchanged]


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
        self._concurrency = concurrency
        self._threads = ThreadPoolExecutor(concurrency, f"embedsync-{alias}")

    @property
    def parts(self) -> list[Part]:
        return [*self.waiting, *self.running.values()]

    @property
    def wants(self) -> bool:
        """Whether to claim more: what is to follow is read while others are being embedded."""
        return not self.waiting and len(self.running) < 2 * self._concurrency

    def next(self) -> Part | None:
        """The next part, if it may begin now."""
        if not self.waiting or len(self.running) >= 2 * self._concurrency:
            return None
        in_doubt = self.waiting[0].alone or self.waiting[0].service.breaker.failures > 0
        others = self.running.values()
        if others and (in_doubt or any(part.alone for part in others)):
            return None
        return self.waiting.popleft()

    def begin(self, part: Part, texts: Mapping[str, str], stopped: Callable[[], bool]) -> None:
        call = self._threads.submit(part.service.embed, texts, stopped, suspect=part.alone)
        self.running[call] = part

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


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
        self._is_over = is_over
        self._give_up = give_up
        self._settled = settled
        self._lanes: dict[str, Lane] = {}
        # To be handed back, now or when the database answers again; and whether with a refund.
        self._owed: list[tuple[Claim, list[str], bool]] = []

    @property
    def busy(self) -> bool:
        return any(lane.parts for lane in self._lanes.values())

    @property
    def doing(self) -> str:
        """For people to read."""
        keys = sorted({claim.key for claim in self.claims})
        return f"embedding {', '.join(keys)}" if keys else ""

    def wants(self, service: Service) -> bool:
        """Whether there is room for rows of a sidecar."""
        return self._lane(service).wants

    def _lane(self, service: Service) -> Lane:
        alias = declaration_of(service.sidecar).embedder
        if alias not in self._lanes:
            self._lanes[alias] = Lane(alias, self.concurrency)
        return self._lanes[alias]

    def accept(self, claims: Iterable[Claim]) -> None:
        """Put claims in line, in parts that keep all threads of their lane busy."""
        again = []
        for claim in claims:
            service = self.services.get(claim.key)
            if service is None:  # given up since it was claimed
                self._owed.append((claim, claim.pks, True))
                continue
            self.claims.append(claim)
            lane = self._lane(service)
            first = [pk for pk in claim.pks if claim.attempts[pk] == 1]
            lane.waiting += [Part(service, claim, pks) for pks in self._split(service, first)]
            alone = [Part(service, claim, [pk], alone=True) for pk in claim.pks if pk not in first]
            lane.waiting += alone
            again.append((claim, alone))
        for claim, alone in again:
            self.queue.count(claim, [pk for part in alone for pk in part.pks], -1)
            for part in alone:
                part.counted = False

    def _split(self, service: Service, pks: list[str]) -> list[list[str]]:
        """In whole calls of the embedder for each thread; one thread has all, sorted by length."""
        size = max(1, len(pks))
        if self.concurrency > 1:
            call = service.embedder.batch_size
            size = call * max(1, round(len(pks) / self.concurrency / call))
        return [pks[start : start + size] for start in range(0, len(pks), size)]

    def advance(self, patience: float) -> int:
        """Begin what may begin, and write what has been embedded; wait for that at most so long.

        Returns the number of parts that moved.
        """
        self._return_owed()
        moved = 0
        for lane in self._lanes.values():
            while (part := lane.next()) is not None:
                moved += 1
                with self._answering_for(part):
                    self._begin(lane, part)
        calls = [call for lane in self._lanes.values() for call in lane.running]
        if calls:
            wait(calls, patience, FIRST_COMPLETED)
        for lane in self._lanes.values():
            for call in [call for call in lane.running if call.done()]:
                part = lane.running.pop(call)
                moved += 1
                with self._answering_for(part), self._blaming(lane, part):
                    self._write(part, call.result())
        held = {part.claim.token for lane in self._lanes.values() for part in lane.parts}
        self.claims[:] = [claim for claim in self.claims if claim.token in held]
        return moved

    def finish(self) -> None:
        """Hand back what waits, and write what comes of the calls in hand."""
        for lane in self._lanes.values():
            self._owe(lane.waiting)
            lane.waiting.clear()
        while self.busy or self._owed:
            self.advance(0.1)

    def let_go(self) -> None:
        """Hand back all that is in hand; what is being embedded is lost."""
        for lane in self._lanes.values():
            self._owe([*lane.running.values(), *lane.waiting])
            lane.running.clear()
            lane.waiting.clear()
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
            # Not refunded, because these rows may be what the database has crashed of; but no row
            # is to blame for a full disk.
            refund = part.counted and sqlstate(error) == DISK_FULL
            self._owed.append((part.claim, part.pks, refund))
            raise
        except BaseException:
            self._owe([part])
            raise

    def _owe(self, parts: Iterable[Part]) -> None:
        self._owed += [(part.claim, part.pks, part.counted) for part in parts]

    def _return_owed(self) -> None:
        while self._owed:
            claim, pks, refund = self._owed[-1]
            self.queue.hand_back(claim, dict.fromkeys(pks, 0.0), refund=refund)
            self._owed.pop()

    def _is_left(self, part: Part) -> bool:
        """Whether rows are to be handed back instead of being embedded."""
        service = part.service
        return self._is_over() or part.claim.key not in self.services or service.breaker.is_open

    def _begin(self, lane: Lane, part: Part) -> None:
        """Read some rows, and have those embedded that need it."""
        if self._is_left(part):
            self.release(part, part.pks)
            return
        with self._blaming(lane, part):
            using, sidecar = self.queue.using, part.service.sidecar
            fitting = within(sidecar, part.pks, using, settings.batch_bytes)
            if len(fitting) < len(part.pks):
                rest = part.pks[len(fitting) :]
                lane.waiting.appendleft(replace(part, pks=rest))
                part.pks = fitting
            if not part.counted:
                self.queue.count(part.claim, part.pks, 1)
                part.counted = True
            texts, stored = read(sidecar, part.pks, using)
            fingerprint = part.service.embedder.fingerprint
            part.digests = {pk: digest(fingerprint, text) for pk, text in texts.items() if text}
            part.blank = [pk for pk, text in texts.items() if not text]
            part.unchanged = [pk for pk, now in part.digests.items() if stored.get(pk) == now]
            if part.wanted:
                wanted = {pk: texts[pk] for pk in part.wanted}
                lane.begin(part, wanted, lambda: self._is_left(part))
            else:
                self._write(part, Embedded())

    def _write(self, part: Part, found: Embedded) -> None:
        """Write vectors and settle rows, and see to those that could not be embedded."""
        claim, service = part.claim, part.service
        done = self.queue.complete(
            service.sidecar,
            claim,
            service.fingerprint,
            {pk: (part.digests[pk], vector) for pk, vector in found.vectors.items()},
            blank=part.blank,
            gone=[pk for pk in part.pks if pk not in part.digests and pk not in part.blank],
            unchanged=part.unchanged,
        )
        if done.lost:
            logger.warning("lost the lease of %d rows of %s", done.lost, claim.key)
            # Not to another worker, if a migration has just reset the sidecar's state.
            self.release(part, part.pks)
            self.lost += done.lost
        failed = {pk: self._hand_back(part, [pk], fault) for pk, fault in found.failed.items()}
        left = [pk for pk in part.wanted if pk not in found.vectors and pk not in failed]
        trouble = found.trouble
        if isinstance(trouble, UnavailableError):
            level = logging.ERROR if isinstance(trouble, RefusedError) else logging.WARNING
            seconds = service.breaker.seconds_left
            logger.log(level, "%s waits %.1f s for its provider: %s", claim.key, seconds, trouble)
        elif trouble is not None:
            self._give_up(service.sidecar, trouble)
        self.release(part, left, trouble)
        self._settled(Settled(part, len(part.pks) - len(left), done.written, failed))

    @contextmanager
    def _blaming(self, lane: Lane, part: Part) -> Iterator[None]:
        """What an error of reading or writing means for the rows of a part."""
        claim, service, pks = part.claim, part.service, part.pks
        try:
            yield
        except InterfaceError:
            raise
        except OperationalError as error:
            if sqlstate(error) not in TOO_LONG:
                raise
            logger.warning("%s: %d rows took too long: %s", claim.key, len(pks), summary(error))
            if len(pks) > 1 and sqlstate(error) == QUERY_CANCELED:
                self._halve(lane, part)
            else:
                self._hand_back(part, pks, error, refund=True)
        except state.SupersededError as error:
            self._give_up(service.sidecar, error)
            self.release(part, pks)
        except ProgrammingError as error:
            # A schema that is changing, most likely: the rows are owed, and not to blame.
            self._give_up(service.sidecar, error)
            self.release(part, pks, error)
        except Exception as error:
            # A row that cannot be read or written: which one?
            if len(pks) > 1:
                self._halve(lane, part)
            else:
                failed = {pks[0]: self._hand_back(part, pks, error)}
                self._settled(Settled(part, 1, [], failed))

    def _halve(self, lane: Lane, part: Part) -> None:
        parts = [Part(part.service, part.claim, half) for half in halves(part.pks)]
        lane.waiting.extendleft(reversed(parts))

    def _hand_back(
        self, part: Part, pks: list[str], error: Exception, *, refund: bool = False
    ) -> tuple[str, float | None]:
        """Return rows that failed; the error in a line, and for how many seconds the last waits."""
        said, delays = summary(error), dict[str, float | None]()
        for pk in pks:
            attempts = part.claim.attempts[pk]
            longest = min(settings.backoff * 2 ** (attempts - 1), settings.max_backoff)
            parked = attempts >= settings.max_attempts and not refund
            delays[pk] = None if parked else jitter(longest)
            if not refund:
                logger.error("%s %s: %s", part.claim.key, pk, said)
        self.queue.hand_back(part.claim, delays, said, refund=refund)
        return said, delays[pks[-1]]

    def release(self, part: Part, pks: list[str], why: Exception | None = None) -> None:
        """Return rows that are not to blame: due at once, with their attempt refunded."""
        if pks:
            said = "" if why is None else summary(why)
            delays: dict[str, float | None] = dict.fromkeys(pks, 0.0)
            self.queue.hand_back(part.claim, delays, said, refund=part.counted)


def summary(error: Exception) -> str:
    """An error in one line for log and ledger."""
    said = f"{type(error).__name__}: {error}"[:500]
    # What PostgreSQL does not take, an error may well say.
    return said.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
