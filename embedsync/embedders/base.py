"""The interface of embedders, and the check that every vector passes before it is used."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from pgvector import HalfVector

from embedsync.embedders.usage import Usage, tokens_of

Vectors = Sequence[Sequence[float]]  # a numpy array is one too

LONGEST = 65504.0  # the largest float16: no component of such a vector is beyond it
SHORTEST = 0.01  # so that the largest component does not vanish in a float16


class EmbedderError(Exception):
    """The embedder returned something that must not be written."""


class MismatchError(EmbedderError):
    """The embedder and the settings disagree: no text of this embedder can be embedded."""


class UnavailableError(EmbedderError):
    """The provider cannot be reached, fails, or asks to wait: ``retry_after`` seconds at least.

    No text is to blame, so none pays with an attempt: they wait until it answers again.
    ``is_busy`` says that the provider has too much to do, which no text can be the cause of.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, is_busy: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_busy = is_busy or retry_after > 0


class UnansweredError(UnavailableError):
    """A call was given up, because it had neither been answered nor failed for very long."""


class RefusedError(UnavailableError):
    """The provider refuses whatever it is sent: a wrong key, a model that it does not have."""


class Embedder(ABC):
    """Turns texts into vectors. Subclass it and name the class as ``BACKEND``.

    ``batch_size`` is how many texts ``embed_documents`` is given at most in one call; between two
    calls a worker may stop, report or extend its lease. ``counts_tokens`` says that it adds to
    ``usage`` itself how many tokens a call took; otherwise four characters are taken for one.
    """

    batch_size: int = 128
    counts_tokens: bool = False

    def __init__(self, *, model: str, dimensions: int) -> None:
        self.model = model
        self.dimensions = dimensions

    @property
    def fingerprint(self) -> str:
        """What the vectors depend on. Another fingerprint means vectors of another space."""
        return f"{type(self).__name__}:{self.model}:{self.dimensions}"

    @property
    def query_fingerprint(self) -> str:
        """What the vectors of search texts depend on, where that is more than the fingerprint."""
        return self.fingerprint

    @cached_property
    def usage(self) -> Usage:
        """The calls that workers have made of it, and the tokens these took."""
        return Usage()

    @property
    def tokenizer(self) -> Any:
        """The model's ``tokenizers.Tokenizer``, which cuts nothing off and adds nothing.

        None, as here, has four characters counted as a token.
        """
        return None

    @property
    def max_tokens(self) -> int | None:
        """How many tokens of a text the model reads, besides its prompt and special tokens.

        None, as here: all of them, or it is not known. What is longer is counted, not refused.
        """
        return None

    @abstractmethod
    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape ``(len(texts), dimensions)``, float32 or lists of floats, in order.

        Raise ``UnavailableError`` where the provider is in trouble and ``RefusedError`` where it
        refuses; failed connections and HTTP statuses are known without (``trouble.py``). Whatever
        else is raised is blamed on a text, and the one that it is about is searched for; unless no
        text is answered, which is the provider's trouble.
        """

    def calls_for(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Texts as workers give them to ``embed_documents``, one list a call, in order.

        What one call has answered is kept where the next one fails.
        """
        for start in range(0, len(texts), self.batch_size):
            yield list(texts[start : start + self.batch_size])

    def embed_query(self, text: str) -> Sequence[float]:
        """The vector of a search text, shape ``(dimensions,)``."""
        return self.embed_documents([text])[0]

    def checked_documents(self, texts: Sequence[str]) -> list[HalfVector]:
        """``embed_documents``, with its answer checked.

        Raises ``EmbedderError`` where the number of vectors is wrong or one of them is zero, NaN or
        infinite, and ``MismatchError`` where their length is not the declared one.
        """
        return [HalfVector(row) for row in self.checked_rows(texts)]

    def checked_rows(self, texts: Sequence[str]) -> list[Any]:
        """``checked_documents``, each vector as it came: a list or a row of a numpy array."""
        self.usage.add(calls=1, tokens=0 if self.counts_tokens else tokens_of(texts))
        return self._check(self.embed_documents(texts), len(texts))

    def checked_query(self, text: str) -> list[float]:
        """``embed_query``, with its answer checked.

        Raises ``ValueError`` where ``text`` is blank, or no text that can be sent or read.
        """
        if not text.strip():
            raise ValueError("The text to search for is blank: give it some words.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "The text to search for has half a character in it, a lone surrogate: no model"
                " reads that."
            ) from error
        return [float(value) for value in self._check([self.embed_query(text)], 1)[0]]

    def _check(self, vectors: Vectors, expected: int) -> list[Any]:
        try:
            rows = [row if hasattr(row, "dtype") else list(row) for row in vectors]
            lengths = [len(row) for row in rows]
        except TypeError as error:
            raise self._no_vectors(error) from error
        if len(rows) != expected:
            raise EmbedderError(f"{self.fingerprint} returned {len(rows)} vectors for {expected}.")
        for row, length in zip(rows, lengths, strict=True):
            if length != self.dimensions:
                # Of what is no vector the length says nothing of the model.
                if not length or not is_vector(row):
                    raise self._no_vectors(f"{length} components, or none that are numbers")
                raise MismatchError(
                    f"{self.fingerprint} returns vectors of {length} dimensions and"
                    f" EMBEDSYNC_EMBEDDERS declares {self.dimensions}. Nothing was written."
                    f" Set DIMENSIONS to {length} and run makemigrations."
                )
        try:
            # NaN fails both comparisons.
            is_findable = all(SHORTEST <= norm <= LONGEST for norm in self._norms(vectors, rows))
        except (TypeError, OverflowError) as error:
            raise self._no_vectors(error) from error
        if not is_findable:
            raise EmbedderError(
                f"{self.fingerprint} returned a vector that is zero, not finite or too long for a"
                " halfvec; no search would ever find it."
            )
        return rows

    def _no_vectors(self, why: object) -> EmbedderError:
        return EmbedderError(f"{self.fingerprint} returned something other than vectors: {why}.")

    @staticmethod
    def _norms(vectors: Any, rows: list[Any]) -> list[float]:
        if hasattr(vectors, "dtype"):
            import numpy as np

            norms: list[float] = np.linalg.norm(vectors, axis=1).tolist()
            return norms
        return [math.hypot(*row) for row in rows]


def is_vector(row: Any) -> bool:
    """Whether something with a length has numbers, and nothing else, as components."""
    try:
        math.hypot(*row)
    except (TypeError, OverflowError):
        return False
    return True
