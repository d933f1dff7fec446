"""Usage: what an embedder was asked for, which is what providers send a bill for."""

import threading
from collections.abc import Sequence

CHARACTERS = 4  # of a token, about, where nobody has counted them


class Usage:
    """``calls`` and ``tokens`` of one embedder in one process; its threads add to them."""

    def __init__(self) -> None:
        self.calls = self.tokens = 0
        self._taken = 0, 0
        self._lock = threading.Lock()

    def add(self, *, calls: int = 0, tokens: int = 0) -> None:
        with self._lock:
            self.calls += calls
            self.tokens += tokens

    def take(self) -> tuple[int, int]:
        """Calls and tokens since they were last taken."""
        with self._lock:
            (calls, tokens), self._taken = self._taken, (self.calls, self.tokens)
            return self.calls - calls, self.tokens - tokens


def tokens_of(texts: Sequence[str]) -> int:
    """How many tokens some texts have, about."""
    return -(-sum(map(len, texts)) // CHARACTERS)
