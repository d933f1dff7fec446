"""How far a drain is: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any, Protocol

from embedsync.words import plural

logger = logging.getLogger("embedsync")

SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """What a drain, or a sweep, tells how many rows it has seen to."""

    def update(self, rows: int) -> Any: ...

    def close(self) -> Any: ...


class LineProgress:
    """Progress in plain log lines, for logs and for terminals without tqdm."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.rows = 0
        self.started = self.last = time.monotonic()

    def update(self, rows: int) -> None:
        self.rows += rows
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            self.report(now)

    def close(self) -> None:
        """Nothing: whoever is at the end says what has been done."""

    def report(self, now: float) -> None:
        rate = self.rows / max(now - self.started, 1e-6)
        # More than there were at the beginning: nobody knows how many come.
        if self.rows >= self.total or not rate:
            logger.info("%s, %.1f rows/s", plural(self.rows), rate)
            return
        left = (self.total - self.rows) / rate
        logger.info(
            "%s of %s, %.1f rows/s, %.0f s left",
            f"{self.rows:,}",
            plural(self.total),
            rate,
            left,
        )


def drain_progress(total: int) -> Progress:
    """A bar where standard error is a terminal and tqdm is installed, else log lines."""
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            bar: Progress = tqdm(total=total, unit=" rows", desc="embedding", dynamic_ncols=True)
            return bar
    return LineProgress(total)
