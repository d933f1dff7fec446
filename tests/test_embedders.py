"""Embedders: what they return is checked before anything is written."""

import subprocess
import sys

import numpy as np
import pytest
from django.core.exceptions import ImproperlyConfigured

import embedsync
from embedsync.embedders import Embedder, EmbedderError, MismatchError, get_embedder
from embedsync.embedders.hashing import HashingEmbedder
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from example_project import minilm
from example_project.postgres import PROJECT


class Given(Embedder):
    """Returns what it is given."""

    def __init__(self, vectors, dimensions=3):
        super().__init__(model="given", dimensions=dimensions)
        self.vectors = vectors

    def embed_documents(self, texts):
        return self.vectors


@pytest.mark.parametrize("kind", [list, np.array], ids=["lists", "numpy"])
class TestAnswers:
    def test_good_ones(self, kind):
        vectors = Given(kind([[1.0, 0.5, 0.0]])).checked_documents(["a"])
        assert vectors[0].to_list() == [1.0, 0.5, 0.0]
        assert Given(kind([[1.0, 0.5, 0.0]])).checked_query("a") == [1.0, 0.5, 0.0]

    @pytest.mark.parametrize(
        "vector",
        [
            [0.0, 0.0, 0.0],
            [1.0, float("nan"), 0.0],
            [1.0, float("inf"), 0.0],
            [1e6, 0.0, 0.0],
            [1e-9, 0.0, 0.0],
        ],
        ids=["zero", "nan", "infinite", "beyond float16", "vanishing in float16"],
    )
    def test_bad_vectors(self, kind, vector):
        with pytest.raises(EmbedderError, match="no search would ever find it"):
            Given(kind([[1.0, 0.0, 0.0], vector])).checked_documents(["a", "b"])

    def test_wrong_length(self, kind):
        with pytest.raises(MismatchError, match="Set DIMENSIONS to 2"):
            Given(kind([[1.0, 0.0]])).checked_documents(["a"])

    def test_wrong_count(self, kind):
        with pytest.raises(EmbedderError, match="returned 1 vectors for 2"):
            Given(kind([[1.0, 0.0, 0.0]])).checked_documents(["a", "b"])


class TestNoVectors:
    """What is none must not be taken for one of another length: that would be a migration."""

    @pytest.mark.parametrize(
        "vectors",
        [
            None,
            7,
            [None],
            [0],
            ["abc"],
            ["a text"],
            [b""],
            [[]],
            [[None] * 3],
            [["1", "2"]],
            [[[1.0, 0.5, 0.0]]],
            [{"values": [1.0]}],
            [[10**400, 1.0, 1.0]],
            np.zeros((1, 0)),
            np.ones((1, 1, 3)),
            np.ones((1, 3, 1)),
            np.ones(1),
            np.array(5.0),
            np.array([["a", "b"]]),
        ],
        ids=lambda vectors: repr(vectors)[:30],
    )
    def test_other_things(self, vectors):
        with pytest.raises(EmbedderError, match="something other than vectors") as caught:
            Given(vectors).checked_documents(["a"])
        assert not isinstance(caught.value, MismatchError)


def test_half_a_character_is_no_search_text():
    with pytest.raises(ValueError, match="a lone surrogate") as caught:
        HashingEmbedder(model="", dimensions=64).checked_query("a \ud800")
    assert type(caught.value) is ValueError


class TestHashing:
    embedder = HashingEmbedder(model="", dimensions=64)

    def test_deterministic_and_normalised(self):
        first, second = self.embedder.embed_documents(["A b c", "a B c"])
        assert first == second
        assert np.linalg.norm(first) == pytest.approx(1)

    def test_the_same_on_every_machine(self):
        vector = self.embedder.embed_documents(["red apple"])[0]
        assert [n for n, value in enumerate(vector) if value] == self.places()

    @staticmethod
    def places():
        code = (
            "from embedsync.embedders.hashing import HashingEmbedder as H;"
            "print([n for n, v in enumerate(H(model='', dimensions=64)"
            ".embed_documents(['red apple'])[0]) if v])"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": "7"},
        )
        return eval(run.stdout)

    @pytest.mark.parametrize(
        "text", ["\U0001f916", "...", "\u05e9\u05dc\u05d5\u05dd", "a b a b", "\udc80"]
    )
    def test_no_text_gives_a_zero_vector(self, text):
        assert self.embedder.checked_documents([text])

    def test_words_that_cancel_out(self):
        small = HashingEmbedder(model="", dimensions=1)
        assert all(small.checked_documents([f"word{n} {m}"]) for n in range(20) for m in range(20))


class TestSentenceTransformer:
    def test_needs_a_model(self):
        with pytest.raises(ImproperlyConfigured, match="needs MODEL"):
            SentenceTransformerEmbedder(model="", dimensions=384)

    def test_a_directory_that_holds_no_model(self, tmp_path):
        embedder = SentenceTransformerEmbedder(
            model=str(tmp_path), dimensions=384, local_files_only=True
        )
        with pytest.raises(ImproperlyConfigured, match="could not be loaded"):
            embedder.embed_query("x")

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        embedder = SentenceTransformerEmbedder(model="any", dimensions=384)
        with pytest.raises(ImproperlyConfigured, match=r"embedsync\[local\]: pip install"):
            embedder.embed_documents(["x"])

    def test_wrong_dimensions_are_told_when_it_loads(self):
        embedder = SentenceTransformerEmbedder(model=minilm.MODEL_DIRECTORY, dimensions=100)
        with pytest.raises(MismatchError, match=r"has 384 dimensions .* declares 100"):
            embedder.embed_documents(["x"])

    def test_prompts_and_normalisation(self):
        plain = get_embedder("default")
        prompted = SentenceTransformerEmbedder(
            model=minilm.MODEL_DIRECTORY,
            dimensions=384,
            query_prompt="query: ",
            document_prompt="passage: ",
            normalize=False,
        )
        query, document = prompted.embed_query("x"), prompted.embed_documents(["x"])[0]
        assert np.allclose(query, plain.embed_query("query: x"), atol=1e-5)
        assert np.allclose(document, plain.embed_documents(["passage: x"])[0], atol=1e-5)
        assert plain.fingerprint != prompted.fingerprint

    def test_the_fingerprint_of_a_directory_is_that_of_its_files(self, tmp_path):
        def fingerprint(name, content):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "weights").write_bytes(content)
            model = SentenceTransformerEmbedder(model=str(tmp_path / name), dimensions=3)
            return model.fingerprint

        big = b"x" * 3_000_000
        assert fingerprint("a", big) == fingerprint("b", big)
        assert fingerprint("c", big[:-1] + b"y") != fingerprint("d", big)
        plain = fingerprint("e", b"")
        for place in (".git/HEAD", ".cache/huggingface/weights.metadata", "sub/.cache/x"):
            (tmp_path / "f" / place).parent.mkdir(parents=True)
            (tmp_path / "f" / place).write_text("2026-11-22")
        assert fingerprint("f", b"") == plain
        (tmp_path / "g").mkdir()
        (tmp_path / "g" / ".tokens").touch()
        assert fingerprint("g", b"") != plain
        named = SentenceTransformerEmbedder(model="some/model", dimensions=3)
        assert "some/model" in named.fingerprint


class TestSettings:
    def test_wrong_options(self, settings):
        settings.EMBEDSYNC_EMBEDDERS = {
            "default": {
                "BACKEND": "embedsync.embedders.hashing.HashingEmbedder",
                "DIMENSIONS": 3,
                "OPTIONS": {"colour": "red"},
            }
        }
        with pytest.raises(ImproperlyConfigured, match="unexpected keyword argument 'colour'"):
            get_embedder()

    def test_a_backend_that_is_not_there(self, settings):
        settings.EMBEDSYNC_EMBEDDERS = {"default": {"BACKEND": "no.Class", "DIMENSIONS": 3}}
        with pytest.raises(ImproperlyConfigured, match=r"BACKEND 'no.Class' cannot be imported"):
            get_embedder()

    @pytest.mark.parametrize("size", [0, -1, "16", 1.5, None, True])
    @pytest.mark.parametrize(
        "kind", ["sentence_transformers.SentenceTransformer", "langchain.LangChain"]
    )
    def test_a_batch_size_that_is_none(self, settings, kind, size):
        settings.EMBEDSYNC_EMBEDDERS = {
            "default": {
                "BACKEND": f"embedsync.embedders.{kind}Embedder",
                "MODEL": "m",
                "DIMENSIONS": 3,
                "OPTIONS": {"batch_size": size, "embeddings": "any"},
            }
        }
        with pytest.raises(ImproperlyConfigured, match=f"'default'.*batch_size is {size!r}, and"):
            get_embedder()

    def test_none_at_all(self, settings):
        del settings.EMBEDSYNC_EMBEDDERS
        with pytest.raises(ImproperlyConfigured, match=r"no embedder 'default' \(there: none\)"):
            get_embedder()


def test_only_what_exists_can_be_imported():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        embedsync.nonsense  # noqa: B018


def test_the_model_is_what_it_says_it_is(monkeypatch):
    minilm.verify()
    monkeypatch.setattr(minilm, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="do not use it"):
        minilm.verify()
