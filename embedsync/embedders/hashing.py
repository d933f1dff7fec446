"""A deterministic embedder without a model, for the tests of projects that use embedsync."""

import math
import re
import zlib
from collections.abc import Sequence

from embedsync.embedders.base import Embedder

WORD = re.compile(r"\w+")


class HashingEmbedder(Embedder):
    """Vectors from the hashed words of a text: equal words, near vectors; no meaning.

    The same text gives the same vector on every machine. Source of the idea: feature hashing
    (Weinberger et al., 2009).
    """

    batch_size = 1000

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimensions
        # A text without any word, such as one emoji, is hashed whole.
        for word in WORD.findall(text.lower()) or [text]:
            digest = zlib.crc32(word.encode("utf-8", "surrogatepass"))
            # One bit gives the sign, so that collisions cancel out rather than pile up.
            vector[(digest >> 1) % self.dimensions] += 1.0 if digest & 1 else -1.0
        norm = math.hypot(*vector)
        if norm == 0:
            vector[0] = norm = 1.0
        return [value / norm for value in vector]
