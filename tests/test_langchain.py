"""LangChain: an Embeddings object of langchain-core, as it is, embeds rows and search texts."""

import math
import threading
import time
from contextlib import nullcontext

import pytest
from django.core.exceptions import ImproperlyConfigured
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from embedsync.embedders import UnavailableError
from embedsync.embedders.hashing import HashingEmbedder
from embedsync.embedders.langchain import LangChainEmbedder
from embedsync.embedders.trouble import trouble_of
from tests.library.models import Book
from tests.sync import assert_in_step

HASHED = HashingEmbedder(model="", dimensions=64)


class Hashed(Embeddings):
    """Knows documents from search texts, as many do."""

    def embed_documents(self, texts):
        if "fail" in texts:
            raise ConnectionResetError("gone")
        return HASHED.embed_documents(texts)

    def embed_query(self, text):
        return HASHED.embed_query(f"query {text}")


hashed = Hashed()


def make_hashed():
    return hashed


def make_nothing():
    return None


def make_without_a_key():
    raise ValueError("Did not find FILMS_API_KEY")


def make_from_afar():
    raise ConnectionResetError("gone")


made = []


def make_slowly():
    time.sleep(0.1)
    made.append(1)
    return hashed


HERE = "tests.test_langchain"


@pytest.mark.parametrize(
    "embeddings", [hashed, f"{HERE}.hashed", f"{HERE}.Hashed", f"{HERE}.make_hashed"]
)
def test_an_object_a_class_or_a_function(embeddings):
    embedder = LangChainEmbedder(model="hashed", dimensions=64, embeddings=embeddings)
    assert embedder.checked_rows(["red apple"]) == HASHED.embed_documents(["red apple"])
    assert embedder.checked_query("pear") == HASHED.embed_query("query pear")


def test_one_of_langchains_own():
    embedder = LangChainEmbedder(
        model="fake", dimensions=32, embeddings=DeterministicFakeEmbedding(size=32), batch_size=7
    )
    first, second = embedder.checked_rows(["red", "green"])
    assert embedder.batch_size == 7
    assert embedder.checked_query("red") == list(first) != list(second)
    assert math.isfinite(sum(first))


@pytest.mark.django_db(transaction=True)
def test_rows_get_its_vectors(settings, drain):
    entry = {
        "BACKEND": "embedsync.embedders.langchain.LangChainEmbedder",
        "MODEL": "hashed",
        "DIMENSIONS": 64,
        "OPTIONS": {"embeddings": f"{HERE}.Hashed"},
    }
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
    Book.objects.bulk_create(Book(title=f"Book {n}") for n in range(20))
    drain()
    assert_in_step(Book.embedding.model)
    assert Book.objects.similar("Book 7").count() == 20


def test_its_provider_is_in_trouble():
    embedder = LangChainEmbedder(model="hashed", dimensions=64, embeddings=hashed)
    with pytest.raises(ConnectionResetError) as caught:
        embedder.checked_rows(["fail"])
    assert isinstance(trouble_of(caught.value), UnavailableError)


def test_its_provider_is_away_when_it_is_made():
    embedder = LangChainEmbedder(model="m", dimensions=64, embeddings=f"{HERE}.make_from_afar")
    with pytest.raises(UnavailableError, match="gone"):
        embedder.checked_rows(["a"])


def test_it_is_made_once_by_whatever_threads_ask_first(monkeypatch):
    made.clear()
    # From Python 3.12 on, cached_property has no lock of its own.
    found = vars(LangChainEmbedder)["_embeddings"]
    monkeypatch.setattr(found, "lock", nullcontext(), raising=False)
    embedder = LangChainEmbedder(model="m", dimensions=64, embeddings=f"{HERE}.make_slowly")
    threads = [threading.Thread(target=embedder.embed_query, args=["a"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "", "embeddings": hashed}, "needs MODEL"),
        ({"model": "m"}, r"needs OPTIONS\['embeddings'\]"),
        ({"model": "m", "embeddings": "nowhere.at.all"}, "'nowhere.at.all' cannot be imported"),
        ({"model": "m", "embeddings": f"{HERE}.make_nothing"}, "makes none"),
        ({"model": "m", "embeddings": f"{HERE}.HERE"}, "is no Embeddings object"),
        (
            {"model": "m", "embeddings": f"{HERE}.make_without_a_key"},
            "'m' could not.*FILMS_API_KEY",
        ),
        ({"model": "m", "embeddings": "broken_vectors.hashed"}, "RuntimeError: broken"),
    ],
    ids=[
        "no model",
        "no object",
        "no such module",
        "makes nothing",
        "a string",
        "no key",
        "a module that fails",
    ],
)
def test_wrong_settings(options, said, tmp_path, monkeypatch):
    (tmp_path / "broken_vectors.py").write_text("raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImproperlyConfigured, match=said):
        LangChainEmbedder(dimensions=64, **options).embed_query("a")
