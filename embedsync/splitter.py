"""The splitter: cuts a text into passages that a model can read whole."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from embedsync.chunks import Chunks
from embedsync.embedders import Embedder
from embedsync.embedders.usage import CHARACTERS


class Splitter:
    """Cuts texts as ``chunks`` says, in tokens of the embedder's model.

    Raises ``ImproperlyConfigured`` where the model does not read as much as that, or where
    semantic-text-splitter is not installed.
    """

    def __init__(self, chunks: Chunks, embedder: Embedder) -> None:
        self.chunks = chunks
        most = embedder.max_tokens
        if most is not None and chunks.size > most:
            raise ImproperlyConfigured(
                f"Chunks(size={chunks.size}): the model reads {most} tokens of a text at most, and"
                f" the rest would be lost. Set size to {most} or less."
            )
        self._tokenizer = embedder.tokenizer
        self._splitter = self._made()

    def _made(self) -> Any:
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as error:
            raise ImproperlyConfigured(
                "Chunks needs the extra embedsync[chunks]: pip install semantic-text-splitter"
            ) from error
        kind = MarkdownSplitter if self.chunks.markdown else TextSplitter
        size, overlap = self.chunks.size, self.chunks.overlap
        if self._tokenizer is None:
            return kind(size * CHARACTERS, overlap * CHARACTERS)
        return kind.from_huggingface_tokenizer(self._tokenizer, size, overlap)

    def passages(self, text: str) -> list[str]:
        """The passages of a text in order, none where it is blank."""
        if not text.strip():
            return []
        # What it takes for blank it leaves out; Python has other ideas of that.
        found: list[str] = self._splitter.chunks(text)
        return found or [text]
