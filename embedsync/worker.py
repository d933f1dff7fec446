"""The worker: it serves sidecars, round after round, until told to stop."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from secrets import token_hex

from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    reset_queries,
)

from embedsync import state
from embedsync.breaker import Breaker, jitter
from embedsync.budget import Budget
from embedsync.claim import Claim
from embedsync.conf import settings
from embedsync.database import is_locked, storable, told, worker_transaction
from embedsync.declaration import EmbeddingModel, declaration_of, key_of, sidecars_in
from embedsync.embedders import MismatchError, RefusedError, get_embedder
from embedsync.heartbeat import Heartbeat
from embedsync.indexing import IndexBuilder
from embedsync.intake import Intake
from embedsync.lease import LeaseKeeper
from embedsync.part import Settled
from embedsync.pipeline import Pipeline
from embedsync.queue import Queue
from embedsync.service import Service
from embedsync.signals import tell

logger = logging.getLogger("embedsync")

HOUSEKEEPING_SECONDS = 2.0
BROKEN_SECONDS = 5.0  # between two looks whether what was given up can be served again
LONGEST_RECONNECT_SECONDS = 5.0
LONGEST_PATIENCE = 0.5  # seconds, so that a worker with a call in hand heeds all else
DRAIN_FAILURES = 5


class Worker:
    """One worker on one database. ``progress`` is called with numbers of rows as they are settled.

    ``only`` are the sidecars that it serves, instead of all. ``batch_size`` (rows),
    ``concurrency`` (calls of an embedder at a time) and ``poll_interval`` (seconds) stand in for
    the settings. ``alive`` is a file that it touches as long as it gets on. ``errors`` holds, by
    sidecar, why it is not served.
    """

    def __init__(
        self,
        using: str = "default",
        progress: Callable[[int], None] = lambda rows: None,
        *,
        only: Collection[type[EmbeddingModel]] | None = None,
        batch_size: int | None = None,
        poll_interval: float | None = None,
        concurrency: int | None = None,
        alive: Path | None = None,
    ) -> None:
        self.using = using
        self.progress = progress
        self.only = only
        self.batch_size = batch_size
        self.poll_interval = poll_interval or settings.poll_interval
        # The last part, because process 1 of a container has many successors of its name.
        name = f"{socket.gethostname()}:{os.getpid()}:{token_hex(2)}"
        self.queue = Queue(using, name)
        self.heartbeat = Heartbeat(using, name, alive)
        self.indexes = IndexBuilder(using)
        self.services: dict[str, Service] = {}
        self.intake = Intake(self.queue, self.services, self._give_up)
        self.pipeline = Pipeline(
            self.queue,
            self.services,
            concurrency or settings.concurrency,
            is_over=self._is_over,
            give_up=self._give_up,
            settled=self._settled,
        )
        # By alias of the embedder.
        self.breakers: dict[str, Breaker] = {}
        self.budgets: dict[str, Budget] = {}
        self.errors: dict[str, str] = {}
        # A plain attribute, because a signal handler that sets an Event can wait for itself.
        self.stopping = False
        self._stopped_at = 0.0
        self._started = False
        self._housekeeping_at = 0.0
        self._broken: dict[str, type[EmbeddingModel]] = {}  # of the errors, those of the database
        self._mended_at = 0.0
        self._mendable: set[str] = set()  # of the broken, those that the database keeps from it
        self._unproven: set[str] = set()  # whose embedder has failed, and has made no vector since
        self._deadline = self._killed_at = math.inf

    @property
    def served(self) -> dict[str, type[EmbeddingModel]]:
        """The sidecars that this worker serves, by key."""
        return {key: service.sidecar for key, service in self.services.items()}

    def stop(self) -> None:
        """Finish the call in hand, hand back what has not been embedded, and end."""
        self._stopped_at = time.monotonic()
        self.stopping = True

    def _is_over(self) -> bool:
        return self.stopping or time.monotonic() >= self._deadline

    def _grace_is_over(self) -> bool:
        # Not where only its time is over: a call that takes longer would never come to its end.
        stopped = self.stopping and time.monotonic() >= self._stopped_at + settings.grace
        return stopped or time.monotonic() >= self._killed_at

    def pending(self) -> int:
        """How many rows a drain has before it, as far as that is known."""
        return self.queue.pending(self.served)

    def run(
        self, *, drain: bool = False, max_seconds: float | None = None, grace: float = math.inf
    ) -> None:
        """Serve all sidecars until told to stop; with ``drain`` until nothing is due.

        After ``max_seconds`` it stops as if it were told to, but waits for calls in hand up to
        ``grace`` seconds more. A database that fails is waited for; a drain raises after some
        failures in a row.
        """
        if max_seconds is not None:
            self._deadline = time.monotonic() + max_seconds
            self._killed_at = self._deadline + grace
        try:
            if not drain:
                self.heartbeat.hurry()
                for begin in (self.start, self._note_refused):
                    self._with_patience(begin)
            with LeaseKeeper(self.queue, self.pipeline.claims, self.pipeline.is_stuck):
                self._run(drain)
                self._with_patience(partial(self.pipeline.finish, self._grace_is_over))
        finally:
            # Only what an error has left in hand.
            for end in (self.pipeline.let_go, self._note_refused, self.heartbeat.end):
                self._with_patience(end)

    def _run(self, drain: bool) -> None:
        failures = 0
        looked_everywhere = False
        while not self._is_over():
            try:
                self.start()
                if not self.services and (drain or not self._awaits_mending()):
                    return
                busy = self.round()
                if drain and not busy and self._awaits_budget():
                    self._wait(self.poll_interval)
                    continue
                if drain and not busy:
                    if looked_everywhere and not self._index_was_awaited():
                        self._tell_troubles()
                        return
                    self._look_everywhere()
                if failures:
                    logger.info("the database answers again")
                failures = 0
            except (DatabaseError, InterfaceError) as error:
                if connections[self.using].in_atomic_block:
                    raise  # a test's transaction, which would be lost with the connection
                if is_locked(error):
                    logger.warning("waits for a lock: %s", told(error))
                    self._wait(jitter(1.0))
                    continue
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
            if not drain:
                reset_queries()  # which Django keeps under DEBUG
            if not busy and not drain:
                self._wait(self.poll_interval)

    def _with_patience(self, end: Callable[[], None]) -> None:
        """What a worker can do without; where its database fails, its leases end by themselves."""
        try:
            end()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("the database failed: %s", error)
            connections[self.using].close()

    def start(self) -> None:
        """Find the sidecars of this database and adopt them, once."""
        if self._started:
            return
        for sidecar in sidecars_in(self.using):
            if self.only is None or sidecar in self.only:
                self._serve(sidecar)
        self._started = True
        if self.services:
            logger.info("serving %s in database %s", ", ".join(self.services), self.using)

    def _serve(self, sidecar: type[EmbeddingModel]) -> None:
        alias = declaration_of(sidecar).embedder
        breaker = self.breakers.setdefault(alias, Breaker())
        try:
            embedder = get_embedder(alias)
            budget = self.budgets.setdefault(alias, Budget(settings.embedder(alias), self.using))
            self._adopt(Service(sidecar, embedder, breaker, budget))
        except (ImproperlyConfigured, state.SupersededError, DatabaseError) as error:
            if isinstance(error, OperationalError) and not is_locked(error):
                raise
            self._give_up(sidecar, error)

    def round(self) -> bool:
        """One round of all moves. Returns whether there was anything to do."""
        if time.monotonic() >= self._housekeeping_at:
            self._keep_house()
        taken = self._take()
        moved = self.pipeline.advance(self._patience(taken))
        if self.pipeline.lost:
            self.pipeline.lost = 0
            self._housekeeping_at = 0.0  # a migration may have reset the sidecar's state
        fingerprints = {key: service.fingerprint for key, service in self.services.items()}
        errors = {**self._refusals(), **self.errors}
        stuck = self.pipeline.stuck_seconds
        self.heartbeat.beat(self.pipeline.doing, fingerprints, errors, stuck)
        return taken > 0 or moved > 0 or self.pipeline.busy

    def _take(self) -> int:
        """Claim more, where there is room. Returns how many events and rows moved."""
        ready = self._ready()
        if not ready:
            self.intake.behind = False
            return 0
        claims: list[Claim] = []
        try:
            size = self.batch_size or settings.batch_size
            again = [key for key in ready if self.pipeline.wants_retried(self.services[key])]
            return self.intake.take(claims, ready, size, again)
        finally:
            self.pipeline.accept(claims)

    def _ready(self) -> list[str]:
        """The keys of sidecars whose provider may be asked, and not only when others are done."""
        return [
            key
            for key, service in self.services.items()
            if service.can_ask and self.pipeline.wants(service)
        ]

    def _patience(self, taken: int) -> float:
        """For how many seconds to wait for a call that is being made."""
        return 0.0 if taken and self._ready() else min(self.poll_interval, LONGEST_PATIENCE)

    def _settled(self, settled: Settled) -> None:
        """Tell what became of some rows."""
        part, failed = settled.part, settled.failed
        key, sidecar = part.claim.key, part.service.sidecar
        unchanged = settled.rows - len(settled.embedded) - len(failed)
        self.heartbeat.count(key, len(settled.embedded), unchanged, len(failed))
        if settled.embedded and key in self._unproven:
            self._recovered(key)
        alias = declaration_of(sidecar).embedder
        self.heartbeat.use(alias, *part.service.embedder.usage.take())
        logger.debug(
            "%s: %d rows settled, %d embedded, %d failed",
            *(key, settled.rows, len(settled.embedded), len(failed)),
            extra={
                "sidecar": key,
                "rows": settled.rows,
                "embedded": len(settled.embedded),
                "failed": len(failed),
                "seconds": round(time.monotonic() - part.claimed_at, 3),
            },
        )
        self.progress(settled.rows)
        tell(sidecar, self.using, settled)

    def _give_up(self, sidecar: type[EmbeddingModel], error: Exception) -> None:
        """Serve a sidecar no more, until what is wrong with it has been seen to."""
        key = key_of(sidecar)
        self.services.pop(key, None)
        if isinstance(error, (ImproperlyConfigured, MismatchError)):
            # That it can be adopted says nothing: a model is loaded when it is first used.
            self._unproven.add(key)
        self._broken[key] = sidecar
        self._mendable.discard(key)
        if isinstance(error, DatabaseError):
            self._mendable.add(key)
        self._mended_at = time.monotonic() + BROKEN_SECONDS
        said = told(error) if isinstance(error, DatabaseError) else str(error)
        said = storable(said.partition("\n")[0])
        if self.errors.get(key) != said:
            logger.error("%s is not served: %s", key, said, extra={"sidecar": key})
        self.errors[key] = said

    def _adopt(self, service: Service) -> None:
        with worker_transaction(self.using) as cursor:
            state.adopt(cursor, service.sidecar, service.embedder.fingerprint)
        key = key_of(service.sidecar)
        self.services[key] = service
        self._broken.pop(key, None)
        self._mendable.discard(key)
        if key not in self._unproven:
            self._recovered(key)

    def _recovered(self, key: str) -> None:
        self._unproven.discard(key)
        if self.errors.pop(key, None):
            logger.info("%s is served again", key, extra={"sidecar": key})

    def _keep_house(self) -> None:
        """See to what need not be seen to in every round."""
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_SECONDS
        with worker_transaction(self.using) as cursor:
            found = state.fingerprints(cursor, list(self.services))
        for key, service in list(self.services.items()):
            try:
                if not state.is_current(key, service.fingerprint, found.get(key)):
                    self._adopt(service)
            except (state.SupersededError, DatabaseError) as error:
                if isinstance(error, OperationalError) and not is_locked(error):
                    raise
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

    def _awaits_mending(self) -> bool:
        """Whether a sidecar that is put aside may be served again, as long as it has its table.

        It has none where nothing is migrated yet, or is any more.
        """
        if not self._mendable:
            return False
        sidecars = [self._broken[key] for key in self._mendable]
        with worker_transaction(self.using) as cursor:
            return state.has_table(cursor, sidecars)

    def _look_everywhere(self) -> None:
        """Before a drain ends: events that were committed late, and fills that have become due."""
        self.queue.look_everywhere()
        # Twice: one look notes a failed trigger's mark, the next begins the comparison it asks for.
        self._keep_house()
        self._keep_house()

    def _awaits_budget(self) -> bool:
        """Whether there are rows for which a budget of this minute had no room."""
        return any(budget.seconds_left for budget in self.budgets.values())

    def _index_was_awaited(self) -> bool:
        """Whether an index was being built; if so, until it is built or the worker is to stop."""
        if not self.indexes.busy:
            return False
        self.indexes.wait(self.poll_interval)
        return True

    def _refusals(self) -> dict[str, str]:
        """Of providers that need somebody to see to them, by sidecar."""
        return {
            key: storable(str(service.breaker.trouble).partition("\n")[0])
            for key, service in self.services.items()
            if isinstance(service.breaker.trouble, RefusedError)
        }

    def _note_refused(self) -> None:
        """Leave word of what is wrong, but for the database's faults: embed_status finds these."""
        told = dict.fromkeys(self.services, "") | self._refusals()
        told |= {key: self.errors[key] for key in self._broken.keys() - self._mendable}
        with worker_transaction(self.using) as cursor:
            state.note_refused(cursor, told)

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
