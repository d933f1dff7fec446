"""Local models through sentence-transformers: options, batches, and models that do not load."""

import json
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import sentence_transformers
import torch
from django.core.exceptions import ImproperlyConfigured
from transformers import AutoModel, AutoTokenizer

from embedsync.embedders import get_embedder
from embedsync.embedders.batching import batches
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from embedsync.worker import Worker
from example_project.minilm import MODEL_DIRECTORY
from example_project.postgres import PROJECT
from tests import tiny
from tests.books import KEY
from tests.library.models import Book, Parcel
from tests.sync import expected_vectors, stored_vectors

TEXTS = ["robots left the earth", "a heist goes wrong", "x", "the robot " * 50, "\U0001f916"]


@pytest.fixture(scope="module")
def mxbai(tmp_path_factory):
    """A model as mxbai-embed-large-v1 is: CLS pooling, a prompt for queries, none for texts."""
    return tiny.make(tmp_path_factory.mktemp("mxbai"))


def embedder(model, dimensions=32, **options):
    return SentenceTransformerEmbedder(model=model, dimensions=dimensions, **options)


class TestMxbai:
    """The preset of docs/models.md, with a small model of the same architecture."""

    def test_the_vector_is_that_of_the_first_token(self, mxbai):
        tokenizer, bert = AutoTokenizer.from_pretrained(mxbai), AutoModel.from_pretrained(mxbai)
        vectors = embedder(mxbai, normalize=True).embed_documents(TEXTS)
        for text, vector in zip(TEXTS, vectors, strict=True):
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
            with torch.inference_mode():
                first = bert(**tokens).last_hidden_state[0, 0].numpy()
            assert np.allclose(vector, first / np.linalg.norm(first), atol=1e-5)

    def test_the_prompt_is_put_before_queries_only(self, mxbai):
        found = embedder(mxbai)
        query, *texts = (
            found.embed_query("a heist"),
            *found.embed_documents(["a heist", f"{tiny.QUERY_PROMPT}a heist"]),
        )
        assert not np.allclose(query, texts[0], atol=1e-2)
        assert np.allclose(query, texts[1], atol=1e-5)

    def test_shortened_vectors_are_of_length_1_again(self, mxbai):
        whole = np.array(embedder(mxbai).embed_documents(TEXTS))[:, :8]
        short = embedder(mxbai, 8, truncate_dim=8)
        expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        assert np.allclose(short.embed_documents(TEXTS), expected, atol=1e-5)
        assert np.linalg.norm(short.embed_query("x")) == pytest.approx(1, abs=1e-5)

    def test_what_it_reads_of_a_text(self, mxbai):
        # Two special tokens, and no prompt.
        assert embedder(mxbai).max_tokens == tiny.MAX_TOKENS - 2
        assert embedder(mxbai, document_prompt="passage: ").max_tokens == tiny.MAX_TOKENS - 4


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"revision": "abc"},
            {"dtype": "bfloat16"},
            {"document_prompt": "passage: "},
            {"normalize": False},
            {"backend": "onnx"},
            {"prompts": {"document": "passage: "}},
            {"model_kwargs": {"dtype": "float16"}},
            {"backend": "onnx", "model_kwargs": {"file_name": "onnx/model_qint8.onnx"}},
        ],
        ids=str,
    )
    def test_what_decides_the_vectors_is_in_the_fingerprint(self, options):
        assert embedder("a/b", **options).fingerprint != embedder("a/b").fingerprint

    def test_what_does_not_is_not(self):
        # As sidecars of before these options have it.
        plain = "sentence-transformers:a/b:32:None:None"
        same = {"device": "cpu", "threads": 1, "batch_size": 8, "forward_size": 2}
        for options in (
            {},
            same,
            {"local_files_only": True, "dtype": "float32"},
            {"token": "hf_x"},
            {"use_auth_token": "hf_x", "proxies": {"https": "http://me:secret@proxy"}},
        ):
            assert embedder("a/b", **options).fingerprint == plain
        for options in ({"use_auth_token": "hf_x"}, {"proxies": {"https": "http://me:x@proxy"}}):
            assert "me:x" not in embedder("a/b", model_kwargs=options).fingerprint
            assert "hf_x" not in embedder("a/b", model_kwargs=options).fingerprint
        prompted = embedder("a/b", query_prompt="query: ")
        assert prompted.fingerprint == plain
        assert prompted.query_fingerprint != embedder("a/b").query_fingerprint

    def test_no_error_has_their_secrets(self, monkeypatch):
        secrets = ["hf_abcdefghijkl", "hf_mnopqrstuvwx", "passworded"]

        def refuse(*_, **__):
            raise OSError(f"who is {' and '.join(secrets)}?")

        monkeypatch.setattr(sentence_transformers, "SentenceTransformer", refuse)
        proxies = {"https": f"http://me:{secrets[2]}@proxy"}
        kwargs = {"use_auth_token": secrets[1], "proxies": proxies}
        with pytest.raises(ImproperlyConfigured, match=r"who is \*\*\*") as caught:
            embedder("a/b", use_auth_token=secrets[0], model_kwargs=kwargs).embed_query("a")
        assert not any(secret in str(caught.value) for secret in secrets)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"backend": "tensorrt"}, "backend is 'tensorrt'"),
            ({"truncate_dim": 8}, "truncate_dim is 8 and DIMENSIONS 32"),
        ],
        ids=["backend", "truncate_dim"],
    )
    def test_wrong_ones(self, options, said):
        with pytest.raises(ImproperlyConfigured, match=said):
            embedder("a/b", **options)

    def test_vectors_are_scaled_as_the_model_does_it(self, mxbai):
        # It has no module that scales them; what is cut is scaled, or distances would mislead.
        assert np.linalg.norm(embedder(mxbai).embed_query("x")) > 2
        cut = embedder(mxbai, truncate_dim=8, dimensions=8)
        for found in (embedder(mxbai, normalize=True), cut):
            assert np.linalg.norm(found.embed_query("x")) == pytest.approx(1, abs=1e-5)

    def test_threads_and_dtype_reach_the_library(self, mxbai):
        before = torch.get_num_threads()
        try:
            half = embedder(mxbai, dtype="bfloat16", threads=1, device="cpu", normalize=True)
            vector = np.asarray(half.embed_query("x"), dtype="float32")
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)
        assert half._loaded.dtype == torch.bfloat16
        whole = embedder(mxbai, normalize=True).embed_query("x")
        assert np.dot(vector, whole) == pytest.approx(1, abs=0.02)
        assert half.embed_documents(["x"]).dtype == np.float32

    def test_another_backend_without_its_library(self, mxbai):
        with pytest.raises(ImproperlyConfigured, match=r"could not be loaded.* embed_export"):
            embedder(mxbai, backend="onnx").embed_documents(["x"])

    def test_the_log_says_what_from_where_how_long_and_how_much(self, mxbai, caplog):
        caplog.set_level(logging.INFO, "embedsync")
        embedder(mxbai, device="cpu").embed_query("x")
        (said,) = [line for line in caplog.messages if line.startswith("loaded")]
        assert f"from the directory {mxbai}, cpu, torch.float32, torch" in said
        assert said.endswith(" MB")

    def test_a_tokenizer_of_another_kind(self, mxbai):
        found = embedder(mxbai)
        found.tokenizer = None
        expected = embedder(mxbai).embed_documents(TEXTS)
        assert np.allclose(found.embed_documents(TEXTS), expected, atol=1e-5)
        assert found.max_tokens == tiny.MAX_TOKENS
        _, tokens = found.usage.take()
        assert tokens > len("".join(TEXTS)) // 5


class TestBatches:
    def test_each_text_once_the_longest_first(self):
        lengths = [3, 9, 1, 9, 4, 7]
        found = list(batches(lengths, rows=2))
        assert [[lengths[place] for place in batch] for batch in found] == [[9, 9], [7, 4], [3, 1]]
        assert sorted(place for batch in found for place in batch) == list(range(6))

    def test_no_more_tokens_than_that_with_their_padding(self):
        lengths = [100, 30, 5, 5, 5]
        found = [[lengths[place] for place in b] for b in batches(lengths, rows=9, tokens=60)]
        # The first is longer than a batch may be, and the second would make of six fives 180.
        assert found == [[100], [30, 5], [5, 5]]
        assert list(batches([], rows=9, tokens=60)) == []

    def test_texts_go_through_the_network_by_their_tokens(self, mxbai):
        # Few letters are many tokens here, and words that it knows are one each.
        texts = ["robots earth goes", "zq", "the heist wrong robots left", "zqzqzq", "earth " * 9]
        model = embedder(mxbai, forward_size=2, normalize=True)
        shapes = []
        hook = model._loaded[0].register_forward_pre_hook(
            lambda _, given: shapes.append(tuple(given[0]["input_ids"].shape))
        )
        vectors = model.embed_documents(texts)
        hook.remove()
        tokens = sorted((len(t) for t in model.tokenizer.encode_batch(texts)), reverse=True)
        assert shapes == [(2, tokens[0]), (2, tokens[2]), (1, tokens[4])]
        assert model.usage.take() == (0, sum(tokens))
        for text, vector in zip(texts, vectors, strict=True):
            assert np.allclose(
                vector, model._loaded.encode(text, normalize_embeddings=True), atol=1e-5
            )

    def test_what_is_not_read_is_not_counted(self, mxbai):
        model = embedder(mxbai)
        model.embed_documents(["the robot " * 500, "robot"])
        assert model.usage.take() == (0, tiny.MAX_TOKENS + 3)


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses, each model for another reason."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        answers = {
            "gated": (403, "GatedRepo"),
            "missing": (404, "RepoNotFound"),
            "private": (401, "RepoNotFound"),
            "moved": (404, "RevisionNotFound"),
        }
        status, code = next(answers[name] for name in answers if name in self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code} {self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_):
        pass


LOAD = """
import json, sys
import django
django.setup()
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from django.core.exceptions import ImproperlyConfigured
said = {}
for name, options in json.loads(sys.argv[1]).items():
    try:
        SentenceTransformerEmbedder(model=name, dimensions=8, **options).embed_documents(["x"])
    except ImproperlyConfigured as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def errors_of(models, tmp_path, **environment):
    run = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(models)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "HF_HOME": str(tmp_path),
            **environment,
        },
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


class TestModelsThatCannotBeLoaded:
    def test_the_hub_refuses(self, tmp_path):
        with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
            threading.Thread(target=hub.serve_forever, daemon=True).start()
            said = errors_of(
                {
                    "who/gated": {},
                    "who/missing": {},
                    "who/private": {"token": "hf_wrong"},
                    "who/moved": {"revision": "abc"},
                },
                tmp_path,
                HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
            )
            hub.shutdown()
        assert all(f"The model {name!r} could not be loaded" in said[name] for name in said)
        assert "accept the model's terms" in said["who/gated"]
        assert "no model of this name" in said["who/missing"]
        assert "check MODEL and the token" in said["who/private"]
        assert "no such revision" in said["who/moved"]

    def test_no_error_has_the_token(self, tmp_path):
        with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
            threading.Thread(target=hub.serve_forever, daemon=True).start()
            said = errors_of(
                {
                    "who/private": {"token": "hf_0123456789abcdef\n"},  # as a secret's file has it
                    "who/gated": {"token": "hf_0123\n456789abcdef"},
                },
                tmp_path,
                HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
            )
            hub.shutdown()
        assert "check MODEL and the token" in said["who/private"]
        assert "Illegal header value" in said["who/gated"]
        assert "hf_0123" not in str(said)
        assert "456789" not in str(said)

    def test_neither_network_nor_cache(self, tmp_path):
        said = errors_of({"who/any": {"local_files_only": True}}, tmp_path)
        assert "not in the hub's cache on this machine" in said["who/any"]
        offline = errors_of({"who/any": {}}, tmp_path, HF_HUB_OFFLINE="1")
        assert "not in the hub's cache on this machine" in offline["who/any"]

    @pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
    def test_too_little_memory(self, tmp_path):
        code = """
import os, resource, sys
import django
django.setup()
import torch, sentence_transformers
from django.core.exceptions import ImproperlyConfigured
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
small = SentenceTransformerEmbedder(model=sys.argv[1], dimensions=32)
small.embed_query("x")  # whatever the library needs besides
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + 40_000_000, -1))
try:
    SentenceTransformerEmbedder(model=sys.argv[2], dimensions=384).embed_query("x")
except ImproperlyConfigured as error:
    print(error)
"""
        model = tiny.make(tmp_path)
        run = subprocess.run(
            [sys.executable, "-c", code, model, MODEL_DIRECTORY],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        )
        assert "Too little memory is free" in run.stdout, run.stderr

    @pytest.mark.django_db(transaction=True)
    def test_other_sidecars_go_on(self, settings, caplog, monkeypatch):
        said = caplog
        caplog.set_level("INFO", logger="embedsync")
        backend = "embedsync.embedders.sentence_transformers.SentenceTransformerEmbedder"
        options = {"local_files_only": True}
        entry = {"BACKEND": backend, "MODEL": "who/any", "DIMENSIONS": 64, "OPTIONS": options}
        settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
        worker = Worker()
        worker.start()
        Book.objects.create(title="Unread")
        Parcel.objects.create(label="of another embedder")
        while worker.round():
            pass
        parcels = Parcel.embedding.model
        assert len(stored_vectors(parcels)) == 1
        assert stored_vectors(parcels) == expected_vectors(parcels)
        assert "The model 'who/any' could not be loaded" in worker.errors[KEY]
        assert list(worker.errors) == [KEY]
        # It is adopted again, and that says nothing: it has made no vector.
        worker._mended_at = worker._housekeeping_at = 0.0
        said.clear()
        while worker.round():
            pass
        worker._mended_at = worker._housekeeping_at = 0.0
        worker._keep_house()
        assert worker.services.keys() >= {KEY}
        assert list(worker.errors) == [KEY]
        assert "served" not in said.text
        monkeypatch.setattr(type(get_embedder("scripted")), "max_tokens", None)
        monkeypatch.setattr(
            get_embedder("scripted"), "embed_documents", lambda texts: [[1.0] * 64] * len(texts)
        )
        while worker.round():
            pass
        assert worker.errors == {}
        assert "is served again" in said.text
