"""Local models as they are loaded: the revision that is asked for, offline, and once a process."""

import logging
import shutil
import threading
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import sentence_transformers
from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from tests import tiny
from tests.test_local_models import errors_of
from tests.workers import Clock

COMMITS = {"a" * 40: 1, "b" * 40: 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The hub's, with two commits of a model; the first is that of main."""
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / "models--who--tiny"
    for commit, seed in COMMITS.items():
        made = tiny.make(tmp_path_factory.mktemp(commit), size=8, seed=seed)
        shutil.copytree(made, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return cache


def embedder(cache, model="who/tiny", **options):
    given = {"dimensions": 8, "cache_folder": str(cache), "local_files_only": True}
    return SentenceTransformerEmbedder(model=model, **{**given, **options})


def test_the_revision_that_is_asked_for(cache, caplog):
    caplog.set_level(logging.INFO, "embedsync")
    vectors = []
    for revision, commit in ((None, "a" * 40), *((commit, commit) for commit in COMMITS)):
        vector = embedder(cache, revision=revision).embed_query("x")
        assert f"the hub or its cache, revision {revision or 'main'}" in caplog.messages[-1]
        snapshot = cache / "models--who--tiny" / "snapshots" / commit
        assert np.allclose(vector, embedder(cache, str(snapshot)).embed_query("x"), atol=1e-5)
        vectors.append(vector)
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2], atol=1e-2)


def test_the_hub_is_asked_for_nothing_where_it_must_not_be(cache, tmp_path):
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    asked = []
    # What the hub's client tells of itself is no option of a model's.
    environment = {"HF_HUB_DISABLE_TELEMETRY": "1"}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        for is_local in (True, False):
            options = {"cache_folder": str(cache), "local_files_only": is_local}
            environment["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
            errors_of({"who/tiny": options}, tmp_path, **environment)
            assert bool(asked) is not is_local
        hub.shutdown()


def test_it_is_loaded_once_by_whatever_threads_ask_first(cache, monkeypatch):
    loaded = []

    class Slow(sentence_transformers.SentenceTransformer):
        def __init__(self, *arguments, **options):
            loaded.append(1)
            time.sleep(0.1)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Slow)
    # From Python 3.12 on, cached_property has no lock of its own.
    found = vars(SentenceTransformerEmbedder)["_model"]
    monkeypatch.setattr(found, "lock", nullcontext(), raising=False)
    model = embedder(cache)
    threads = [threading.Thread(target=model.embed_query, args=["a"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [1]


def test_one_that_cannot_be_loaded_is_not_tried_at_each_search(cache, monkeypatch):
    """Without a network each try may take the hub's client a minute, and others wait for it."""
    tried = []

    def fail(*_, **__):
        tried.append(1)
        raise OSError("no network")

    clock = Clock()
    monkeypatch.setattr("embedsync.embedders.sentence_transformers.time", clock)
    with monkeypatch.context() as patched:
        patched.setattr(sentence_transformers, "SentenceTransformer", fail)
        model = embedder(cache)
        for _ in range(3):
            with pytest.raises(ImproperlyConfigured, match="no network"):
                model.embed_query("a")
        assert tried == [1]
    clock.now += 31.0
    assert len(model.embed_query("a")) == 8
