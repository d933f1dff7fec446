"""Cohere and Voyage: documents and search texts are told apart, within each provider's limits."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders import EmbedderError, RefusedError
from embedsync.embedders.cohere import CohereEmbedder
from embedsync.embedders.hashing import HashingEmbedder
from embedsync.embedders.trouble import trouble_of
from embedsync.embedders.voyage import VoyageEmbedder
from tests.openai_provider import JSON, KEY, CohereProvider, OpenAIProvider
from tests.provider import running_provider

HASHED = HashingEmbedder(model="", dimensions=64)


@pytest.fixture
def cohere():
    with running_provider(CohereProvider) as provider:
        yield provider


@pytest.fixture
def voyage():
    with running_provider(OpenAIProvider) as provider:
        yield provider


def of_cohere(provider, **options):
    given = {"model": "embed-english-v3.0", "dimensions": 64, "base_url": provider.url}
    return CohereEmbedder(**{**given, "api_key": KEY, **options})


def of_voyage(provider, **options):
    given = {"model": "voyage-law-2", "dimensions": 64, "base_url": provider.url}
    return VoyageEmbedder(**{**given, "api_key": KEY, **options})


class TestCohere:
    def test_documents_and_search_texts(self, cohere):
        embedder = of_cohere(cohere, query_prompt="query: ")
        (row,) = embedder.checked_rows(["red apple"])
        assert row == pytest.approx(HASHED.embed_documents(["red apple"])[0])
        assert embedder.usage.take() == (1, 7)
        embedder.checked_query("green pear")
        plain = {"model": "embed-english-v3.0", "embedding_types": ["float"]}
        assert cohere.calls == [
            {**plain, "texts": ["red apple"], "input_type": "search_document"},
            {**plain, "texts": ["query: green pear"], "input_type": "search_query"},
        ]
        path, headers = cohere.heard[0]
        assert (path, headers["authorization"]) == ("/v2/embed", f"Bearer {KEY}")

    def test_dimensions_and_other_fields(self, cohere):
        of_cohere(cohere, model="embed-v4.0", extra_body={"truncate": "NONE"}).checked_query("a")
        assert cohere.calls[0]["output_dimension"] == 64
        assert cohere.calls[0]["truncate"] == "NONE"

    def test_no_more_than_96_texts_at_once(self, cohere):
        embedder = of_cohere(cohere)
        assert embedder.batch_size == 96
        embedder.checked_documents([f"word{n}" for n in range(200)])
        assert [len(body["texts"]) for body in cohere.calls] == [96, 96, 8]

    def test_faults(self, cohere):
        def fails(status, content, **headers):
            cohere.answer = lambda body: (status, {**JSON, **headers}, content)
            with pytest.raises(Exception) as caught:  # noqa: PT011
                of_cohere(cohere).checked_documents(["a", "b"])
            return caught.value, trouble_of(caught.value)

        error, trouble = fails(401, {"id": "1", "message": f"invalid api token {KEY}"})
        assert isinstance(trouble, RefusedError)
        assert str(error) == "Error code: 401 - invalid api token ***"
        _, trouble = fails(429, {"message": "trial key"}, **{"Retry-After": "7"})
        assert trouble.retry_after == 7
        assert fails(400, {"message": "too many tokens"})[1] is None
        error, _ = fails(200, {"embeddings": {"float": [[1.0] * 64]}})
        assert isinstance(error, EmbedderError)
        assert "returned 1 vectors for 2 texts" in str(error)
        error, _ = fails(200, {"embeddings": [[1.0] * 64]})
        assert isinstance(error, RefusedError)

    def test_tokens_that_are_not_told_are_guessed(self, cohere):
        vectors = {"float": [[1.0] * 64]}
        cohere.answer = lambda body: (200, JSON, {"embeddings": vectors, "meta": None})
        embedder = of_cohere(cohere)
        embedder.checked_documents(["twelve chars"])
        assert embedder.usage.take() == (1, 3)


class TestVoyage:
    def test_documents_and_search_texts(self, voyage):
        embedder = of_voyage(voyage)
        (row,) = embedder.checked_rows(["red apple"])
        assert row == pytest.approx(HASHED.embed_documents(["red apple"])[0], abs=1e-6)
        assert embedder.usage.take() == (1, 2)
        embedder.checked_query("green pear")
        assert [body["input_type"] for body in voyage.calls] == ["document", "query"]
        assert "output_dimension" not in voyage.calls[0]

    def test_dimensions(self, voyage):
        of_voyage(voyage, model="voyage-4").checked_query("a")
        assert voyage.calls[0]["output_dimension"] == 64
        assert "dimensions" not in voyage.calls[0]

    @pytest.mark.parametrize(
        ("model", "tokens"),
        [
            ("voyage-4", 320_000),
            ("voyage-4-large", 120_000),
            ("voyage-4-lite", 1_000_000),
            ("voyage-3.5", 320_000),
            ("voyage-3.5-lite", 1_000_000),
            ("voyage-code-3", 120_000),
        ],
    )
    def test_tokens_of_a_request(self, voyage, model, tokens):
        embedder = of_voyage(voyage, model=model)
        assert (embedder.request_tokens, embedder.inputs) == (tokens, 1000)


@pytest.mark.parametrize(
    ("kind", "variable"), [(CohereEmbedder, "CO_API_KEY"), (VoyageEmbedder, "VOYAGE_API_KEY")]
)
def test_keys(monkeypatch, kind, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ImproperlyConfigured, match=f"There is no API key in .* {variable}"):
        kind(model="m", dimensions=3).embed_query("a")
    monkeypatch.setenv(variable, KEY)
    assert kind(model="m", dimensions=3)._key == KEY
    fingerprints = {kind(model="m", dimensions=3).fingerprint for kind in (CohereEmbedder, kind)}
    assert KEY not in str(fingerprints)


@pytest.mark.parametrize("kind", [CohereEmbedder, VoyageEmbedder])
def test_there_is_no_provider_to_choose(kind):
    with pytest.raises(ImproperlyConfigured, match="an option of OpenAIEmbedder alone"):
        kind(model="m", dimensions=3, provider="openai")
