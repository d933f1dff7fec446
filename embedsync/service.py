"""What a worker has for one sidecar: texts go out to the embedder, checked vectors come back."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from django.core.exceptions import ImproperlyConfigured
from pgvector import HalfVector, Vector

from embedsync import state
from embedsync.breaker import Breaker
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.embedders import Embedder, MismatchError, UnavailableError
from embedsync.embedders.trouble import trouble_of
from embedsync.space import stored


@dataclass
class Embedded:
    """What came of some texts, by key: vectors, and the errors of those that are to blame for them.

    The rest was not embedded: because the worker is to stop, or because of ``trouble``, with the
    provider or with the settings.
    """

    vectors: dict[str, HalfVector | Vector] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
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

    def embed(
        self, texts: Mapping[str, str], stopped: Callable[[], bool], *, suspect: bool = False
    ) -> Embedded:
        """Vectors of texts by key, until ``stopped()`` or until no text can be embedded.

        A call that fails because of a text is made again for each half of its texts, and so on: a
        single bad one of n costs 2 log n calls more, and the others have their vectors.

        A text may make its provider fail, too. So the first call after one's trouble is for one
        text, any of them; if that is answered, what fails after it is looked for in the same way.
        ``suspect`` says that the text has failed before.
        """
        found, how = Embedded(), declaration_of(self.sidecar)
        # Texts of like length together: a batch costs as much as its longest text.
        pks = sorted(texts, key=lambda pk: len(texts[pk]), reverse=True)
        after_trouble = self.breaker.failures > 0
        calls = []
        if after_trouble and pks:
            probe = random.choice(pks)  # noqa: S311
            pks.remove(probe)
            calls.append([probe])
        size = self.embedder.batch_size
        calls += [pks[start : start + size] for start in range(0, len(pks), size)]
        while calls and found.trouble is None and not stopped():
            asked = calls.pop(0)
            try:
                rows = self.embedder.checked_rows([texts[pk] for pk in asked])
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
                    found.failed[asked[0]] = error
            else:
                self.breaker.answered()
                found.vectors.update(zip(asked, vectors, strict=True))
        return found

    def _blames(self, trouble: UnavailableError, asked: list[str]) -> bool:
        if len(asked) > 1:
            return not trouble.is_busy
        return self.breaker.blames(trouble)


def halves(pks: list[str]) -> list[list[str]]:
    middle = len(pks) // 2
    return [pks[:middle], pks[middle:]]
