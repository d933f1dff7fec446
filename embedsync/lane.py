"""A lane: the calls of one embedder, and the parts of claims that they are for."""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from embedsync.part import Part
from embedsync.service import Asked, Embedded, Service


class Lane:
    """The calls of one embedder: parts that wait, and those that are being embedded."""

    def __init__(self, alias: str, concurrency: int) -> None:
        self.waiting: deque[Part] = deque()
        self.running: dict[Future[Embedded], Part] = {}
        # Of a model that counts tokens, before texts are cut: it may take long, or hang.
        self.loading: tuple[Future[Exception | None], Service] | None = None
        self._loading_at = math.inf
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
        """For how long the slowest of its calls has not been answered."""
        began = [part.moved_at for call, part in self.running.items() if not call.done()]
        if self.loading and not self.loading[0].done():
            began.append(self._loading_at)
        return max(0.0, time.monotonic() - min(began, default=math.inf))

    def hung(self, seconds: float) -> list[Part]:
        """The parts whose call has hung for so long, and those that can only wait for such."""
        hung = [
            part
            for call, part in self.running.items()
            if part.stuck_seconds >= seconds and not call.done()
        ]
        is_loading = self.loading is not None and self.stuck_seconds >= seconds
        return self.parts if is_loading or len(hung) >= self._concurrency else hung

    @property
    def room(self) -> int:
        """How many parts may begin: what is to follow is read while others are being embedded."""
        return 2 * self._concurrency - len(self.running)

    def split(self, service: Service, pks: list[str]) -> list[list[str]]:
        """In whole calls of the embedder for each thread; one thread has all, sorted by length."""
        size, threads = max(1, len(pks)), self._concurrency
        if threads > 1:
            call = min(service.embedder.batch_size, math.ceil(len(pks) / threads)) or 1
            size = call * max(1, round(len(pks) / threads / call))
        return [pks[start : start + size] for start in range(0, len(pks), size)]

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

        def embed() -> Embedded:
            part.moved_at = time.monotonic()  # not before: there may be no thread for it yet
            return part.service.embed(texts, stopped, suspect=part.alone)

        def stopped() -> bool:
            part.moved_at = time.monotonic()  # it is asked between two calls
            return is_left()

        self.running[self._threads.submit(embed)] = part

    def load(self, part: Part) -> None:
        """Have a part's model loaded in a thread of this lane; until then none begins."""

        def load() -> Exception | None:
            self._loading_at = time.monotonic()
            return part.service.load()

        self._loading_at = math.inf
        self.loading = self._threads.submit(load), part.service
        self.waiting.appendleft(part)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
