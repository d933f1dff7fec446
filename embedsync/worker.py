"""The worker: claim, read, embed, complete, until told to stop."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Collection

from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    router,
)

from embedsync import state
from embedsync.breaker import Breaker, jitter
from embedsync.conf import settings
from embedsync.database import QUERY_CANCELED, TOO_LONG, sqlstate, told, worker_transaction
from embedsync.declaration import (
    EmbeddingModel,
    declaration_of,
    key_of,
    sidecars,
)
from embedsync.embedders import RefusedError, UnavailableError, get_embedder
from embedsync.indexing import IndexBuilder
from embedsync.intake import Intake
from embedsync.lease import LeaseKeeper
from embedsync.queue import Claim, Queue
from embedsync.service import Service, halves
from embedsync.text import digest, read

logger = logging.getLogger("embedsync")

HOUSEKEEPING_SECONDS = 2.0
BROKEN_SECONDS = 5.0  # between two looks whether a table or column has come back
LONGEST_RECONNECT_SECONDS = 5.0
DRAIN_FAILURES = 5


class Worker:
    """One worker on one database. ``progress`` is called with numbers of rows as they are settled.

    ``only`` are the sidecars that it serves, instead of all. ``batch_size`` (rows) and
    ``poll_interval`` (seconds) stand in for the settings. ``errors`` holds, by sidecar, why it is
    not served.
    """

    def __init__(
        self,
        using: str = "default",
        progress: Callable[[int], None] = lambda rows: None,
        *,
        only: Collection[type[EmbeddingModel]] | None = None,
        batch_size: int | None = None,
        poll_interval: float | None = None,
    ) -> None:
        self.using = using
        self.progress = progress
        self.only = only
        self.batch_size = batch_size
        self.poll_interval = poll_interval
        self.queue = Queue(using, f"{socket.gethostname()}:{os.getpid()}")
        self.indexes = IndexBuilder(using)
        self.services: dict[str, Service] = {}
        self.intake = Intake(self.queue, self.services, self._give_up)
        self.breakers: dict[str, Breaker] = {}  # by alias of the embedder
        self.errors: dict[str, str] = {}
        # A plain attribute, because a signal handler that sets an Event can wait for itself.
        self.stopping = False
        self._started = False
        self._housekeeping_at = 0.0
        self._broken: dict[str, type[EmbeddingModel]] = {}  # of the errors, those of the database
        self._mended_at = 0.0
        self._uncounted: list[str] = []  # of the claim in hand: rows whose attempt is refunded
        self._idle = False
        self._deadline = math.inf
        self._filled_in_drain: set[str] = set()

    @property
    def served(self) -> dict[str, type[EmbeddingModel]]:
        """The sidecars that this worker serves, by key."""
        return {key: service.sidecar for key, service in self.services.items()}

    def stop(self) -> None:
        """Finish the call in hand, hand back what has not been embedded, and end."""
        self.stopping = True

    def _is_over(self) -> bool:
        return self.stopping or time.monotonic() >= self._deadline

    def pending(self) -> int:
        """How many rows a drain has before it; those of a fill are counted by the fill."""
        with worker_transaction(self.using) as cursor:
            unfilled = {key for key, _ in state.unfilled(cursor, list(self.services))}
        self._filled_in_drain = unfilled
        return self.queue.pending(self.served)

    def run(self, *, drain: bool = False, max_seconds: float | None = None) -> None:
        """Serve all sidecars until told to stop; with ``drain`` until nothing is due.

        After ``max_seconds`` it stops as if it were told to. A database that fails is waited for; a
        drain raises after some failures in a row.
        """
        if max_seconds is not None:
            self._deadline = time.monotonic() + max_seconds
        failures = 0
        looked_everywhere = False
        while not self._is_over():
            try:
                self.start()
                if not self.services:
                    return
                busy = self.round()
                if drain and not busy:
                    if looked_everywhere and not self._index_was_awaited():
                        self._tell_troubles()
                        return
                    self._look_everywhere()
                if failures:
                    logger.info("the database answers again")
                failures = 0
            except (DatabaseError, InterfaceError) as error:
                failures += 1
                if drain and failures > DRAIN_FAILURES:
                    raise
                wait = jitter(min(2.0 ** min(failures, 10), LONGEST_RECONNECT_SECONDS))
                logger.warning("the database failed (again in %.1f s): %s", wait, error)
                connections[self.using].close()
                self._housekeeping_at = 0.0  # which finds out whose fault it was
                self._wait(wait)
                continue
            looked_everywhere = drain and not busy
            if not busy and not drain:
                self._wait(self.poll_interval or settings.poll_interval)

    def start(self) -> None:
        """Find the sidecars of this database and adopt them, once."""
        if self._started:
            return
        for sidecar in sidecars():
            here = router.db_for_write(sidecar) == self.using and sidecar._meta.managed
            if here and (self.only is None or sidecar in self.only):
                self._serve(sidecar)
        self._started = True
        if self.services:
            logger.info("serving %s in database %s", ", ".join(self.services), self.using)

    def _serve(self, sidecar: type[EmbeddingModel]) -> None:
        alias = declaration_of(sidecar).embedder
        breaker = self.breakers.setdefault(alias, Breaker())
        try:
            self._adopt(Service(sidecar, get_embedder(alias), breaker))
        except OperationalError:
            raise
        except (ImproperlyConfigured, state.SupersededError, DatabaseError) as error:
            self._give_up(sidecar, error)

    def round(self) -> bool:
        """One round of all moves. Returns whether there was anything to do."""
        if time.monotonic() >= self._housekeeping_at:
            self._keep_house()
        if self._idle and self.intake.is_idle():
            return False
        claims: list[Claim] = []
        try:
            moved = self.intake.take(claims, self.batch_size or settings.batch_size)
            if claims:
                with LeaseKeeper(self.queue, claims):
                    while claims:
                        self._work(claims[0])
                        claims.pop(0)
        finally:
            # Nothing, unless an error came between; then nobody else's rows pay for it.
            for claim in claims:
                self._release(claim, [pk for pk in claim.pks if pk not in self._uncounted])
                if self._uncounted:
                    self._release(claim, sorted(self._uncounted), refund=False)
                    self._uncounted = []
        self._idle = moved == 0
        return moved > 0

    def _work(self, claim: Claim) -> None:
        service = self.services.get(claim.key)
        if service is None:
            self._release(claim, claim.pks)
            return
        # What failed before, or was there when a worker died, is tried alone, so that one bad row
        # harms one row. A death shall count for the one in hand, and not for those that wait.
        again = [pk for pk in claim.pks if claim.attempts[pk] > 1]
        first = [pk for pk in claim.pks if claim.attempts[pk] == 1]
        self.queue.count(claim, again, -1)
        self._uncounted = again
        if first:
            self._settle(service, claim, first)
        while again and not self._is_left(service, claim):
            self.queue.count(claim, [again[0]], 1)
            self._settle(service, claim, [again.pop(0)])
        if again:
            self._release(claim, again, refund=False)
        self._uncounted = []

    def _is_left(self, service: Service, claim: Claim) -> bool:
        """Whether rows of a claim are to be handed back instead of being embedded."""
        return self._is_over() or claim.key not in self.services or service.breaker.is_open

    def _settle(self, service: Service, claim: Claim, pks: list[str]) -> None:
        """Read, embed and complete some rows of a claim."""
        if self._is_left(service, claim):
            self._release(claim, pks)
            return
        try:
            texts, stored = read(service.sidecar, pks, self.using)
            digests = {
                pk: digest(service.embedder.fingerprint, text) for pk, text in texts.items() if text
            }
            unchanged = [pk for pk, content in digests.items() if stored.get(pk) == content]
            wanted = [pk for pk in digests if stored.get(pk) != digests[pk]]
            found = service.embed(
                {pk: texts[pk] for pk in wanted},
                stopped=lambda: self._is_left(service, claim),
                suspect=len(pks) == 1 and claim.attempts[pks[0]] > 1,
            )
            done = self.queue.complete(
                service.sidecar,
                claim,
                service.fingerprint,
                {pk: (digests[pk], vector) for pk, vector in found.vectors.items()},
                blank=[pk for pk in texts if pk not in digests],
                gone=[pk for pk in pks if pk not in texts],
                unchanged=unchanged,
            )
        except InterfaceError:
            raise
        except OperationalError as error:
            if sqlstate(error) not in TOO_LONG:
                raise
            logger.warning("%s: %d rows took too long: %s", claim.key, len(pks), summary(error))
            if len(pks) > 1 and sqlstate(error) == QUERY_CANCELED:
                self._settle_halves(service, claim, pks)
            else:
                self._hand_back(claim, pks, error, refund=True)
        except state.SupersededError as error:
            self._give_up(service.sidecar, error)
            self._release(claim, pks)
        except ProgrammingError as error:
            # A schema that is changing, most likely: the rows are owed, and not to blame.
            self._give_up(service.sidecar, error)
            self._release(claim, pks, error)
        except Exception as error:
            # A row that cannot be read or written: which one?
            if len(pks) > 1:
                self._settle_halves(service, claim, pks)
            else:
                logger.error("%s %s: %s", claim.key, pks[0], summary(error))
                self._hand_back(claim, pks, error)
        else:
            if done.lost:
                logger.warning("lost the lease of %d rows of %s", done.lost, claim.key)
                # Not to another worker, if a migration has just reset the sidecar's state.
                self._release(claim, pks)
                self._housekeeping_at = 0.0
            for pk, fault in found.failed.items():
                logger.error("%s %s: %s", claim.key, pk, summary(fault))
                self._hand_back(claim, [pk], fault)
            left = [pk for pk in wanted if pk not in found.vectors and pk not in found.failed]
            self._leave(service, claim, left, found.trouble)
            if claim.filling or claim.key not in self._filled_in_drain:
                self.progress(len(pks) - len(left))

    def _settle_halves(self, service: Service, claim: Claim, pks: list[str]) -> None:
        for half in halves(pks):
            self._settle(service, claim, half)

    def _leave(
        self, service: Service, claim: Claim, pks: list[str], trouble: Exception | None
    ) -> None:
        """Return rows whose texts were not embedded, and see to why."""
        if isinstance(trouble, UnavailableError):
            wait = service.breaker.failed(trouble)
            level = logging.ERROR if isinstance(trouble, RefusedError) else logging.WARNING
            logger.log(level, "%s waits %.1f s for its provider: %s", claim.key, wait, trouble)
        elif trouble is not None:
            self._give_up(service.sidecar, trouble)
        self._release(claim, pks, trouble)

    def _hand_back(
        self, claim: Claim, pks: list[str], error: Exception, *, refund: bool = False
    ) -> None:
        delays: dict[str, float | None] = {}
        for pk in pks:
            attempts = claim.attempts[pk]
            longest = min(settings.backoff * 2 ** (attempts - 1), settings.max_backoff)
            parked = attempts >= settings.max_attempts and not refund
            delays[pk] = None if parked else jitter(longest)
        self.queue.hand_back(claim, delays, summary(error), refund=refund)

    def _release(
        self,
        claim: Claim,
        pks: list[str],
        why: Exception | None = None,
        *,
        refund: bool = True,
    ) -> None:
        if pks:
            said = "" if why is None else summary(why)
            self.queue.hand_back(claim, dict.fromkeys(pks, 0.0), said, refund=refund)

    def _give_up(self, sidecar: type[EmbeddingModel], error: Exception) -> None:
        key = key_of(sidecar)
        self.services.pop(key, None)
        if isinstance(error, DatabaseError):
            self._broken[key] = sidecar  # a migration may mend it
            self._mended_at = time.monotonic() + BROKEN_SECONDS
        self.errors[key] = str(error)
        if isinstance(error, ProgrammingError):
            self.errors[key] = told(error)
        logger.error("%s is not served: %s", key, self.errors[key])

    def _adopt(self, service: Service) -> None:
        with worker_transaction(self.using) as cursor:
            state.adopt(cursor, service.sidecar, service.embedder.fingerprint)
        key = key_of(service.sidecar)
        self.services[key] = service
        if self._broken.pop(key, None):
            logger.info("%s is served again", key)
            del self.errors[key]

    def _keep_house(self) -> None:
        """See to what need not be seen to in every round."""
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_SECONDS
        for key, service in list(self.services.items()):
            try:
                with worker_transaction(self.using) as cursor:
                    adopted = state.is_adopted(cursor, key, service.fingerprint)
                if not adopted:
                    self._adopt(service)
            except OperationalError:
                raise
            except (state.SupersededError, DatabaseError) as error:
                self._give_up(service.sidecar, error)
        if self._broken and time.monotonic() >= self._mended_at:
            self._mended_at = time.monotonic() + BROKEN_SECONDS
            for sidecar in list(self._broken.values()):
                self._serve(sidecar)
        with worker_transaction(self.using) as cursor:
            state.heed_missed(cursor, list(self.services))
            self.intake.unfilled = {key for key, _ in state.unfilled(cursor, list(self.services))}
        if not self.intake.behind:
            filled = self.services.keys() - self.intake.unfilled
            self.indexes.see_to([self.services[key].sidecar for key in sorted(filled)])

    def _look_everywhere(self) -> None:
        """Before a drain ends: events that were committed late, and fills that have become due."""
        self.queue.low = 0
        self._idle = False
        # Twice: one look notes a failed trigger's mark, the next begins the comparison it asks for.
        self._keep_house()
        self._keep_house()

    def _index_was_awaited(self) -> bool:
        """Whether an index was being built; if so, until it is built or the worker is to stop."""
        if not self.indexes.busy:
            return False
        self.indexes.wait(settings.poll_interval)
        return True

    def _tell_troubles(self) -> None:
        """At the end of a drain: what waits for a provider is not drained."""
        for key, service in self.services.items():
            if service.breaker.trouble is not None:
                self.errors[key] = f"its provider is in trouble: {service.breaker.trouble}"

    def _wait(self, seconds: float) -> None:
        """Sleep, in slices, because a signal does not end a sleep."""
        end = time.monotonic() + seconds
        while not self._is_over() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


def summary(error: Exception) -> str:
    """An error in one line for log and ledger."""
    said = f"{type(error).__name__}: {error}"[:500]
    # What PostgreSQL does not take, an error may well say.
    return said.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
