"""Exports for OnnxEmbedder: the vectors of the model, proven before anything is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from sentence_transformers.sentence_transformer.modules import CNN, Dense, Normalize, Pooling

from embedsync.embedders import MismatchError, get_embedder, onnx
from embedsync.embedders.export import ExportError, export, sample_texts
from embedsync.embedders.onnx import INT8, OnnxEmbedder
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from embedsync.testing import EmbedderContract
from example_project.films.models import Movie
from example_project.postgres import PROJECT
from tests import tiny

TEXTS = sample_texts(24, tiny.MAX_TOKENS)
SENTENCE = "embedsync.embedders.sentence_transformers.SentenceTransformerEmbedder"
ONNX = "embedsync.embedders.onnx.OnnxEmbedder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def mxbai(folder):
    """A model as mxbai-embed-large-v1 is, with as many dimensions as the films' sidecar has."""
    model = tiny.make(folder, size=384)
    return SentenceTransformerEmbedder(model=model, dimensions=384)


@pytest.fixture(scope="module")
def exported(mxbai, folder):
    export(mxbai, folder / "float32", sample=8)
    return OnnxEmbedder(model=str(folder / "float32"), dimensions=384)


@pytest.fixture(scope="module")
def quantised(mxbai, folder):
    export(mxbai, folder / "int8", precision=INT8, sample=8)
    return OnnxEmbedder(model=str(folder / "int8"), dimensions=384)


@pytest.fixture(scope="module")
def minilm(folder):
    """The real model, exported."""
    call_command("embed_export", "default", str(folder / "minilm"), sample=4, verbosity=0)
    return str(folder / "minilm")


class TestContract(EmbedderContract):
    @pytest.fixture(autouse=True)
    def served(self, settings, minilm):
        backend = "embedsync.embedders.onnx.OnnxEmbedder"
        entry = {"BACKEND": backend, "MODEL": minilm, "DIMENSIONS": 384}
        settings.EMBEDSYNC_EMBEDDERS = {"default": entry}


def cosines(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


class TestTheSameVectors:
    def test_of_texts_and_of_search_texts(self, mxbai, exported):
        both = mxbai.embed_documents(TEXTS), exported.embed_documents(TEXTS)
        assert cosines(*both).min() >= 0.9999
        queries = [[model.embed_query(text) for text in TEXTS] for model in (mxbai, exported)]
        assert cosines(*queries).min() >= 0.9999
        # The prompt is in them.
        assert cosines(both[1], queries[1]).min() < 0.99
        # Scaled or not, as the model itself does it.
        lengths = [np.linalg.norm(vectors, axis=1) for vectors in both]
        assert np.allclose(*lengths, rtol=1e-3)
        assert lengths[0].min() > 2
        assert both[1].dtype == np.float32
        assert exported.embed_documents([]).shape == (0, 384)

    def test_one_space_and_one_cache_of_search_texts(self, mxbai, exported):
        assert exported.fingerprint == mxbai.fingerprint
        assert exported.query_fingerprint == mxbai.query_fingerprint

    def test_one_that_was_let_pass_with_less_is_a_space_of_its_own(self, exported, tmp_path):
        directory = tmp_path / "made"
        shutil.copytree(exported.model, directory)
        description = json.loads((directory / "embedsync.json").read_text())
        (directory / "embedsync.json").write_text(json.dumps({**description, "cosine": 0.9998}))
        other = OnnxEmbedder(model=str(directory), dimensions=384)
        assert other.fingerprint != exported.fingerprint

    def test_the_same_tokens(self, mxbai, exported):
        assert exported.max_tokens == mxbai.max_tokens == tiny.MAX_TOKENS - 2
        for text in TEXTS:
            one, other = (model.tokenizer.encode(text).ids for model in (mxbai, exported))
            assert one == other
        mxbai.usage.take()
        exported.usage.take()
        mxbai.checked_documents(TEXTS)
        exported.checked_documents(TEXTS)
        exported.embed_query("not counted")
        assert exported.usage.take() == mxbai.usage.take()

    def test_shortened(self, mxbai, exported):
        options = {"dimensions": 128, "truncate_dim": 128}
        short = OnnxEmbedder(model=exported.model, **options)
        source = SentenceTransformerEmbedder(model=mxbai.model, **options)
        assert short.fingerprint == source.fingerprint != exported.fingerprint
        assert np.allclose(short.embed_documents(TEXTS), source.embed_documents(TEXTS), atol=1e-4)
        assert np.allclose(short.embed_query("a"), source.embed_query("a"), atol=1e-4)

    def test_shortened_to_what_it_has(self, mxbai, exported):
        options = {"dimensions": 384, "truncate_dim": 384}
        short = OnnxEmbedder(model=exported.model, **options)
        source = SentenceTransformerEmbedder(model=mxbai.model, **options)
        assert short.fingerprint == source.fingerprint == mxbai.fingerprint
        whole = mxbai.embed_documents(TEXTS)
        for other in (exported, short, source):
            assert np.allclose(other.embed_documents(TEXTS), whole, rtol=1e-3, atol=1e-3)
        assert np.allclose(source.embed_query("a"), mxbai.embed_query("a"), atol=1e-4)

    def test_the_real_model(self, minilm):
        exported = OnnxEmbedder(model=minilm, dimensions=384)
        texts = ["A robot is left on earth.", "Two thieves plan a last heist.", "x"]
        model = get_embedder("default")
        same = cosines(model.embed_documents(texts), exported.embed_documents(texts))
        assert same.min() >= 0.99999
        assert exported.fingerprint == model.fingerprint

    @pytest.mark.parametrize(
        ("pooling", "options"),
        [
            ("mean", {"query_prompt": "query: ", "document_prompt": "passage: "}),
            (("cls", "max"), {"normalize": False}),
            ("lasttoken", {"truncate_dim": 8, "dimensions": 8}),
        ],
        ids=str,
    )
    def test_options_and_modules(self, tmp_path, pooling, options):
        size = 32 * (1 if isinstance(pooling, str) else 2)
        dense = Dense(size, 16, activation_function=torch.nn.Tanh())
        model = tiny.make(tmp_path, pooling=pooling, modules=[dense], prompts={})
        source = SentenceTransformerEmbedder(model=model, **{"dimensions": 16, **options})
        export(source, tmp_path / "made", sample=12)
        kept = {name: options[name] for name in ("truncate_dim", "dimensions") if name in options}
        made = OnnxEmbedder(model=str(tmp_path / "made"), **{"dimensions": 16, **kept})
        assert np.allclose(made.embed_documents(TEXTS), source.embed_documents(TEXTS), atol=1e-3)
        assert np.allclose(made.embed_query("a b"), source.embed_query("a b"), atol=1e-3)
        assert made.fingerprint == source.fingerprint
        assert made.max_tokens == source.max_tokens


class TestQuantised:
    def test_near_vectors_in_a_space_of_their_own(self, mxbai, quantised):
        same = cosines(mxbai.embed_documents(TEXTS), quantised.embed_documents(TEXTS))
        assert 0.99 <= same.mean() < 0.999999
        assert quantised.fingerprint.startswith(f"{mxbai.fingerprint}:int8:")
        assert (Path(quantised.model) / "model.onnx").stat().st_size < 4_000_000

    def test_the_real_model(self, tmp_path):
        # 0.994 where what is large in the inputs of layers is not smoothed.
        made = export(get_embedder("default"), tmp_path / "made", precision=INT8, sample=8)
        assert made.cosine >= 0.997

    def test_signed_and_unsigned_weights_make_the_same_vectors(self, quantised, monkeypatch):
        """What a machine makes of large sums decides which are taken, and nothing else."""
        assert {file.name for file in Path(quantised.model).iterdir()} == {
            "embedsync.json",
            "model.onnx",
            "probe.onnx",
            "tokenizer.json",
            "unsigned.onnx",
        }
        found = {}
        for keeps in (True, False):
            monkeypatch.setattr(onnx, "keeps_sums", lambda _, keeps=keeps: keeps)
            embedder = OnnxEmbedder(model=quantised.model, dimensions=384)
            assert embedder.fingerprint == quantised.fingerprint
            found[keeps] = embedder.embed_documents(TEXTS)
        monkeypatch.undo()
        keeps = onnx.keeps_sums(Path(quantised.model))
        assert np.array_equal(quantised.embed_documents(TEXTS), found[keeps])
        if keeps:
            assert np.allclose(found[True], found[False], atol=1e-5)

    def test_a_vector_depends_on_its_text_alone(self, quantised):
        together = quantised.embed_documents(TEXTS)
        alone = [quantised.embed_documents([text])[0] for text in TEXTS]
        assert np.array_equal(together, alone)

    @pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
    def test_what_is_not_installed_is_said_before_the_model_is_loaded(
        self, folder, monkeypatch, missing
    ):
        monkeypatch.setitem(sys.modules, missing, None)
        unloaded = SentenceTransformerEmbedder(model="no/such-model", dimensions=384)
        with pytest.raises(ImproperlyConfigured, match=r"needs the extra embedsync\[export\]"):
            export(unloaded, folder / "missing")
        assert not (folder / "missing").exists()

    def test_needs_onnx(self, mxbai, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
        with pytest.raises(ImproperlyConfigured, match=r"embedsync\[export\]: pip install onnx"):
            export(mxbai, tmp_path / "made", precision=INT8)
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    """Nothing is written."""

    def refused(self, directory, embedder, said, **options):
        before = sorted(directory.iterdir())
        with pytest.raises(ExportError, match=said):
            export(embedder, directory / "made", sample=4, **options)
        assert sorted(directory.iterdir()) == before

    def test_other_vectors(self, mxbai, tmp_path):
        # What int8 makes is not what float32 may differ by.
        said = r"cosine 0\.99\d+, and 0.999999 is asked for"
        self.refused(tmp_path, mxbai, said, precision=INT8, least=0.999999)

    def test_a_module_that_is_no_arithmetic_with_tokens(self, tmp_path):
        parts = tmp_path / "parts"
        parts.mkdir()
        model = tiny.make(parts, modules=[CNN(32, 8), Pooling(24)])
        embedder = SentenceTransformerEmbedder(model=model, dimensions=24)
        self.refused(tmp_path, embedder, "has a module CNN, and only these can be exported")

    def test_a_prompt_that_is_left_out(self, tmp_path):
        model = tiny.make(tmp_path, pooling="mean", include_prompt=False)
        embedder = SentenceTransformerEmbedder(model=model, dimensions=32)
        self.refused(tmp_path, embedder, "leaves its prompt out of Pooling")

    def test_padding_on_the_left(self, tmp_path):
        model = tiny.make(tmp_path)
        embedder = SentenceTransformerEmbedder(model=model, dimensions=32)
        embedder._loaded.tokenizer.padding_side = "left"
        self.refused(tmp_path, embedder, "pads on the left")

    def test_a_tokenizer_of_another_kind(self, tmp_path):
        model = tiny.make(tmp_path)
        embedder = SentenceTransformerEmbedder(model=model, dimensions=32)
        embedder.tokenizer = None
        self.refused(tmp_path, embedder, "of a fast tokenizer can be exported")

    def test_more_than_a_file_can_hold(self, mxbai, tmp_path, monkeypatch):
        monkeypatch.setattr("embedsync.embedders.export.LARGEST", 5_000_000)
        self.refused(tmp_path, mxbai, r"has \d\.\d GB of weights in float32, and only 0 GB")

    def test_another_backend(self, tmp_path):
        embedder = SentenceTransformerEmbedder(model="a/b", dimensions=3, backend="onnx")
        self.refused(tmp_path, embedder, "a model is exported from torch")


class TestCommand:
    @pytest.fixture
    def embedders(self, settings, mxbai, tmp_path):
        settings.EMBEDSYNC_EMBEDDERS = {
            "default": {"BACKEND": SENTENCE, "MODEL": mxbai.model, "DIMENSIONS": 384},
            # Its files are still to be made: the checks would not let any command run.
            "light": {"BACKEND": ONNX, "MODEL": str(tmp_path / "light"), "DIMENSIONS": 384},
        }
        return settings.EMBEDSYNC_EMBEDDERS

    def run(self, *arguments):
        call_command("embed_export", *map(str, arguments), "--sample", "4", verbosity=0)

    def test_a_directory_is_not_replaced_unasked(self, embedders, tmp_path):
        directory = tmp_path / "light"
        self.run("default", directory)
        assert {file.name for file in directory.iterdir()} == {
            "embedsync.json",
            "model.onnx",
            "tokenizer.json",
        }
        assert json.loads((directory / "embedsync.json").read_text())["cosine"] >= 0.9999
        (directory / "notes").write_text("mine")
        with pytest.raises(CommandError, match=r"exists: name another directory, or add --force"):
            self.run("default", directory)
        assert (directory / "notes").exists()
        self.run("default", directory, "--force", "--quantise", "int8")
        assert not (directory / "notes").exists()
        assert get_embedder("light").description.precision == INT8
        assert [path.name for path in tmp_path.iterdir()] == ["light"]

    def test_an_alias_of_another_kind(self, embedders, tmp_path):
        self.run("default", tmp_path / "light")
        with pytest.raises(CommandError, match="'light' is no SentenceTransformerEmbedder"):
            self.run("light", tmp_path / "again")
        with pytest.raises(CommandError, match="no embedder 'other'"):
            self.run("other", tmp_path / "again")


class TestWrongFiles:
    def test_no_export(self, tmp_path):
        with pytest.raises(ImproperlyConfigured, match=r"is no export .* embed_export ALIAS"):
            OnnxEmbedder(model=str(tmp_path), dimensions=384)

    def test_other_dimensions(self, exported):
        with pytest.raises(ImproperlyConfigured, match=r"Set DIMENSIONS to that"):
            OnnxEmbedder(model=exported.model, dimensions=100)
        with pytest.raises(ImproperlyConfigured, match=r"has 384 dimensions"):
            OnnxEmbedder(model=exported.model, dimensions=500, truncate_dim=500)

    def test_files_that_are_not_those(self, exported, quantised, tmp_path):
        for name in ("model.onnx", "tokenizer.json"):
            (tmp_path / name).write_bytes((Path(quantised.model) / name).read_bytes())
        description = (Path(exported.model) / "embedsync.json").read_text()
        (tmp_path / "embedsync.json").write_text(description)
        with pytest.raises(ImproperlyConfigured, match="copy the directory again"):
            OnnxEmbedder(model=str(tmp_path), dimensions=384).embed_query("x")

    def test_without_the_library(self, exported, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        embedder = OnnxEmbedder(model=exported.model, dimensions=384)
        with pytest.raises(
            ImproperlyConfigured, match=r"embedsync\[onnx\]: pip install onnxruntime"
        ):
            embedder.embed_query("x")


@pytest.mark.django_db(transaction=True)
class TestOneSidecar:
    """Workers with torch, and web processes without."""

    @pytest.fixture
    def served(self, settings, mxbai, exported, drain):
        """Films that a worker with torch has embedded; the settings are then those of a process
        with the export."""
        default = {"BACKEND": SENTENCE, "MODEL": mxbai.model, "DIMENSIONS": 384}
        settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "default": default}
        for title in ("Robots left earth", "A heist goes wrong", "The passage"):
            Movie.objects.create(title=title, year=2000, plot_summary=title)
        drain()
        light = {"BACKEND": ONNX, "MODEL": exported.model, "DIMENSIONS": 384}
        settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "default": light}

    def test_an_export_searches_what_the_model_has_embedded(self, served, mxbai):
        found = Movie.objects.similar("robots on earth", exact=True)[:3]
        expected = mxbai.embed_query("robots on earth")
        vectors = dict(Movie.embedding.model.objects.values_list("source__title", "vector"))
        for film in found:
            (cosine,) = cosines([vectors[film.title]], [expected])
            assert film.distance == pytest.approx(1 - cosine, abs=1e-3)
        assert len(found) == 3

    def test_an_export_serves_it_as_a_worker(self, served, drain):
        Movie.objects.create(title="Another", year=2001, plot_summary="Another")
        assert drain().errors == {}
        assert Movie.embedding.model.objects.count() == 4

    def test_one_in_int8_does_not(self, served, settings, quantised):
        entry = settings.EMBEDSYNC_EMBEDDERS["default"]
        settings.EMBEDSYNC_EMBEDDERS = {"default": {**entry, "MODEL": quantised.model}}
        with pytest.raises(MismatchError, match="int8"):
            list(Movie.objects.similar("robots"))

    def test_such_a_web_process_imports_no_torch(self, served, settings, environment, tmp_path):
        (tmp_path / "web_settings.py").write_text(
            "from tests.settings import *\n"
            f"EMBEDSYNC_EMBEDDERS = {dict(settings.EMBEDSYNC_EMBEDDERS)!r}\n"
        )
        code = """
import sys, django
django.setup()
from example_project.films.models import Movie
assert len(Movie.objects.similar("robots on earth")[:3]) == 3
assert "onnxruntime" in sys.modules
heavy = {"torch", "sentence_transformers", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
        path = f"{tmp_path}:{PROJECT}"
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env={**environment, "DJANGO_SETTINGS_MODULE": "web_settings", "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr


def test_a_model_that_scales_by_itself(tmp_path):
    model = tiny.make(tmp_path, modules=[Normalize()])
    source = SentenceTransformerEmbedder(model=model, dimensions=32, normalize=False)
    export(source, tmp_path / "made", sample=4)
    made = OnnxEmbedder(model=str(tmp_path / "made"), dimensions=32)
    assert np.linalg.norm(made.embed_query("x")) == pytest.approx(1, abs=1e-5)
