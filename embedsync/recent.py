"""What was embedded last, for rows that say the same: a text is paid for once."""

import threading
from typing import NamedTuple

from pgvector import HalfVector, Vector

MOST = 2000
LONGEST = 1000  # characters: what many rows have in common is short


class Made(NamedTuple):
    """A vector, and whether the model has read the beginning of its text only."""

    vector: HalfVector | Vector
    is_cut: bool


class Recent:
    """The vectors of the last texts of one sidecar in one worker; its threads share it."""

    def __init__(self) -> None:
        self._made: dict[str, Made] = {}
        self._lock = threading.Lock()

    def get(self, text: str) -> Made | None:
        """What was made of a text, if that is remembered."""
        return self._made.get(text)

    def keep(self, text: str, made: Made) -> None:
        """Remember what was made of a text, unless that is very long."""
        if len(text) <= LONGEST:
            with self._lock:
                self._made[text] = made
                while len(self._made) > MOST:
                    del self._made[next(iter(self._made))]
