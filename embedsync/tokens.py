"""Tokens: whether texts are longer than a model reads."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from embedsync.embedders import Embedder
from embedsync.embedders.usage import CHARACTERS

# A text of so many characters a token is longer for certain, in most languages: a look at its
# beginning will do.
FIRST_LOOK = 8


class Measure:
    """Tells which texts are longer than an embedder's model reads."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @cached_property
    def most(self) -> int | None:
        """How many tokens the model reads; None where that is not known."""
        return self._embedder.max_tokens

    @cached_property
    def _tokenizer(self) -> Any:
        return self._embedder.tokenizer

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Whether each of the texts is longer. Only those are counted that can be."""
        most = self.most
        if most is None:
            return [False] * len(texts)
        if self._tokenizer is None:
            return [len(text) > most * CHARACTERS for text in texts]
        # A token has a byte at least.
        doubted = [n for n, text in enumerate(texts) if len(text) > most or is_wide(text, most)]
        found = [False] * len(texts)
        for length in (most * FIRST_LOOK, None):
            beginnings = [texts[n][:length] for n in doubted]
            counts = self._tokenizer.encode_batch_fast(beginnings, add_special_tokens=False)
            for n, count in zip(doubted, counts, strict=True):
                found[n] = len(count) > most
            doubted = [n for n in doubted if not found[n] and len(texts[n]) > most * FIRST_LOOK]
            if not doubted:
                break
        return found


def is_wide(text: str, most: int) -> bool:
    """Whether a text that has few characters has many bytes."""
    return not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > most
