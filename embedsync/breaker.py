"""A breaker: keeps a worker from asking a provider again and again that does not answer."""

import math
import random
import threading
import time

from embedsync.conf import settings
from embedsync.embedders import RefusedError, UnavailableError

LATELY_SECONDS = 60.0


class Breaker:
    """What a worker knows of one provider's trouble.

    Idea: the circuit breaker of Nygard's "Release It!".

    While it is open the provider's rows wait in the ledger, and those of others are served. Then a
    single call probes the provider; what comes of it closes the breaker or opens it anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        self.trouble: UnavailableError | None = None  # as long as it has not answered since
        self.answered_at = -math.inf  # by the monotonic clock
        self._probe_at = 0.0
        self._may_blame = False

    @property
    def is_open(self) -> bool:
        """Whether the provider is to be left alone now."""
        return time.monotonic() < self._probe_at

    @property
    def seconds_left(self) -> float:
        """Seconds until its next probe, 0 where that is due."""
        return max(0.0, self._probe_at - time.monotonic())

    def answered(self) -> None:
        """Close it; but a call that began before the trouble says nothing of what came after."""
        with self._lock:
            self.answered_at = time.monotonic()
            if not self.is_open:
                self.failures = 0
                self.trouble = None
                self._may_blame = True

    def is_answering(self) -> bool:
        """Whether the provider has answered of late, and nothing has been wrong since."""
        return self.trouble is None and time.monotonic() < self.answered_at + LATELY_SECONDS

    def blames(self, trouble: UnavailableError) -> bool:
        """Whether a text that fails alone is to blame, though it looks like the provider's trouble.

        Where the provider has just answered another one; for one text until it answers again.
        """
        with self._lock:
            may_blame, self._may_blame = self._may_blame, False
        return may_blame and not trouble.is_busy

    def failed(self, trouble: UnavailableError) -> None:
        """Open it, for at least as many seconds as the provider asks for.

        Calls that fail at the same time count once.

        Full jitter that doubles, so that workers which failed together do not return together, up
        to one probe in each ``EMBEDSYNC_PROBE_INTERVAL``. Who was refused begins with that.
        """
        with self._lock:
            self.trouble = trouble
            self._may_blame = False
            wait = trouble.retry_after
            if not self.is_open:
                self.failures += 1
                wait = max(wait, self._wait_of(trouble))
            self._probe_at = max(self._probe_at, time.monotonic() + wait)

    def _wait_of(self, trouble: UnavailableError) -> float:
        interval = settings.probe_interval
        longest = settings.backoff * 2 ** min(self.failures - 1, 30)
        refused = isinstance(trouble, RefusedError)
        return interval if refused or longest >= interval else jitter(longest)


def jitter(longest: float) -> float:
    """A wait of 0 to ``longest`` seconds, so that what failed together does not return together.

    "Full jitter": Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015).
    """
    return random.uniform(0, longest)  # noqa: S311  (no secret depends on it)
