"""A budget: how many rows or tokens all workers together may have an embedder embed in a minute."""

import time
from collections.abc import Mapping

from embedsync.conf import EmbedderConfig
from embedsync.database import worker_transaction
from embedsync.sql import statement


class Budget:
    """What one embedder may still be asked for, as one worker sees it.

    What has been spent is in the database, for all of them.

    Minutes are those of the database's clock, each with a budget of its own: providers count in
    their own way, and what they refuse all the same waits as they ask.
    """

    def __init__(self, config: EmbedderConfig, using: str) -> None:
        self.using = using
        self.embedder = config.alias
        self._rows, self._tokens = config.rows_per_minute, config.tokens_per_minute
        self._next_minute = 0.0

    @property
    def is_limited(self) -> bool:
        return self._rows is not None or self._tokens is not None

    @property
    def seconds_left(self) -> float:
        """How long to wait for the next minute; 0 where this one's budget is not spent."""
        return max(0.0, self._next_minute - time.monotonic())

    def grant(self, costs: Mapping[str, int]) -> list[str]:
        """Those of some rows that may be embedded now; they are spent by that.

        ``costs`` has their tokens, about. The largest come first, as they may not fit later: the
        first row of a minute always may, however long it is.
        """
        granted: list[str] = []
        if self.seconds_left:
            return granted
        with worker_transaction(self.using) as cursor:
            cursor.execute(statement("spend"), {"embedder": self.embedder})
            minute, rows, tokens, left = cursor.fetchone()
            spent = tokens
            for key in sorted(costs, key=costs.__getitem__, reverse=True):
                count = rows + len(granted)
                if not count or not self._is_beyond(count + 1, spent + costs[key]):
                    granted.append(key)
                    spent += costs[key]
            cursor.execute(
                "UPDATE embedsync_embedder_minute SET granted_rows = granted_rows + %s,"
                " granted_tokens = granted_tokens + %s WHERE embedder = %s AND minute = %s",
                [len(granted), spent - tokens, self.embedder, minute],
            )
        if len(granted) < len(costs):
            self._next_minute = time.monotonic() + left
        return granted

    def _is_beyond(self, rows: int, tokens: int) -> bool:
        limits = ((rows, self._rows), (tokens, self._tokens))
        return any(limit is not None and spent > limit for spent, limit in limits)
