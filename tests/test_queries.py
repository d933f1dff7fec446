"""The vectors of search texts: made once, kept in a cache, and of the embedder of the vectors."""

import asyncio
import logging
import pickle

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import call_command
from django.db import transaction
from pgvector.django import CosineDistance, L2Distance

import embedsync
from embedsync.embedders import MismatchError, get_embedder
from embedsync.models import TextEmbedding
from tests.books import execute, sessions
from tests.embedders import ScriptedEmbedder
from tests.library.models import Book, Play
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


IN_A_TABLE = {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}


class BrokenCache(LocMemCache):
    def get(self, *args, **kwargs):
        raise ConnectionError("the cache is down")

    set = get


@pytest.fixture
def calls(monkeypatch):
    cache.clear()
    made = []
    embed = ScriptedEmbedder.embed_documents

    def embed_documents(self, texts):
        made.append(list(texts))
        return embed(self, texts)

    monkeypatch.setattr(ScriptedEmbedder, "embed_documents", embed_documents)
    return made


@pytest.fixture
def shelf(drain):
    for title in ("red apple", "blue sea", "deep blue sea"):
        Book.objects.create(title=title)
    drain()


def titles(queryset):
    return [row.title for row in queryset]


def text(words):
    return TextEmbedding(words, embedder="scripted")


class TestCache:
    def test_a_text_is_embedded_once(self, shelf, calls):
        first = titles(Book.objects.similar("deep blue sea"))
        assert titles(Book.objects.similar("deep blue sea")) == first
        vector = embedsync.embed_query("deep blue sea", "scripted")
        assert calls == [["deep blue sea"]]
        assert vector == pytest.approx(get_embedder("scripted").embed_query("deep blue sea"))

    def test_another_text_another_embedder_and_another_prompt_have_their_own(
        self, calls, monkeypatch
    ):
        for text, alias in (("a", "scripted"), ("b", "scripted"), ("a", "hashing")):
            assert embedsync.embed_query(text, alias) == pytest.approx(
                get_embedder(alias).embed_query(text)
            )
        monkeypatch.setattr(ScriptedEmbedder, "query_fingerprint", "with a prompt")
        calls.clear()
        embedsync.embed_query("a", "scripted")
        assert calls == [["a"]]

    def test_what_is_kept_is_neither_the_text_nor_of_another_length(self, calls, settings):
        embedsync.embed_query("secret", "scripted")
        ((key, value),) = cache._cache.items()
        assert "secret" not in key
        assert b"secret" not in value
        cache.set(key.split(":", 2)[2], b"123")
        assert len(embedsync.embed_query("secret", "scripted")) == 64
        assert len(calls) == 2

    def test_without_a_cache(self, calls, settings):
        settings.EMBEDSYNC_QUERY_CACHE = None
        for _ in range(2):
            embedsync.embed_query("a", "scripted")
        assert len(calls) == 2
        assert not cache._cache

    def test_a_cache_of_ones_own(self, calls, settings):
        settings.CACHES = {
            **settings.CACHES,
            "texts": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "t"},
        }
        settings.EMBEDSYNC_QUERY_CACHE = "texts"
        for _ in range(2):
            embedsync.embed_query("a", "scripted")
        assert len(calls) == 1
        assert not cache._cache

    def test_no_search_fails_with_its_cache(self, calls, settings, caplog):
        settings.CACHES = {"default": {"BACKEND": "tests.test_queries.BrokenCache"}}
        with caplog.at_level(logging.WARNING, logger="embedsync"):
            assert len(embedsync.embed_query("a", "scripted")) == 64
        assert "the cache 'default' of search texts failed" in caplog.text
        assert len(calls) == 1

    def test_no_transaction_fails_with_a_cache_that_is_a_table(self, shelf, settings, caplog):
        settings.CACHES = {"default": {**IN_A_TABLE, "LOCATION": "not_there"}}
        with transaction.atomic(), caplog.at_level(logging.WARNING, logger="embedsync"):
            assert titles(Book.objects.similar("deep blue sea")[:1]) == ["deep blue sea"]
        assert "the cache 'default' of search texts failed" in caplog.text

    def test_without_a_cache_a_search_embeds_once(self, shelf, calls, settings):
        settings.EMBEDSYNC_QUERY_CACHE = None
        for search in (
            Book.objects.filter(year=2000).similar("red apple")[:10],
            Book.objects.similar("red apple")[:10],
            Book.objects.similar("red apple", min_similarity=0.1)[:10],
            Book.objects.filter(pk__in=Book.objects.similar("red apple").values("pk")[:2]),
        ):
            calls.clear()
            assert list(search)
            assert len(calls) == 1

    def test_a_blank_text_is_refused(self):
        with pytest.raises(ValueError, match=r"blank"):
            embedsync.embed_query(" ", "scripted")

    def test_the_async_twin(self, calls):
        async def search():
            return await embedsync.aembed_query("a", "scripted")

        assert async_to_sync(search)() == embedsync.embed_query("a", "scripted")
        assert len(calls) == 1

    def test_the_async_twin_leaves_no_connection_open(self, settings):
        settings.CACHES = {"default": {**IN_A_TABLE, "LOCATION": "kept"}}
        call_command("createcachetable", verbosity=0)

        async def search():
            await asyncio.gather(*(embedsync.aembed_query(f"{n}", "scripted") for n in range(8)))

        before = sessions()
        try:
            async_to_sync(search)()
            until(lambda: sessions() <= before)
        finally:
            execute("DROP TABLE kept")


class TestMismatch:
    """The settings of this process name another embedder than made the vectors."""

    @pytest.fixture
    def other(self, shelf, settings):
        scripted = settings.EMBEDSYNC_EMBEDDERS["scripted"]
        settings.EMBEDSYNC_EMBEDDERS = {
            **settings.EMBEDSYNC_EMBEDDERS,
            "scripted": {**scripted, "MODEL": "another"},
        }

    @pytest.mark.parametrize("exact", [True, False])
    def test_a_text_is_refused(self, other, exact):
        found = Book.objects.similar("blue", exact=exact)
        for search in (found, found[:2], found.filter(year=2000)[:2], found.values("title")):
            with pytest.raises(
                MismatchError,
                match=r"the vectors of library.BookEmbedding were made by \S+ and this text by"
                r" \S*another\S*\. Let web",
            ):
                list(search)

    def test_in_a_transaction_it_is_an_error_like_others(self, other):
        with pytest.raises(MismatchError), transaction.atomic():
            list(Book.objects.similar("blue")[:2])
        assert Book.objects.count() == 3

    def test_instances_and_vectors_are_searched_for(self, other):
        book = Book.objects.get(title="blue sea")
        assert titles(book.similar()[:1]) == ["deep blue sea"]

    def test_where_nothing_is_embedded_nothing_is_wrong(self):
        assert titles(Book.objects.similar("blue")[:2]) == []


class TestTextEmbedding:
    def test_in_annotate_filter_and_order_by(self, shelf):
        distance = CosineDistance("bookembedding__vector", text("blue sea. "))
        nearest = Book.objects.annotate(far=distance).order_by("far")
        assert titles(nearest)[:2] == ["blue sea", "deep blue sea"]
        assert nearest[0].far == pytest.approx(0, abs=1e-3)
        assert titles(Book.objects.alias(far=distance).filter(far__lt=0.01)) == ["blue sea"]
        assert titles(Book.objects.order_by(distance))[0] == "blue sea"
        l2 = L2Distance("bookembedding__vector", text("blue sea. "))
        assert titles(Book.objects.order_by(l2))[0] == "blue sea"

    def test_pickled_and_embedded_once(self, shelf, calls):
        distance = CosineDistance("bookembedding__vector", text("blue sea. "))
        queryset = Book.objects.order_by(distance)
        copied = Book.objects.all()
        copied.query = pickle.loads(pickle.dumps(queryset.query))
        assert titles(copied) == titles(queryset)
        assert len(calls) == 1

    def test_a_blank_text_is_refused(self):
        for wrong in (" ", None):
            with pytest.raises(ValueError, match=r"not blank"):
                TextEmbedding(wrong)


class TestSeveralSidecars:
    def test_the_default_is_searched_and_the_others_by_name(self, drain):
        Play.objects.create(title="red apple", plot="blue sea")
        Play.objects.create(title="blue sea", plot="red apple")
        drain()
        near = {"distance_name": "near"}
        assert titles(Play.objects.similar("blue sea", **near))[0] == "blue sea"
        assert (
            titles(Play.objects.similar("blue sea", embedding="by_plot", **near))[0] == "red apple"
        )

    def test_without_a_default_one_has_to_be_named(self, monkeypatch):
        monkeypatch.setattr(
            "embedsync.declaration.declaration_of", lambda sidecar: Book.embedding.declaration
        )
        with pytest.raises(
            ValueError, match=r"several embeddings: .* 'by_plot', 'by_title', or de"
        ):
            Play.objects.similar("x")

    def test_a_name_that_is_taken(self):
        with pytest.raises(ValueError, match=r"already has 'distance', a field or.*distance_name"):
            Play.objects.similar("x")
        with pytest.raises(ValueError, match=r"already has 'title', a field"):
            Book.objects.similar("x", distance_name="title")
