"""A text is to blame only where an embedder works: otherwise each row would be parked in turn."""

import itertools

import pytest
from django.core.exceptions import ImproperlyConfigured

from embedsync.breaker import Breaker
from embedsync.embedders import MismatchError, RefusedError, UnavailableError
from embedsync.embedders.hashing import HashingEmbedder
from embedsync.embedders.trouble import HARMLESS
from embedsync.service import Service
from tests.books import BookEmbedding
from tests.openai_provider import JSON, CohereProvider, OpenAIProvider, embedder_of
from tests.provider import running_provider

TEXTS = {(str(n), 0): f"text {n}" for n in range(64)}


class Told(HashingEmbedder):
    """Answers with what ``answer`` makes of texts and vectors; ``calls`` are the texts."""

    def __init__(self, answer):
        super().__init__(model="m", dimensions=64)
        self.answer, self.calls = answer, []

    def embed_documents(self, texts):
        self.calls.append(texts)
        return self.answer(texts, super().embed_documents(texts))


def service_of(embedder):
    return Service(BookEmbedding, embedder, Breaker(), None)


def embedded(embedder, texts=TEXTS, stopped=lambda: False):
    return service_of(embedder).embed(texts, stopped)


def never(texts, vectors):
    raise ValueError("not today")


WRONG = {
    "raises": never,
    "nothing": lambda texts, vectors: None,
    "nested": lambda texts, vectors: [[vector] for vector in vectors],
    "rows of nothing": lambda texts, vectors: [None for _ in texts],
    "null components": lambda texts, vectors: [[None] * 64 for _ in texts],
    "words": lambda texts, vectors: [["a"] * 64 for _ in texts],
    "zero": lambda texts, vectors: [[0.0] * 64 for _ in texts],
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_no_text_is_to_blame_where_none_is_answered(answer):
    embedder = Told(answer)
    service = service_of(embedder)
    found = service.embed(TEXTS, lambda: False)
    assert (found.vectors, found.failed) == ({}, {})
    assert isinstance(found.trouble, RefusedError)
    assert "No text can be embedded. Of one: " in str(found.trouble)
    assert service.breaker.is_open
    assert len(embedder.calls) <= 1 + 6 + 2
    assert embedder.calls[-1] == [HARMLESS]
    assert embedder.usage.calls == len(embedder.calls)


def test_a_probe_is_two_calls():
    embedder = Told(never)
    service = service_of(embedder)
    service.breaker.failures = 1
    assert isinstance(service.embed(TEXTS, lambda: False).trouble, RefusedError)
    assert len(embedder.calls) == 2


@pytest.mark.parametrize("number", [0, 31, 63])
def test_one_bad_text_costs_no_other_call(number):
    bad = f"text {number}"
    embedder = Told(lambda texts, vectors: never(texts, vectors) if bad in texts else vectors)
    found = embedded(embedder)
    assert found.failed.keys() == {str(number)}
    assert len(found.vectors) == 63
    assert len(embedder.calls) == 1 + 2 * 6


def test_the_only_text_is_compared_with_a_harmless_one():
    def answer(texts, vectors):
        return vectors if texts == [HARMLESS] else never(texts, vectors)

    embedder = Told(answer)
    found = embedded(embedder, {("1", 0): "text"})
    assert (found.failed.keys(), found.trouble) == ({"1"}, None)
    assert embedder.calls == [["text"], [HARMLESS]]


def test_all_texts_but_a_harmless_one_are_bad():
    def answer(texts, vectors):
        return vectors if texts == [HARMLESS] else never(texts, vectors)

    assert embedded(Told(answer)).failed.keys() == {pk for pk, _ in TEXTS}


def test_an_embedder_that_fails_for_all_from_some_call_on():
    """What it has answered before says nothing of it any more."""
    turns = itertools.count()
    embedder = Told(lambda texts, vectors: never(texts, vectors) if next(turns) else vectors)
    embedder.batch_size = 32
    found = embedded(embedder)
    assert (len(found.vectors), len(found.failed)) == (32, 1)
    assert isinstance(found.trouble, RefusedError)


@pytest.mark.parametrize(
    "second",
    [UnavailableError("away"), MismatchError("other"), ImproperlyConfigured("no key")],
    ids=lambda error: type(error).__name__,
)
def test_trouble_with_the_harmless_text_is_told_as_it_is(second):
    def answer(texts, vectors):
        if texts == [HARMLESS]:
            raise second
        never(texts, vectors)

    found = embedded(Told(answer))
    assert (found.trouble, found.failed) == (second, {})


def test_who_is_to_stop_asks_no_more():
    embedder = Told(never)
    found = embedded(embedder, {("1", 0): "text"}, lambda: bool(embedder.calls))
    assert (found.failed, found.trouble, embedder.calls) == ({}, None, [["text"]])


class TestProviders:
    @pytest.mark.parametrize("status", [400, 422])
    def test_one_that_refuses_all(self, status):
        with running_provider(OpenAIProvider) as provider:
            provider.fails(status, "This model does not support dimensions.")
            found = embedded(embedder_of(provider), {("1", 0): "a"})
            assert provider.texts == [["a"], [HARMLESS]]
        assert found.failed == {}
        assert "does not support dimensions" in str(found.trouble)

    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("value", [[[1.0] * 64], [None] * 64, ["1"] * 64, 7, {"a": 1}])
    def test_other_shapes(self, value, normalize):
        with running_provider(OpenAIProvider) as provider:
            provider.change = lambda items: [{**item, "embedding": value} for item in items]
            found = embedded(embedder_of(provider, normalize=normalize))
        assert isinstance(found.trouble, RefusedError)
        assert found.failed == {}

    def test_cohere_without_vectors(self):
        from embedsync.embedders.cohere import CohereEmbedder

        with running_provider(CohereProvider) as provider:
            provider.answer = lambda body: (
                200,
                JSON,
                {"embeddings": {"float": [None] * len(body["texts"])}},
            )
            embedder = CohereEmbedder(model="m", dimensions=64, base_url=provider.url, api_key="k")
            found = embedded(embedder)
        assert isinstance(found.trouble, RefusedError)
        assert found.failed == {}
