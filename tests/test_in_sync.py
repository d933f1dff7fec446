"""What projects' tests are given: embed now, fake embedders, assert that nothing is out of step."""

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, transaction
from django.test import TestCase, TransactionTestCase

from embedsync import indexing, testing
from embedsync.embedders import get_embedder
from embedsync.embedders.hashing import HashingEmbedder
from embedsync.pause import paused
from embedsync.sweep import Pace, sweep
from embedsync.testing import assert_in_sync, embed_now, fake_embedder
from example_project.blog.models import Post
from example_project.films.models import Genre, Movie
from tests.library.models import Book, Parcel
from tests.sync import assert_in_step

BOOKS = Book.embedding.model


def test_only_what_exists_can_be_imported():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        testing.nonsense  # noqa: B018


class InATransaction(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.apple = Book.objects.create(title="red apple")
        cls.sea = Book.objects.create(title="deep sea")
        embed_now()

    def test_what_the_class_has_written_can_be_searched(self):
        assert connection.in_atomic_block
        assert Book.objects.similar("apple")[0] == self.apple
        assert_in_sync()
        assert_in_step(BOOKS)

    def test_all_that_can_be_done_to_a_row(self):
        Book.objects.filter(pk=self.apple.pk).update(title="blue sky")
        Book.objects.bulk_create([Book(title="green grass"), Book(title="", published=False)])
        self.sea.delete()
        embed_now()
        assert Book.objects.similar("sky")[0] == self.apple
        assert_in_sync(Book)
        assert_in_step(BOOKS)

    def test_what_another_test_has_changed_is_undone(self):
        assert Book.objects.similar("apple")[0] == self.apple
        assert set(BOOKS.objects.values_list("source_id", flat=True)) == {
            self.apple.pk,
            self.sea.pk,
        }

    def test_within_blocks_of_its_own(self):
        with transaction.atomic():
            Book.objects.create(title="undone")
            embed_now()
            assert BOOKS.objects.count() == 3
            transaction.set_rollback(True)
        assert BOOKS.objects.count() == 2
        assert_in_sync()

    async def test_in_an_async_test(self):
        await Book.objects.acreate(title="green grass")
        await sync_to_async(embed_now)()
        assert [str(book) async for book in Book.objects.similar("grass")[:1]] == ["green grass"]
        await sync_to_async(assert_in_sync)(Book)

    def test_no_index_is_built_which_would_wait_for_this_transaction(self):
        assert not indexing.is_built(BOOKS, "default")
        embed_now()
        assert not indexing.is_built(BOOKS, "default")

    def test_a_truncation(self):
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE library_book CASCADE")
        with pytest.raises(AssertionError, match=r"BookEmbedding: 1 change that no worker"):
            assert_in_sync()
        embed_now()
        assert_in_sync()
        assert BOOKS.objects.count() == 0

    def test_an_error_of_the_database_is_raised_and_breaks_no_more_than_it_must(self):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE embedsync_ledger RENAME TO gone")
        with pytest.raises(DatabaseError, match='"embedsync_ledger" does not exist'):
            embed_now()
        assert Book.objects.count() == 2


class CommittedTests(TransactionTestCase):
    def test_the_index_is_built(self):
        Book.objects.create(title="red apple")
        with pytest.raises(AssertionError, match=r"BookEmbedding: 1 waiting \(keys: \d+\)\n"):
            assert_in_sync()
        embed_now()
        assert_in_sync()
        assert indexing.is_built(BOOKS, "default")


@pytest.mark.django_db
class TestFaults:
    def test_a_row_that_fails(self):
        bad = Book.objects.create(title="FAIL")
        good = Book.objects.create(title="fine")
        with pytest.raises(AssertionError, match="could not embed everything") as failed:
            embed_now()
        assert f"{BOOKS._meta.label_lower} {bad.pk} waits, 1 attempts so far" in str(failed.value)
        assert "the provider is unwell" in str(failed.value)
        assert BOOKS.objects.get().source_id == good.pk
        with pytest.raises(AssertionError, match=rf"1 waiting \(keys: {bad.pk}\)"):
            assert_in_sync(Book)
        assert_in_sync(Parcel)

    def test_a_row_that_is_parked(self, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        bad = Book.objects.create(title="FAIL")
        with pytest.raises(AssertionError, match=f"{bad.pk} is parked"):
            embed_now()
        with pytest.raises(
            AssertionError, match=rf"1 parked \(keys: {bad.pk}\)\n.*is parked, 1 att"
        ):
            assert_in_sync(Book)

    def test_many_rows_that_fail(self, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        Book.objects.bulk_create(Book(title=f"FAIL {n}") for n in range(15))
        with pytest.raises(AssertionError, match="and 5 rows more"):
            embed_now()
        with pytest.raises(AssertionError, match=r"15 parked \(keys: \d+(, \d+){9}, \.\.\.\)\n"):
            assert_in_sync(Book)

    def test_a_provider_in_trouble(self, monkeypatch):
        def out_of_reach(self, texts):
            raise ConnectionError("no route")

        monkeypatch.setattr("tests.embedders.ScriptedEmbedder.embed_documents", out_of_reach)
        Book.objects.create(title="red apple")
        with pytest.raises(AssertionError, match=r"its provider is in trouble: .*no route"):
            embed_now()

    def test_what_no_trigger_has_seen(self):
        book, other = Book.objects.create(title="red"), Book.objects.create(title="green")
        embed_now()
        with paused():
            Book.objects.filter(pk=book.pk).update(title="blue")
            other.delete()
            new = Book.objects.create(title="new")
        with pytest.raises(AssertionError, match="Is an embed_now") as failed:
            assert_in_sync(Book)
        for said in (f"1 missing (keys: {new.pk})", f"1 stale (keys: {book.pk})", "1 orphaned"):
            assert said in str(failed.value)

    def test_a_sweep_that_has_stopped_halfway_hides_nothing(self):
        for title in ("red", "green"):
            Book.objects.create(title=title)
        embed_now()
        pace = Pace()
        sweep(BOOKS, page=1, pace=pace, progress=lambda rows: pace.stop())
        with paused():
            Book.objects.filter(title="red").update(title="blue")
        with pytest.raises(AssertionError, match="1 stale"):
            assert_in_sync(Book)

    def test_another_embedder_than_that_of_the_vectors(self):
        Book.objects.create(title="red")
        embed_now()
        with fake_embedder():
            with pytest.raises(AssertionError, match="made by another embedder"):
                assert_in_sync(Book)
            with pytest.raises(AssertionError, match="made by another embedder"):
                embed_now()

    def test_a_model_that_has_no_embedding(self):
        with pytest.raises(LookupError, match=r"films.Genre has no embedding in database"):
            assert_in_sync(Genre)

    def test_a_database_without_any(self):
        for act in (assert_in_sync, embed_now):
            with pytest.raises(LookupError, match="No model has an embedding in database 'other'"):
                act(using="other")

    def test_sidecars_too(self):
        assert_in_sync(BOOKS, Movie)


@pytest.mark.django_db
class TestFakes:
    def test_all_embedders_are_hashing_ones_of_the_same_length(self):
        real = get_embedder("default").fingerprint
        with fake_embedder():
            for alias, length in {"default": 384, "hashing": 64, "scripted": 64}.items():
                assert type(get_embedder(alias)) is HashingEmbedder
                assert get_embedder(alias).dimensions == length
            assert get_embedder("hashing").fingerprint != get_embedder("scripted").fingerprint
        assert get_embedder("default").fingerprint == real

    @fake_embedder()
    def test_a_search_among_fakes(self):
        """Films and posts have the model, and posts have chunks."""
        film = Movie.objects.create(title="Red Dust", year=2001, plot_summary="A buried door.")
        Movie.objects.create(title="Salt", year=1995, plot_summary="Sailors on the ocean.")
        Post.objects.create(
            title="Buttons", slug="b", body="Nothing. " * 500, published_time="2024-01-01T00:00Z"
        )
        embed_now()
        assert Post.embedding.model.objects.count() > 1
        assert Movie.objects.similar("door")[0] == film
        assert_in_sync()
