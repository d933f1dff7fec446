"""How far a drain is: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any, Protocol

logger = logging.getLogger("embedsync")

SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """What a drain tells how many rows it has settled."""

    def update(self, rows: int) -> Any: ...

    def close(self) -> Any: ...


class LineProgress:
    """Progress in plain log lines, for logs and for terminals without tqdm."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.rows = 0
        self.reported: int | None = None
        self.started = self.last = time.monotonic()

    def update(self, rows: int) -> None:
        self.rows += rows
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            self.report(now)

    def close(self) -> None:
        if self.reported != self.rows:
            self.report(time.monotonic())

    def report(self, now: float) -> None:
        self.reported = self.rows
        rate = self.rows / max(now - self.started, 1e-6)
        total = max(self.total, self.rows)
        left = (total - self.rows) / rate if rate else 0.0
        logger.info(
            "%d of %d rows, %.1f rows/s, %.0f s left",
            self.rows,
            total,
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
