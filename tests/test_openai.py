"""OpenAIEmbedder: what it asks for, what it makes of answers, and its settings."""

import math
import subprocess
import sys
from functools import partial
from urllib.parse import urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders import EmbedderError, MismatchError, RefusedError, get_embedder
from embedsync.embedders.hashing import HashingEmbedder
from embedsync.embedders.openai import OpenAIEmbedder
from embedsync.embedders.presets import PRESETS, Preset
from embedsync.embedders.trouble import trouble_of
from embedsync.testing import EmbedderContract
from example_project.postgres import PROJECT
from tests.openai_provider import JSON, KEY, OpenAIProvider, embedder_of, encoded
from tests.provider import running_provider

HASHED = HashingEmbedder(model="", dimensions=64)


@pytest.fixture
def provider():
    with running_provider(OpenAIProvider) as provider:
        yield provider


@pytest.fixture
def make(provider):
    return partial(embedder_of, provider)


class TestContract(EmbedderContract):
    @pytest.fixture(autouse=True)
    def served(self, settings, provider):
        backend = "embedsync.embedders.openai.OpenAIEmbedder"
        options = {"base_url": provider.url, "api_key": KEY, "batch_size": 16}
        entry = {"BACKEND": backend, "MODEL": "hashed", "DIMENSIONS": 64, "OPTIONS": options}
        settings.EMBEDSYNC_EMBEDDERS = {"default": entry}


class TestRequests:
    def test_base64_is_asked_for_and_understood(self, make, provider):
        rows = make().checked_rows(["red apple", "green pear"])
        assert provider.calls == [
            {"model": "hashed", "input": ["red apple", "green pear"], "encoding_format": "base64"}
        ]
        ((path, headers),) = provider.heard
        assert (path, headers["authorization"]) == ("/v1/embeddings", f"Bearer {KEY}")
        for row, wanted in zip(
            rows, HASHED.embed_documents(["red apple", "green pear"]), strict=True
        ):
            assert row == pytest.approx(wanted, abs=1e-6)

    @pytest.mark.parametrize("asked", ["base64", "float"])
    def test_floats_will_do(self, make, provider, asked):
        provider.knows_base64 = False
        (row,) = make(encoding_format=asked).checked_rows(["red apple"])
        assert row == pytest.approx(HASHED.embed_documents(["red apple"])[0])
        assert provider.calls[0]["encoding_format"] == asked

    def test_no_numpy_is_needed(self, provider):
        code = f"""
import sys
sys.modules["numpy"] = None
from embedsync.embedders.openai import OpenAIEmbedder
embedder = OpenAIEmbedder(model="m", dimensions=64, base_url={provider.url!r}, api_key="k")
assert len(embedder.checked_rows(["red apple"])[0]) == 64
"""
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
        assert provider.calls[0]["encoding_format"] == "base64"

    def test_dimensions_are_sent_where_they_are_taken(self, make, provider):
        text = "one two three four five six seven eight"
        make().checked_query(text)
        make(dimensions=32, send_dimensions=True).checked_query(text)
        openai = {"provider": "openai", "model": "text-embedding-3-small"}
        make(dimensions=32, **openai).checked_query(text)
        make(send_dimensions=False, **openai).checked_query(text)
        assert [body.get("dimensions") for body in provider.calls] == [None, 32, 32, None]

    def test_prompts(self, make, provider):
        prompts = {"query_prompt": "query: ", "document_prompt": "passage: "}
        for embedder in (make(**prompts), make(provider="mixedbread", **prompts)):
            embedder.checked_query("a")
            embedder.checked_documents(["b"])
        said = [(body["input"], body.get("prompt")) for body in provider.calls]
        assert said[:2] == [(["query: a"], None), (["passage: b"], None)]
        assert said[2:] == [(["a"], "query: "), (["b"], "passage: ")]

    def test_extra_fields_and_headers(self, make, provider):
        make(extra_body={"normalized": True}, headers={"X-Team": "films\n"}).checked_query("a")
        assert provider.calls[0]["normalized"] is True
        assert provider.heard[0][1]["x-team"] == "films"

    def test_no_more_texts_and_tokens_than_a_request_may_have(self, make, provider):
        embedder = make(batch_size=3)
        texts = [f"word{n}" for n in range(8)]
        assert len(embedder.checked_documents(texts)) == 8
        assert [len(request) for request in provider.texts] == [3, 3, 2]
        assert embedder.usage.take() == (3, 8)
        provider.calls.clear()
        texts = ["a" * 50, "b" * 50, "c" * 150, "d" * 10, "\u6f22" * 30]  # 26, 26, 76, 6, 46
        rows = make(request_tokens=60).checked_rows(texts)
        assert [len(request) for request in provider.texts] == [2, 1, 2]
        assert rows == [pytest.approx(row, abs=1e-6) for row in HASHED.embed_documents(texts)]

    def test_tokens_are_counted_by_the_provider_or_else_guessed(self, make, provider):
        embedder = make()
        embedder.checked_documents(["one two", "three"])
        assert embedder.usage.take() == (1, 3)

        def answer(body):
            status, headers, content = provider.works(body)
            return status, headers, {**content, "usage": None}

        provider.answer = answer
        embedder.checked_documents(["four", "five"])
        assert embedder.usage.take() == (1, 2)


class TestAnswers:
    def test_order_is_that_of_the_indexes(self, make, provider):
        provider.change = lambda items: items[::-1]
        texts = ["red", "green", "blue"]
        for row, wanted in zip(
            make().checked_rows(texts), HASHED.embed_documents(texts), strict=True
        ):
            assert row == pytest.approx(wanted)

    @pytest.mark.parametrize(
        "change",
        [
            lambda items: items[:-1],
            lambda items: [*items, items[0]],
            lambda items: [{**item, "index": 0} for item in items],
            lambda items: [{**item, "index": item["index"] + 1} for item in items],
        ],
        ids=["too few", "too many", "one index twice", "an index too high"],
    )
    def test_wrong_indexes(self, make, provider, change):
        provider.change = change
        with pytest.raises(EmbedderError, match=r"returned \d vectors for 3 texts") as caught:
            make().checked_documents(["a", "b", "c"])
        assert trouble_of(caught.value) is None

    @pytest.mark.parametrize("number", [{}, {"index": None}], ids=["none", "null"])
    def test_without_indexes_the_order_counts(self, make, provider, number):
        expected = make().embed_documents(["a", "b", "c"])
        provider.change = lambda items: [
            {"object": "embedding", "embedding": item["embedding"], **number} for item in items
        ]
        assert make().embed_documents(["a", "b", "c"]) == expected

    def test_some_indexes_are_none(self, make, provider):
        provider.change = lambda items: [{**items[0], "index": None}, *items[1:]]
        with pytest.raises(EmbedderError, match="numbers some of its vectors") as caught:
            make().checked_documents(["a", "b"])
        assert trouble_of(caught.value) is None

    @pytest.mark.parametrize("tokens", [-5, "5", None], ids=str)
    def test_a_count_of_tokens_that_is_none(self, make, provider, tokens):
        def answer(body):
            status, headers, content = provider.works(body)
            return status, headers, {**content, "usage": {"total_tokens": tokens}}

        provider.answer = answer
        embedder = make()
        embedder.checked_documents(["a text"])
        assert embedder.usage.take() == (1, 2)

    def test_vectors_are_brought_to_length_one(self, make, provider):
        provider.length = 0.61
        assert math.hypot(*make().checked_rows(["red apple"])[0]) == pytest.approx(1)
        assert math.hypot(*make(normalize=False).checked_rows(["a"])[0]) == pytest.approx(0.61)

    @pytest.mark.parametrize(
        "vector",
        [[0.0] * 64, encoded([0.0] * 64), encoded([math.nan] * 64), encoded([math.inf] * 64)],
        ids=["zeros", "zeros in base64", "nan", "infinite"],
    )
    def test_vectors_that_are_none(self, make, provider, vector):
        provider.change = lambda items: [{**item, "embedding": vector} for item in items]
        with pytest.raises(EmbedderError, match="no search would ever find it"):
            make().checked_documents(["a"])

    def test_wrong_dimensions(self, make):
        with pytest.raises(MismatchError, match=r"returns vectors of 64 dimensions .* declares 32"):
            make(dimensions=32).checked_documents(["a"])

    @pytest.mark.parametrize(
        "answer",
        [
            (200, {"Content-Type": "text/html"}, "<html>Welcome</html>"),
            (200, JSON, "[1, 2"),
            (200, JSON, {"data": []}),
            (200, JSON, {"vectors": [[1.0]]}),
            (200, JSON, {"data": [{"index": 0, "embedding": "?"}]}),
        ],
        ids=["a page", "half of it", "nothing", "another protocol", "no base64"],
    )
    def test_what_is_no_answer_is_no_texts_fault(self, make, provider, answer):
        provider.answer = lambda body: answer
        with pytest.raises(RefusedError, match=r"something other than vectors: is base_url right"):
            make().checked_documents(["a"])


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"provider": "opanai"}, "there is no 'opanai'; choose of 'openai', 'azure'"),
            ({"provider": "tei"}, r"OPTIONS\['base_url'\]: provider 'tei' needs one"),
            ({"base_url": "tei:8080/v1"}, r"OPTIONS\['base_url'\] has to begin with 'http://'"),
            ({"api_key": 42}, r"OPTIONS\['api_key'\] has to be a string"),
            ({"base_url": "http://me:secret@host/v1"}, r"OPTIONS\['base_url'\] has a password"),
            ({"model": ""}, "OpenAIEmbedder needs MODEL"),
            ({"encoding_format": "int8"}, "'base64' or 'float'"),
            ({"batch_size": 0}, r"OPTIONS\['batch_size'\] is 0"),
            ({"max_tokens": "8191"}, r"OPTIONS\['max_tokens'\] is '8191'"),
            ({"request_tokens": "many"}, r"OPTIONS\['request_tokens'\] is 'many'"),
            ({"timeout": "30"}, r"OPTIONS\['timeout'\] is '30'"),
            ({"timeout": None}, r"OPTIONS\['timeout'\] is None"),
            ({"timeout": 0}, r"OPTIONS\['timeout'\] is 0"),
            ({"timeout": math.nan}, r"OPTIONS\['timeout'\] is nan"),
            ({"headers": {"X-Key": None}}, r"OPTIONS\['headers'\]: 'X-Key'"),
            ({"headers": {"X-Key": 7}}, r"OPTIONS\['headers'\]: 'X-Key'"),
            ({"headers": {7: "X-Key"}}, r"OPTIONS\['headers'\]: 7"),
            ({"headers": {"X-Key": f"{KEY}\u05d0"}}, r"OPTIONS\['headers'\]: 'X-Key'"),
            ({"headers": {"X-Key": f"a\n{KEY}"}}, r"OPTIONS\['headers'\]: 'X-Key'"),
            ({"colour": "red"}, "unexpected keyword argument 'colour'"),
            ({"extra_body": {"a": object()}}, "not JSON serializable"),
        ],
    )
    def test_wrong_ones(self, settings, options, said):
        model = options.pop("model", "m")
        entry = {"MODEL": model, "DIMENSIONS": 3, "OPTIONS": {"api_key": KEY, **options}}
        backend = "embedsync.embedders.openai.OpenAIEmbedder"
        settings.EMBEDSYNC_EMBEDDERS = {"default": {"BACKEND": backend, **entry}}
        with pytest.raises(ImproperlyConfigured, match=said) as caught:
            get_embedder()
        assert KEY not in str(caught.value)

    def test_without_the_library(self, make, monkeypatch):
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImproperlyConfigured, match=r"embedsync\[openai\]: pip install"):
            make().embed_query("a")

    def test_making_one_imports_no_library(self):
        code = """
import sys
from embedsync.embedders.openai import OpenAIEmbedder
from embedsync.embedders.cohere import CohereEmbedder
from embedsync.embedders.voyage import VoyageEmbedder
for kind in (OpenAIEmbedder, CohereEmbedder, VoyageEmbedder):
    kind(model="m", dimensions=3).fingerprint
heavy = {"openai", "httpx", "httpx2", "pydantic", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)

    def test_what_vectors_depend_on_is_in_the_fingerprint(self, make):
        plain = make()
        for change in (
            {"model": "other"},
            {"dimensions": 32},
            {"document_prompt": "passage: "},
            {"normalize": False},
            {"extra_body": {"truncate": "END"}},
        ):
            assert make(**change).fingerprint != plain.fingerprint, change
        for change in (
            {"base_url": "http://elsewhere"},
            {"provider": "tei"},
            {"api_key": "other"},
            {"query_prompt": "query: "},
            {"timeout": 1.0, "batch_size": 3},
        ):
            assert make(**change).fingerprint == plain.fingerprint, change
        assert make(query_prompt="query: ").query_fingerprint != plain.query_fingerprint

    def test_presets_are_those_of_the_documentation(self):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in (PROJECT / "docs" / "providers.md").read_text().splitlines()
            if line.startswith('| `"')
        ]
        assert [name.strip('`"') for name, *_ in rows] == list(PRESETS)
        for (_, url, key, limits, _), preset in zip(rows, PRESETS.values(), strict=True):
            if url.startswith("yours"):
                assert preset.base_url == ""
            else:
                assert url.strip("`") in (preset.base_url, urlsplit(preset.base_url).netloc)
            assert key.strip("`") == preset.key_env
            texts, *tokens = limits.removesuffix(", ours").split(", ")
            assert int(texts) == preset.inputs
            assert [int(number.replace(",", "")) for number in tokens] == (
                [] if preset.tokens is None else [preset.tokens]
            )

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_are_what_is_asked(self, name):
        preset = PRESETS[name]
        embedder = OpenAIEmbedder(
            model="m", dimensions=3, provider=name, base_url=preset.base_url or "http://x"
        )
        assert embedder.batch_size == min(128, preset.inputs)
        assert (embedder.inputs, embedder.request_tokens) == (preset.inputs, preset.tokens)

    def test_a_preset_of_ones_own(self):
        preset = Preset("http://embeddings", inputs=7, tokens=1000, resizable=("big",))
        embedder = OpenAIEmbedder(model="bigger", dimensions=3, provider=preset, max_tokens=512)
        assert (embedder.base_url, embedder.batch_size) == ("http://embeddings", 7)
        assert (embedder.request_tokens, embedder.send_dimensions) == (1000, True)
        assert embedder.max_tokens == 512
