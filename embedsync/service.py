"""What a worker has for one sidecar: texts go out to the embedder, checked vectors come back."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from django.core.exceptions import ImproperlyConfigured
from pgvector import HalfVector, Vector

from embedsync import state
from embedsync.breaker import Breaker
from embedsync.chunks import Chunks
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.embedders import Embedder, MismatchError, UnavailableError
from embedsync.embedders.trouble import trouble_of
from embedsync.space import stored
from embedsync.splitter import Splitter
from embedsync.tokens import Measure

T = TypeVar("T")


Asked = tuple[str, int]  # a row's key, and which of its passages


@dataclass
class Embedded:
    """What came of some texts: vectors, and the errors of rows that are to blame for them.

    The rest was not embedded: because the worker is to stop, because another passage of its row
    failed, or because of ``trouble``, with the provider or with the settings. ``cut`` are rows of
    whose text the model has read the beginning only.
    """

    vectors: dict[Asked, HalfVector | Vector] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    trouble: Exception | None = None


@dataclass(frozen=True)
class Service:
    """A sidecar that a worker serves, what makes its vectors, and the breaker of its provider."""

    sidecar: type[EmbeddingModel]
    embedder: Embedder
    breaker: Breaker

    @property
    def fingerprint(self) -> str:
        return state.fingerprint_of(self.sidecar, self.embedder.fingerprint)

    @property
    def chunks(self) -> Chunks | None:
        return declaration_of(self.sidecar).chunks

    @cached_property
    def splitter(self) -> Splitter | None:
        """What cuts texts into passages. Loads the model; raises ``ImproperlyConfigured``."""
        return None if self.chunks is None else Splitter(self.chunks, self.embedder)

    @cached_property
    def measure(self) -> Measure:
        return Measure(self.embedder)

    def embed(
        self, texts: Mapping[Asked, str], stopped: Callable[[], bool], *, suspect: bool = False
    ) -> Embedded:
        """Vectors of texts, until ``stopped()`` or until no text can be embedded.

        A call that fails because of a text is made again for each half of its texts, and so on: a
        single bad one of n costs 2 log n calls more, and the others have their vectors.

        A text may make its provider fail, too. So the first call after one's trouble is for one
        text, any of them; if that is answered, what fails after it is looked for in the same way.
        ``suspect`` says that the text has failed before.
        """
        found, how = Embedded(), declaration_of(self.sidecar)
        keys = list(texts)
        if self.chunks is None:
            # Texts of like length together: a batch costs as much as its longest text. Passages are
            # of like length, and those of a row are wanted together.
            keys.sort(key=lambda key: len(texts[key]), reverse=True)
        after_trouble = self.breaker.failures > 0
        calls = []
        if after_trouble and keys:
            probe = random.choice(keys)  # noqa: S311
            keys.remove(probe)
            calls.append([probe])
        size = self.embedder.batch_size
        calls += [keys[start : start + size] for start in range(0, len(keys), size)]
        while calls and found.trouble is None and not stopped():
            asked = [key for key in calls.pop(0) if key[0] not in found.failed]
            if not asked:
                continue
            try:
                rows = self.embedder.checked_rows([texts[key] for key in asked])
                vectors = [stored(row, how.storage, how.dimensions) for row in rows]
            except (MismatchError, ImproperlyConfigured) as error:
                found.trouble = error
            except Exception as error:
                trouble = trouble_of(error)
                doubted = suspect or (after_trouble and bool(found.vectors))
                if trouble is not None and not (doubted and self._blames(trouble, asked)):
                    found.trouble = trouble
                    # At once, before another thread's next call.
                    self.breaker.failed(trouble)
                elif len(asked) > 1:
                    calls[:0] = halves(asked)
                else:
                    found.failed[asked[0][0]] = error
            else:
                self.breaker.answered()
                found.vectors.update(zip(asked, vectors, strict=True))
                if self.chunks is None:
                    too_long = self.measure.too_long([texts[key] for key in asked])
                    found.cut.update(
                        pk for (pk, _), cut in zip(asked, too_long, strict=True) if cut
                    )
        return found

    def _blames(self, trouble: UnavailableError, asked: list[Asked]) -> bool:
        if len(asked) > 1:
            return not trouble.is_busy
        return self.breaker.blames(trouble)


def halves(keys: list[T]) -> list[list[T]]:
    middle = len(keys) // 2
    return [keys[:middle], keys[middle:]]
