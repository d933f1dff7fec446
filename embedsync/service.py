"""What a worker has for one sidecar: texts go out to the embedder, checked vectors come back."""

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from django.core.exceptions import ImproperlyConfigured
from pgvector import HalfVector, Vector

from embedsync import state
from embedsync.breaker import Breaker
from embedsync.budget import Budget
from embedsync.chunks import Chunks
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.embedders import (
    Embedder,
    MismatchError,
    RefusedError,
    UnansweredError,
    UnavailableError,
)
from embedsync.embedders.trouble import HARMLESS, trouble_of
from embedsync.recent import Made, Recent
from embedsync.space import stored
from embedsync.splitter import Splitter
from embedsync.tokens import Measure

logger = logging.getLogger("embedsync")
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

    def wants(self, keys: list[Asked]) -> bool:
        """Whether a row that has a text has not failed because of another one; or none has it."""
        return not keys or any(pk not in self.failed for pk, _ in keys)

    def add(self, keys: list[Asked], made: Made) -> None:
        """What became of a text that these have."""
        self.vectors.update(dict.fromkeys(keys, made.vector))
        if made.is_cut:
            self.cut.update(pk for pk, _ in keys)


@dataclass
class Call:
    """The calls for some texts as seen from other threads.

    ``is_suspect`` says that its text has failed before, ``has_hung`` that the embedder may have
    hung in it. ``is_probing`` is true as long as a harmless text is being asked for. Of one that
    ``is_abandoned`` nothing counts any more.
    """

    is_suspect: bool = False
    has_hung: bool = False
    is_probing: bool = False
    is_abandoned: bool = False


@dataclass(eq=False)
class Service:
    """A sidecar that a worker serves, what makes its vectors, and what may keep that from it.

    ``splitter`` cuts texts into passages, where they are to be cut and its model is loaded.
    """

    sidecar: type[EmbeddingModel]
    embedder: Embedder
    breaker: Breaker
    budget: Budget
    splitter: Splitter | None = field(default=None, init=False)
    has_warned: bool = field(default=False, init=False)

    @property
    def can_ask(self) -> bool:
        """Whether its embedder may be asked now."""
        return not self.breaker.is_open and not self.budget.seconds_left

    @property
    def fingerprint(self) -> str:
        return state.fingerprint_of(self.sidecar, self.embedder.fingerprint)

    @property
    def chunks(self) -> Chunks | None:
        return declaration_of(self.sidecar).chunks

    @property
    def can_cut(self) -> bool:
        """Whether texts can be cut at once; otherwise the model has to be loaded first."""
        return self.chunks is None or self.splitter is not None

    def load(self) -> Exception | None:
        """Load what cuts texts. Returns why it cannot be loaded: no text is to blame for that."""
        assert self.chunks is not None
        try:
            self.splitter = Splitter(self.chunks, self.embedder)
        except (MismatchError, ImproperlyConfigured) as error:
            return error
        except Exception as error:
            trouble = trouble_of(error)
            if trouble is None:
                said = f"What counts tokens could not be loaded: {type(error).__name__}: {error}"
                return ImproperlyConfigured(said)
            self.breaker.failed(trouble)
            return trouble
        return None

    @cached_property
    def recent(self) -> Recent:
        return Recent()

    @cached_property
    def measure(self) -> Measure:
        return Measure(self.embedder)

    def embed(
        self,
        texts: Mapping[Asked, str],
        stopped: Callable[[], bool],
        call: Call | None = None,
    ) -> Embedded:
        """Vectors of texts, until ``stopped()`` or until no text can be embedded.

        A call that fails because of a text is made again for each half of its texts, and so on: a
        single bad one of n costs 2 log n calls more, and the others have their vectors.

        A text may make its provider fail, too. So the first call after one's trouble is for one
        text, any of them; if that is answered, what fails after it is looked for in the same way,
        and is to blame if it fails again and a harmless text does not. After a call that was never
        answered that first text is a harmless one.

        And an embedder may fail for all texts. So one that fails alone is to blame only if another
        has been answered since the last that was to blame: one of these, or else a harmless one.

        A text that several rows have is embedded once, and not at all where it was a while ago.
        """
        found, how, call = Embedded(), declaration_of(self.sidecar), call or Call()
        same: dict[str, list[Asked]] = {}
        for key, text in texts.items():
            same.setdefault(text, []).append(key)
        for text in list(same):
            if (made := self.recent.get(text)) is not None:
                found.add(same.pop(text), made)
        wanted = list(same)
        if self.chunks is None:
            # Texts of like length together: a batch costs as much as its longest text. Passages are
            # of like length, and those of a row are wanted together.
            wanted.sort(key=len, reverse=True)
        after_trouble, is_answered = self.breaker.failures > 0, False
        unproven: list[str] = []  # of the rows in found.failed
        may_blame = False
        calls, probe = [], [HARMLESS]
        is_silent = isinstance(self.breaker.trouble, UnansweredError)
        if wanted and (is_silent or (call.has_hung and not self.breaker.is_answering())):
            # A text may be what its embedder hangs in. Whether it answers any is asked at once.
            same.setdefault(HARMLESS, [])
            calls.append(probe)
        elif after_trouble and wanted:
            calls.append([wanted.pop(random.randrange(len(wanted)))])  # noqa: S311
        calls += self.embedder.calls_for(wanted)
        while calls and found.trouble is None and not stopped():
            batch = calls.pop(0)
            call.is_probing = batch is probe
            asked = [text for text in batch if found.wants(same[text])]
            if not asked:
                continue
            try:
                rows = self.embedder.checked_rows(asked)
                vectors = [stored(row, how.storage, how.dimensions) for row in rows]
            except (MismatchError, ImproperlyConfigured) as error:
                found.trouble = error
            except Exception as error:
                if call.is_abandoned:
                    break
                trouble = trouble_of(error)
                doubted = call.is_suspect or (after_trouble and is_answered)
                is_blamed = bool(
                    trouble and doubted and self._blames(trouble, asked, stopped, call)
                )
                if trouble is not None and not is_blamed:
                    found.trouble = trouble
                    # At once, before another thread's next call.
                    self.breaker.failed(trouble)
                elif len(asked) > 1:
                    calls[:0] = halves(asked)
                else:
                    blamed = [pk for pk, _ in same[asked[0]] if pk not in found.failed]
                    found.failed.update(dict.fromkeys(blamed, error))
                    unproven += blamed
                    may_blame = may_blame or is_blamed
                    # Else what comes next may be answered, and then it costs no call.
                    if not may_blame and (after_trouble or len(unproven) > len(blamed)):
                        found.trouble = self._trouble_with_all(error, call)
                        may_blame = found.trouble is None
            else:
                if call.is_abandoned:
                    break
                self.breaker.answered()
                is_answered = may_blame = True
                cut = self._too_long(asked)
                for text, made in zip(asked, map(Made, vectors, cut), strict=True):
                    found.add(same[text], made)
                    self.recent.keep(text, made)
            if unproven and may_blame:
                unproven.clear()
                may_blame = False
        if unproven and found.trouble is None and not stopped():
            found.trouble = self._trouble_with_all(found.failed[unproven[0]], call)
            if found.trouble is None:
                unproven.clear()
        for pk in unproven:
            found.failed.pop(pk, None)
        return found

    def ask_harmless(self) -> None:
        """Find out whether the embedder answers at all, beside a call that it does not answer."""
        with suppress(Exception):
            self.embedder.checked_rows([HARMLESS])
            self.breaker.answered()

    def _trouble_with_all(self, error: Exception, call: Call) -> Exception | None:
        """Why a harmless text fails as well as one that failed with ``error``; None if it does not.

        Then the provider or the settings are to blame: a model that it does not have, dimensions
        that the model cannot return, an answer of another shape.
        """
        call.is_probing = True
        try:
            self.embedder.checked_rows([HARMLESS])
        except (MismatchError, ImproperlyConfigured) as second:
            return second
        except Exception as second:
            trouble = trouble_of(second) or RefusedError(
                f"No text can be embedded. Of one: {type(error).__name__}: {error}; of"
                f" {HARMLESS!r}: {type(second).__name__}: {second}"
            )
            self.breaker.failed(trouble)
            return trouble
        return None

    def _too_long(self, texts: list[str]) -> list[bool]:
        if self.chunks is None:  # passages are cut to what the model reads
            try:
                return self.measure.too_long(texts)
            except Exception:
                # The vectors are made and paid for, whatever is wrong with what counts tokens.
                logger.exception("%s: its tokens cannot be counted", self.sidecar._meta.label)
        return [False] * len(texts)

    def warn_of(self, cut: int) -> None:
        """Say once that texts, of so many rows by now, are longer than the model reads."""
        if cut and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "%s: %d of the rows that have just been embedded are longer than the %d tokens that"
                " the model reads, which has not seen the rest of them. Declare chunks=Chunks(...)."
                " embed_status counts such rows; this is said once.",
                self.sidecar._meta.label,
                cut,
                self.measure.most,
            )

    def _blames(
        self,
        trouble: UnavailableError,
        asked: list[str],
        stopped: Callable[[], bool],
        call: Call,
    ) -> bool:
        if len(asked) > 1:
            return not trouble.is_busy
        # A provider that fails now and then would get one row after the other parked.
        return (
            self.breaker.blames(trouble)
            and not stopped()
            and self._fails(asked, call)
            and not stopped()
            and not self._fails([HARMLESS], call)
        )

    def _fails(self, texts: list[str], call: Call) -> bool:
        call.is_probing = texts == [HARMLESS]
        try:
            self.embedder.checked_rows(texts)
        except Exception:
            return True
        return False


def halves(keys: list[T]) -> list[list[T]]:
    """Both halves of a list of two or more, in order."""
    middle = len(keys) // 2
    return [keys[:middle], keys[middle:]]
