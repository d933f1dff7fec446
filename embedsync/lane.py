"""A lane: the calls of one embedder, and the parts of claims that they are for."""

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from embedsync.breaker import Breaker
from embedsync.claim import Claim
from embedsync.part import Part
from embedsync.service import Asked, Call, Embedded, Service

SLOW_SECONDS = 30.0  # of a call, after which others do not wait for its end
ASKED_SECONDS = 5.0  # without an answer, before a worker that ends asks for a harmless text
TURN = 4  # parts that may go before a row that is tried again


class Lane:
    """The calls of one embedder: parts that wait, and those that are being embedded.

    ``waiting`` are those that are new; those that are tried again wait apart (``retried``), because
    each goes alone.
    """

    def __init__(self, alias: str, concurrency: int) -> None:
        self.waiting: deque[Part] = deque()
        self.retried: deque[Part] = deque()
        self.running: dict[Future[Embedded], Part] = {}
        # Of a model that counts tokens, before texts are cut: it may take long, or hang.
        self.loading: tuple[Future[Exception | None], Service] | None = None
        self._loading_at = math.inf
        self.suspected_at = 0.0  # when the last row began that may kill a worker
        self._passed = 0  # new parts that have begun since then
        self.unanswered: list[Future[Any]] = []  # of those that were abandoned
        self.silence: tuple[float, Breaker] | None = None  # since when it has answered nothing
        self._has_asked = False
        self._concurrency = concurrency
        self._alias = alias
        self._threads = self._new_threads()

    @property
    def parts(self) -> list[Part]:
        return [*self.waiting, *self.retried, *self.running.values()]

    @property
    def wants(self) -> bool:
        """Whether to claim more."""
        return not self.waiting and self.room > 0

    @property
    def wants_retried(self) -> bool:
        """Whether to claim rows that are to be tried again: a few at a time."""
        return not self.retried

    @property
    def holds_suspect(self) -> bool:
        """Whether a row is in hand that may have killed a worker; not for ever, if it hangs."""
        return any(part.alone for part in self._quick)

    @property
    def _quick(self) -> list[Part]:
        """The parts in hand for whose end others may wait."""
        return [part for part in self.running.values() if part.stuck_seconds < SLOW_SECONDS]

    @property
    def stuck_seconds(self) -> float:
        """For how long the slowest of its calls, or any of them, has not been answered."""
        began = [part.moved_at for call, part in self.running.items() if not call.done()]
        if self.loading and not self.loading[0].done():
            began.append(self._loading_at)
        if self.silence and self._is_silent:
            began.append(self.silence[0])
        return max(0.0, time.monotonic() - min(began, default=math.inf))

    def abandon(self, seconds: float) -> Iterator[tuple[Service, Part | None]]:
        """Leave calls to themselves that have not been answered for so long.

        What they were for: a part, or none where a model was to be loaded.
        """
        for call, part in list(self.running.items()):
            if part.stuck_seconds >= seconds and not call.done():
                del self.running[call]
                part.call.is_abandoned = True
                self._leave(call, part.moved_at, part.service)
                yield part.service, part
        if self.loading and time.monotonic() - self._loading_at >= seconds:
            (load, service), self.loading = self.loading, None
            self._leave(load, self._loading_at, service)
            yield service, None

    def ask_harmless(self) -> None:
        """Before a worker ends: is it a text that is not answered, or is none? Asked once."""
        stuck = [part for part in self.running.values() if part.stuck_seconds > ASKED_SECONDS]
        if stuck and not self._has_asked:
            self._has_asked = True
            asks = stuck[0].service.ask_harmless
            threading.Thread(target=asks, name=f"embedsync-{self._alias}", daemon=True).start()

    def _leave(self, call: Future[Any], since: float, service: Service) -> None:
        """Have other threads for what comes: that of this call goes on with it."""
        self.unanswered = [*(one for one in self.unanswered if not one.done()), call]
        if not self._is_silent:
            self.silence = since, service.breaker
        self._threads.shutdown(wait=False)
        self._threads = self._new_threads()
        # What had no thread yet would never get one.
        for waiting in [one for one in self.running if one.cancel()]:
            self.put_back(self.running.pop(waiting))
        if self.loading and self.loading[0].cancel():
            self.loading = None

    @property
    def _is_silent(self) -> bool:
        """Whether its provider has answered nothing since a call was abandoned."""
        return self.silence is not None and self.silence[1].answered_at < self.silence[0]

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._concurrency, f"embedsync-{self._alias}")

    @property
    def room(self) -> int:
        """How many parts may begin: what is to follow is read while others are being embedded."""
        return 2 * self._concurrency - len(self.running)

    def line_up(self, service: Service, claim: Claim) -> tuple[list[Part], list[Part]]:
        """Put a claim's rows in line: the new ones in parts, and those that are tried again."""
        tried = claim.hung | {pk for pk in claim.pks if claim.attempts[pk] > 1}
        first = [pk for pk in claim.pks if pk not in tried]
        new = [Part(service, claim, pks) for pks in self._split(service, first)]
        # In any order: one in which a short run hangs would keep those after it for ever.
        alone = random.sample(sorted(tried), len(tried))
        again = [Part(service, claim, [pk], alone=True) for pk in alone]
        self.waiting += new
        self.retried += again
        return new, again

    def _split(self, service: Service, pks: list[str]) -> list[list[str]]:
        """In whole calls of the embedder for each thread; one thread has all, sorted by length."""
        size, threads = max(1, len(pks)), self._concurrency
        if threads > 1:
            call = min(service.embedder.batch_size, math.ceil(len(pks) / threads)) or 1
            size = call * max(1, round(len(pks) / threads / call))
        return [pks[start : start + size] for start in range(0, len(pks), size)]

    def next(self, *, suspect_elsewhere: bool) -> Part | None:
        """The next part, if it may begin now.

        New ones go before those that are tried again, up to ``TURN``. One of these begins when no
        call of its lane is under way, and none begins beside it: what kills a worker costs all
        that is in its hands an attempt.
        """
        if self.loading or self.room <= 0:
            return None
        is_turn = not self.waiting or self._passed >= TURN
        has_thread = len(self.running) < self._concurrency
        if self.retried and is_turn and not suspect_elsewhere:
            if self._quick or self._in_doubt(self.retried):
                return None
            if has_thread:
                self._passed, self.suspected_at = 0, time.monotonic()
                return self._take(self.retried)
        if not self.waiting or self.holds_suspect or self._in_doubt(self.waiting):
            return None
        if not has_thread and any(part.alone for part in self.running.values()):
            return None
        self._passed += 1
        return self._take(self.waiting)

    def _in_doubt(self, parts: deque[Part]) -> bool:
        """Whether a call is under way, and the provider in trouble: one is asked at a time."""
        return bool(self.running) and parts[0].service.breaker.failures > 0

    def _take(self, parts: deque[Part]) -> Part:
        if parts[0].service.breaker.failures:
            # Any of them: the first may be what makes the provider fail.
            parts.rotate(-random.randrange(len(parts)))  # noqa: S311
        return parts.popleft()

    def put_back(self, part: Part) -> None:
        """Let a part that had its turn be the next."""
        (self.retried if part.alone else self.waiting).appendleft(part)

    def clear(self) -> list[Part]:
        """Take out all parts that wait."""
        parts = [*self.waiting, *self.retried]
        self.waiting.clear()
        self.retried.clear()
        return parts

    def begin(self, part: Part, texts: Mapping[Asked, str], is_left: Callable[[], bool]) -> None:
        """Have texts embedded in a thread of this lane, until ``is_left()``."""

        def embed() -> Embedded:
            part.moved_at = time.monotonic()  # not before: there may be no thread for it yet
            return part.service.embed(texts, stopped, call)

        def stopped() -> bool:
            part.moved_at = time.monotonic()  # it is asked between two calls
            return call.is_abandoned or is_left()

        part.call = call = Call(part.alone, has_hung=part.has_hung)
        self.running[self._threads.submit(embed)] = part

    def load(self, part: Part) -> None:
        """Have a part's model loaded in a thread of this lane; until then none begins."""

        def load() -> Exception | None:
            self._loading_at = time.monotonic()
            return part.service.load()

        self._loading_at = math.inf
        self.loading = self._threads.submit(load), part.service
        self.put_back(part)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
