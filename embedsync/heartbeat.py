"""What a worker says of itself: that it is alive, what it is doing, what it has done."""

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db import connections

from embedsync.database import is_own_session, worker_transaction
from embedsync.sql import statement

logger = logging.getLogger("embedsync")

FIRST_SECONDS = 2.0  # so that short runs, and those with nothing to do, write nothing
BUSY_SECONDS = 10.0
IDLE_SECONDS = 60.0
SAMPLE_SECONDS = 60.0
PRUNE_SECONDS = 3600.0


class Heartbeat:
    """The signs of life of one worker.

    ``alive`` is a file whose age tells a supervisor that the worker gets on.

    The file has the time at which a call was answered; where none is being made, of the last round.
    """

    def __init__(self, using: str, name: str, alive: Path | None = None) -> None:
        self.using = using
        self.name = name
        self.alive = alive
        self.settled = self.embedded = 0
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._used: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._said: dict[str, str] = {}
        self._written: dict[str, str] = {}
        self._session: Any = None  # in which it has said so
        self._is_named = False
        self._beat_at = time.monotonic() + FIRST_SECONDS
        self._sample_at = self._prune_at = 0.0
        self._touch_at = 0.0

    def count(self, key: str, embedded: int, unchanged: int, failed: int) -> None:
        """Count rows of a sidecar that were settled, and attempts that failed."""
        counts = self._counts[key]
        for place, more in enumerate((embedded, unchanged, failed)):
            counts[place] += more
        self.settled += embedded + unchanged
        self.embedded += embedded

    def use(self, embedder: str, calls: int, tokens: int) -> None:
        """Count calls of an embedder, by its alias, and tokens."""
        used = self._used[embedder]
        used[0] += calls
        used[1] += tokens

    def beat(
        self, doing: str, serves: Mapping[str, str], errors: Mapping[str, str], stuck: float = 0.0
    ) -> None:
        """Say so, if it is time to. ``doing`` is ``""`` for nothing.

        ``serves`` are fingerprints by sidecar, ``errors`` what is wrong with others; ``stuck`` is
        for how many seconds a provider has not answered.
        """
        now = time.monotonic()
        if self.alive is not None and now >= self._touch_at:
            self._touch_at = now + 1.0
            try:
                self.alive.touch()
                os.utime(self.alive, (time.time() - stuck,) * 2)
            except OSError as error:
                # Its supervisor sees that it is missing; no row has to wait for that.
                logger.warning("the alive-file cannot be touched: %s", error)
        said = {"doing": doing, "serves": json.dumps(serves), "errors": json.dumps(errors)}
        if said != self._said:
            self._said = said
            # Soon, but not at each of many short pieces of work.
            self._beat_at = min(self._beat_at, now + FIRST_SECONDS)
        elif self._session not in (None, connections[self.using].connection):
            self._beat_at = min(self._beat_at, now + FIRST_SECONDS)
        if now >= self._beat_at:
            self._beat_at = now + (BUSY_SECONDS if doing or self._counts else IDLE_SECONDS)
            self._write(now, list(serves))

    def hurry(self) -> None:
        """Say so at the next beat: this worker is here to stay."""
        self._beat_at = 0.0

    def _write(self, now: float, served: list[str]) -> None:
        is_silent = self._said == self._written and not self._counts and self._is_heard()
        with worker_transaction(self.using) as cursor:
            if not is_silent:
                cursor.execute(
                    statement("beat"), {"name": self.name, "settled": self.settled, **self._said}
                )
            if now >= self._sample_at:
                self._sample_at = now + SAMPLE_SECONDS
                cursor.execute(statement("sample"), {"served": served})
            if now >= self._prune_at:
                self._prune_at = now + PRUNE_SECONDS
                cursor.execute(statement("prune").replace("{heard}", statement("heard")))
        self._written = dict(self._said)
        self._session = connections[self.using].connection
        self._note()

    def _is_heard(self) -> bool:
        """Whether the session tells that this worker is alive, so that it need not write it."""
        with connections[self.using].cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT FROM embedsync_worker WHERE name = %s)", [self.name]
            )
            (is_known,) = cursor.fetchone()
            is_own = is_own_session(self.using)
            if is_own:
                name = f"embedsync {self.name[-50:]}"
                cursor.execute("SELECT set_config('application_name', %s, false)", [name])
                self._is_named = True
        return bool(is_own and is_known)

    def _note(self) -> None:
        """Add what was counted to the minute's figures."""
        if not self._counts:
            return
        keys = sorted(self._counts)
        columns = zip(*(self._counts[key] for key in keys), strict=True)
        names = ("embedded", "unchanged", "failed")
        counts = dict(zip(names, map(list, columns), strict=True))
        with worker_transaction(self.using) as cursor:
            cursor.execute(statement("minute"), {"keys": keys, **counts})
            aliases = sorted(alias for alias, used in self._used.items() if any(used))
            used = {
                name: [self._used[alias][place] for alias in aliases]
                for place, name in enumerate(("calls", "tokens"))
            }
            if aliases:
                cursor.execute(statement("used"), {"embedders": aliases, **used})
        self._counts.clear()
        self._used.clear()

    def end(self) -> None:
        """The worker ends, in order."""
        if self.alive is not None:
            with suppress(OSError):
                self.alive.unlink(missing_ok=True)
        if self._written:
            if self._is_named:
                with connections[self.using].cursor() as cursor:
                    cursor.execute("RESET application_name")
            with worker_transaction(self.using) as cursor:
                cursor.execute("DELETE FROM embedsync_worker WHERE name = %s", [self.name])
        self._note()
