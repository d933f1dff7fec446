"""What embedsync relies on in an embedder, as tests that projects run over their own."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.utils.module_loading import import_string

from embedsync.conf import settings
from embedsync.embedders import Embedder, get_embedder
from embedsync.tokens import Measure

TEXTS = (
    "The dough has to rest for an hour before the loaf goes into the oven.",
    "Interest rates rose again, and shares of banks fell on all markets.",
    "A goalkeeper saved three penalties in the last minutes of the match.",
    "The telescope found a planet that circles two stars.",
)
ODD_TEXTS = {
    "one character": "a",
    "an emoji": "\U0001f916",
    "punctuation": "...",
    "several lines": "A heading\r\n\r\n\tand a line\n\n\n",
    "other scripts": "\u0646\u0635 \u4f60\u597d \u05e9\u05dc\u05d5\u05dd e\u0301",
    "markup": "<p class='x'>&amp; {title} %s \\ \x01</p>",
}
THREADS = 4
APART = 0.001  # the least cosine distance of texts that have nothing in common


class EmbedderContract:
    """Tests of the embedder that ``EMBEDSYNC_EMBEDDERS`` names ``embedder``; subclass it.

    Each asserts one thing that embedsync relies on, and says what it would do otherwise. They make
    some fifty calls. For pytest: ``class TestMine(EmbedderContract)``; for Django's runner:
    ``class MineTests(EmbedderContract, SimpleTestCase)``.

    ``tolerance`` is the cosine distance that is taken for noise; ``longest`` is how many characters
    a text of yours may have.
    """

    embedder: str = "default"
    tolerance: float = 0.01
    longest: int = 100_000

    def make(self, **changed: Any) -> Embedder:
        """A new embedder as the settings have it, ``model`` or ``dimensions`` changed."""
        config = settings.embedder(self.embedder)
        arguments = {"model": config.model, "dimensions": config.dimensions, **config.options}
        made: Embedder = import_string(config.backend)(**{**arguments, **changed})
        return made

    @property
    def subject(self) -> Embedder:
        """The one that a worker and a search of this process use."""
        return get_embedder(self.embedder)

    def test_each_text_has_a_vector(self) -> None:
        size = self.subject.batch_size
        expect(
            type(size) is int and size > 0,
            f"batch_size is {size!r}. Workers give embed_documents() at most so many texts: make it"
            " a whole number, 1 or more.",
        )
        for count in sorted({1, 2, size}):
            self.vectors([f"{n}. {TEXTS[n % len(TEXTS)]}" for n in range(count)], f"{count} texts")

    def test_vectors_are_in_the_order_of_their_texts(self) -> None:
        together = self.vectors(TEXTS, "texts in one call")
        reversed_ = self.vectors(TEXTS[::-1], "the same texts in reverse")[::-1]
        for n, text in enumerate(TEXTS):
            (alone,) = self.vectors([text], "one text")
            for other in (together[n], reversed_[n]):
                self.expect_same(
                    alone,
                    other,
                    "A text has another vector alone than among others. Each vector must be that"
                    " of its own text, in the order of the texts: rows would have the vectors of"
                    " other rows",
                )

    def test_a_full_call_is_in_order_too(self) -> None:
        size = self.subject.batch_size
        texts = [f"{n}. {TEXTS[n % len(TEXTS)]}{' And more.' * (n % 7)}" for n in range(size)]
        whole = self.vectors(texts, f"{size} texts")
        for n in sorted({0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size))):
            (alone,) = self.vectors([texts[n]], "one text")
            self.expect_same(
                alone,
                whole[n],
                f"In a call of {size} texts, as many as batch_size lets a worker give it, text {n}"
                " has another vector than alone. Rows would have the vectors of other rows",
            )

    def test_the_same_text_has_the_same_vector(self) -> None:
        first, second = (self.vectors(TEXTS[:1], "one text")[0] for _ in range(2))
        self.expect_same(
            first,
            second,
            "The same text has another vector at each call. Workers embed a text once and keep the"
            " vector: searches would find by chance",
        )

    def test_other_texts_have_other_vectors(self) -> None:
        first, *others = self.vectors(TEXTS, "texts in one call")
        for other in others:
            expect(
                distance(first, other) > APART,
                "Texts that have nothing in common have the same vector: no search could tell them"
                " apart.",
            )

    def test_odd_texts(self) -> None:
        for name, text in ODD_TEXTS.items():
            self.vectors([text], f"a text of {name}")

    def test_a_very_long_text(self) -> None:
        text = " ".join(TEXTS) + " "
        self.vectors(
            [(text * (self.longest // len(text) + 1))[: self.longest]],
            f"a text of {self.longest} characters (set longest= to fewer where yours have fewer)",
        )

    def test_a_search_text_is_nearest_to_itself(self) -> None:
        documents = self.vectors(TEXTS, "texts in one call")
        for n, text in enumerate(TEXTS):
            query = self.subject.checked_query(text)
            nearest = min(range(len(TEXTS)), key=lambda k: distance(query, documents[k]))
            expect(
                nearest == n,
                "embed_query() of a text is nearer to the vector of another text than to that of"
                " the text itself. Searches compare the one with the others: both must be of the"
                " same model.",
            )

    def test_the_fingerprint_names_the_vectors(self) -> None:
        for name in ("fingerprint", "query_fingerprint"):
            found = getattr(self.subject, name)
            expect(
                isinstance(found, str) and bool(found) and "\0" not in found,
                f"{name} is {found!r}. It is stored with the vectors: make it a text that is not"
                " empty, and without NUL.",
            )
            self.vectors(TEXTS[:1], "one text")
            self.subject.checked_query(TEXTS[0])
            expect(
                getattr(self.subject, name) == found,
                f"{name} has changed with use, from {found!r} to {getattr(self.subject, name)!r}."
                " Workers would refuse the vectors that they have made.",
            )
            made = getattr(self.make(), name)
            expect(
                made == found,
                f"{name} of another instance with the same settings is {made!r}, not {found!r}."
                " Each process has one of its own: they would refuse each other's vectors.",
            )

    def test_another_model_has_another_fingerprint(self) -> None:
        subject = self.subject
        others: list[dict[str, Any]] = [
            {"model": f"{subject.model}-another"},
            {"dimensions": subject.dimensions + 1},
        ]
        for changed in others:
            try:
                other = self.make(**changed)
            except Exception:  # noqa: S112
                continue  # what it cannot be made for has no vectors
            expect(
                other.fingerprint != subject.fingerprint,
                f"With {changed} the fingerprint is still {subject.fingerprint!r}. It is how"
                " embedsync knows that vectors were made by another model: it would compare the"
                " vectors of both.",
            )

    def test_several_threads_at_once(self) -> None:
        alone = [self.vectors([text], "one text")[0] for text in TEXTS]
        numbers = [n % len(TEXTS) for n in range(2 * THREADS)]
        with ThreadPoolExecutor(THREADS) as threads:
            found = list(
                threads.map(lambda n: self.vectors([TEXTS[n]], "one text in a thread")[0], numbers)
            )
        for n, vector in zip(numbers, found, strict=True):
            self.expect_same(
                alone[n],
                vector,
                "Called from several threads at once, a text has another vector. Web servers and"
                " EMBEDSYNC_CONCURRENCY do so: keep nothing of a call in the instance, or lock it",
            )

    def test_tokens_are_counted(self) -> None:
        most, tokenizer = self.subject.max_tokens, self.subject.tokenizer
        expect(
            most is None or (type(most) is int and most > 0),
            f"max_tokens is {most!r}. It is how many tokens the model reads, 1 or more, or None"
            " where that is not known.",
        )
        many = "word " * (2 * (most or 1000))
        if tokenizer is not None:
            short, long = tokenizer.encode_batch_fast(["word", many], add_special_tokens=False)
            expect(
                len(short) < len(long),
                "The tokenizer pads: it counts as many tokens in a short text as in a long one"
                " beside it. Passages would be cut in the wrong places. Call no_padding().",
            )
            expect(
                len(long) > (most or 1000),
                "The tokenizer cuts texts off: it counts no more tokens than the model reads."
                " Nobody would be told that the rest is not read. Call no_truncation().",
            )
        too_long = Measure(self.subject).too_long(["word", many])
        expect(
            too_long == [False, most is not None],
            f"With max_tokens={most} and this tokenizer {too_long} are too long, of a word and of"
            f" {2 * (most or 1000)} words. embed_status would count the wrong rows.",
        )

    def vectors(self, texts: Sequence[str], what: str) -> list[list[float]]:
        """The checked vectors of texts. Raises ``AssertionError`` where a worker has none."""
        try:
            checked = self.subject.checked_documents(list(texts))
        except Exception as error:
            raise AssertionError(
                f"embed_documents() failed for {what}: {type(error).__name__}: {error}\n"
                "A worker would write no vector, try again, and in the end park the row."
            ) from error
        return [vector.to_list() for vector in checked]

    def expect_same(self, one: Sequence[float], other: Sequence[float], otherwise: str) -> None:
        found = distance(one, other)
        expect(found <= self.tolerance, f"{otherwise} (cosine distance {found:.3f}).")


def expect(condition: bool, otherwise: str) -> None:
    # An assert statement would say nothing under python -O, and little outside pytest's rewriting.
    if not condition:
        raise AssertionError(otherwise)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine distance of two vectors ``(n,)``, 0 to 2."""
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return 1 - product / (math.hypot(*one) * math.hypot(*other))
