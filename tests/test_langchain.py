"""LangChain: an Embeddings object of langchain-core, as it is, embeds rows and search texts."""

import math

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "", "embeddings": hashed}, "needs MODEL"),
        ({"model": "m"}, r"needs OPTIONS\['embeddings'\]"),
        ({"model": "m", "embeddings": "nowhere.at.all"}, "'nowhere.at.all' cannot be imported"),
        ({"model": "m", "embeddings": f"{HERE}.make_nothing"}, "makes none"),
        ({"model": "m", "embeddings": f"{HERE}.HERE"}, "is no Embeddings object"),
    ],
    ids=["no model", "no object", "no such module", "makes nothing", "a string"],
)
def test_wrong_settings(options, said):
    with pytest.raises(ImproperlyConfigured, match=said):
        LangChainEmbedder(dimensions=64, **options).embed_query("a")
