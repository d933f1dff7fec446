"""Rows of several passages: written together, and only what has changed is embedded again."""

import datetime
import io
import itertools
import json

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from embedsync.embedders import get_embedder
from embedsync.embedders.trouble import HARMLESS
from embedsync.models import Ledger, SidecarState
from embedsync.passages import Given, Rewritten
from embedsync.signals import embeddings_updated
from embedsync.status import cut_rows
from embedsync.worker import Worker
from tests.articles.models import Article, Entry, Leaf, Remark
from tests.books import execute, make_due
from tests.embedders import WordedEmbedder
from tests.long_texts import KEY, ArticleEmbedding, Asked, body, stored, vectors, write
from tests.sweeping import behind_the_triggers, counts, swept
from tests.workers import work_off

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def asked():
    return Asked()


def assert_right(*articles):
    """Each article has the passages of its text, each with the vector of its text."""
    for article in articles:
        wanted = Article.objects.get(pk=article.pk).body.split("\n\n")
        rows = list(ArticleEmbedding.objects.filter(source_id=article.pk).order_by("ordinal"))
        assert [row.passage for row in rows] == wanted
        assert [row.ordinal for row in rows] == list(range(len(wanted)))
        made = get_embedder("worded").embed_documents(wanted)
        for row, vector in zip(rows, made, strict=True):
            assert list(row.vector) == pytest.approx(vector, abs=1e-3)
    assert not Ledger.objects.exists()


def change(article, *words):
    Article.objects.filter(pk=article.pk).update(body=body(*words))


def test_a_vector_for_each_passage(drain, asked):
    article = write("one", "two", "three")
    drain()
    assert stored(article) == {0: "one", 1: "two", 2: "three"}
    assert sorted(asked.words()) == ["one", "three", "two"]
    assert_right(article)
    assert article.embedding.ordinal == 0
    assert Article.embedding.model.objects.filter(source=article).count() == 3


def test_only_changed_passages_are_embedded_again(drain, asked):
    article = write("one", "two", "three", "four")
    drain()
    made = dict(ArticleEmbedding.objects.values_list("ordinal", "embedded_at"))
    asked.words()
    change(article, "one", "two", "new", "four")
    drain()
    assert asked.words() == ["new"]
    assert_right(article)
    again = dict(ArticleEmbedding.objects.values_list("ordinal", "embedded_at"))
    # What stands where it stood is not even written.
    assert {n for n in again if again[n] != made[n]} == {2}


@pytest.mark.parametrize(
    ("now", "embedded"),
    [
        (["new", "one", "two", "three"], ["new"]),
        (["two", "one", "three"], []),
        (["three", "two", "one"], []),
        (["one", "three"], []),
        (["three"], []),
        (["one"], []),
        (["one", "two", "three", "one", "two"], []),
        (["new", "new", "one", "new"], ["new"]),
        (["four", "five", "six", "seven"], ["four", "five", "six", "seven"]),
    ],
)
def test_a_passage_that_moves_keeps_its_vector(drain, asked, now, embedded):
    article = write("one", "two", "three")
    other = write("one", "two")
    drain()
    asked.words()
    change(article, *now)
    worker = drain()
    assert worker.errors == {}
    assert asked.words() == embedded
    assert_right(article, other)


def test_every_way_to_arrange_some_passages(drain, asked):
    article = write("a")
    orders = [order for k in (1, 2, 3) for order in itertools.permutations("abc", k)]
    for order in orders:
        change(article, *order)
        drain()
        assert_right(article)


def test_a_text_that_stays_writes_nothing(drain, asked):
    article = write("one", "two")
    drain()
    asked.words()
    made = set(ArticleEmbedding.objects.values_list("embedded_at", flat=True))
    change(article, "other")
    change(article, "one", "two")
    drain()
    assert asked.words() == []
    assert set(ArticleEmbedding.objects.values_list("embedded_at", flat=True)) == made


def test_blank_excluded_and_deleted_rows_have_no_passages(drain):
    gone, hidden, blank, kept = (write(word, "more") for word in ("a", "b", "c", "d"))
    draft = write("e", "more", published_time=None)
    drain()
    assert stored(draft) == {}
    gone.delete()
    Article.objects.filter(pk=hidden.pk).update(published_time=None)
    Article.objects.filter(pk=blank.pk).update(body=" \n ")
    drain()
    assert set(ArticleEmbedding.objects.values_list("source_id", flat=True)) == {kept.pk}
    Article.objects.filter(pk=hidden.pk).update(published_time=timezone.now())
    drain()
    assert_right(hidden, kept)


def test_composite_and_text_keys(drain):
    words = " ".join(f"w{n}" for n in range(15))
    leaf = Leaf.objects.create(volume='a,"b"', number=3, text=words)
    entry = Entry.objects.create(slug="it's % {0}", text="word " * 30)
    drain()
    rows = Leaf.embedding.model.objects.filter(source_volume=leaf.volume, source_number=3)
    assert rows.count() > 2
    assert Entry.embedding.model.objects.filter(source=entry).count() == 4
    Leaf.objects.update(text="w0 w1 w2")
    Entry.objects.update(text="word")
    drain()
    assert [row.passage for row in rows] == ["w0 w1 w2"]
    assert Entry.embedding.model.objects.count() == 1


def test_calls_are_bounded_by_passages(drain, asked):
    article = write(*(f"p{n}" for n in range(50)))
    drain()
    assert max(map(len, asked.calls)) == 4
    assert_right(article)


def test_long_rows_are_written_before_all_are_embedded(drain, asked, monkeypatch):
    """What is in hand is bounded: a worker that dies loses no more than some calls."""
    monkeypatch.setattr("embedsync.part.CALLS_OF_A_PART", 1)
    for n in range(10):
        write(*(f"a{n}{word}" for word in "bcdefg"))
    execute("ALTER TABLE articles_article ALTER body SET STORAGE EXTERNAL")
    Article.objects.create(body="long " * 3000)  # stored apart: rows are measured
    written = []

    def note(pks, **_):
        written.append(len(pks))

    embeddings_updated.connect(note)
    drain()
    assert written == [1] * 10


def test_a_bad_passage_parks_its_row_alone(drain, settings, asked):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    good, other = write("one", "two"), write("three", "four")
    bad = write("five", "FAIL", "six")
    drain()
    assert [stored(article) for article in (good, other, bad)] == [
        {0: "one", 1: "two"},
        {0: "three", 1: "four"},
        {},
    ]
    owed = Ledger.objects.get()
    assert (owed.source_pk, owed.run_at) == (str(bad.pk), None)
    assert "the provider is unwell" in owed.last_error
    change(bad, "five", "mended", "six")
    drain()
    assert_right(good, other, bad)


def test_one_bad_passage_ends_its_row(drain, asked, monkeypatch, settings):
    """Its other passages would be embedded for nothing."""
    # A long wait, because a short one would let the same drain try again.
    settings.EMBEDSYNC_BACKOFF = 600
    monkeypatch.setattr("embedsync.part.jitter", lambda longest: longest)
    drain()  # the first fill, which would have it embedded once more
    write(*(["FAIL"] * 3), "a", *(f"FAIL{n}" for n in range(8)))
    drain()
    assert len(asked.calls) == 4
    assert asked.calls[3] == [HARMLESS]


def test_rows_are_whole_as_early_as_can_be(drain, asked):
    """Passages of all lengths: those of a row are embedded together, not those of like length."""
    articles = [write(*(f"{word}{'x' * n}" for n in range(4))) for word in "abc"]
    worker = Worker()
    original = WordedEmbedder.embed_documents

    def stop_after_one(self, texts):
        worker.stop()
        return original(self, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WordedEmbedder, "embed_documents", stop_after_one)
        worker.start()
        worker.run(drain=True)
    assert sorted(len(stored(article)) for article in articles) == [0, 0, 4]
    drain()
    assert_right(*articles)


def test_the_old_passages_stay_while_a_new_one_is_bad(drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    article = write("one", "two")
    drain()
    before = vectors(article)
    change(article, "FAIL", "new", "two")
    drain()
    assert vectors(article) == before
    assert Ledger.objects.get().run_at is None


def test_a_worker_that_is_stopped_in_the_middle_of_a_row_writes_none_of_it(drain, asked):
    article = write(*(f"p{n}" for n in range(12)))
    worker = Worker()
    worker.start()
    embedder = worker.services[KEY].embedder
    original = type(embedder).embed_documents

    def stop_after_one(self, texts):
        worker.stop()
        return original(self, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(embedder), "embed_documents", stop_after_one)
        worker.run(drain=True)
    assert len(asked.calls) == 1
    assert stored(article) == {}
    owed = Ledger.objects.get()
    assert (owed.attempts, owed.token) == (0, None)
    drain()
    assert_right(article)


def test_a_late_worker_writes_no_passage(drain):
    article = write("old", "older")
    late = Worker()
    late.start()
    _, [claim] = late.queue.fold([KEY], 10)
    late._keep_house()
    Ledger.objects.update(run_at=timezone.now() - datetime.timedelta(seconds=1))
    change(article, "new", "newer")
    drain()
    service = late.services[KEY]
    (vector,) = service.embedder.checked_documents([body("old")])
    old = Rewritten([Given(0, b"x" * 16, body("old"), vector)], 1)
    done = late.queue.complete(
        ArticleEmbedding, claim, service.fingerprint, {}, passages={str(article.pk): old}
    )
    assert (done.written, done.lost) == ([], 1)
    work_off(late, claim)
    assert late.pipeline.lost == 1
    assert_right(article)


def test_stored_vectors_that_vanish_meanwhile_are_made_anew(drain, asked, monkeypatch):
    article = write("one", "two")
    drain()
    asked.words()
    change(article, "two", "one", "new")
    embedder = get_embedder("worded")
    original = type(embedder).embed_documents

    def sweep_away(self, texts):
        if len(texts) == 1:
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM articles_articleembedding")
            connection.close()
        return original(self, texts)

    monkeypatch.setattr(type(embedder), "embed_documents", sweep_away)
    drain()
    monkeypatch.undo()
    make_due()
    drain()
    assert_right(article)


def test_signals_tell_of_rows_that_have_only_shrunk(drain):
    article = write("one", "two")
    drain()
    told = []

    def note(pks, **_):
        told.extend(pks)

    embeddings_updated.connect(note)
    change(article, "one")
    drain()
    assert list(map(str, told)) == [str(article.pk)]


class TestSweep:
    def test_finds_each_kind_of_drift(self, drain, asked):
        articles = [write(f"{word}1", f"{word}2", f"{word}3") for word in "abcdefg"]
        missing, stale, part, surplus, moved, gone, right = articles
        drain()
        assert counts(swept(ArticleEmbedding)) == {}
        with behind_the_triggers():
            ArticleEmbedding.objects.filter(source_id=missing.pk).delete()
            change(stale, "x")
            ArticleEmbedding.objects.filter(source_id=part.pk, ordinal=1).delete()
            change(surplus, "d1", "d2")
            change(moved, "e2", "e1", "e3")
            gone.delete()
        found = swept(ArticleEmbedding, repair=True)
        assert counts(found) == {"missing": 1, "stale": 4, "orphaned": 1}
        asked.words()
        drain()
        assert sorted(asked.words()) == ["a1", "a2", "a3", "c2", "x"]
        assert_right(missing, stale, part, surplus, moved, right)
        assert counts(swept(ArticleEmbedding)) == {}

    def test_a_passage_without_its_text_is_stale(self, drain, asked):
        article = write("one", "two")
        drain()
        asked.words()
        ArticleEmbedding.objects.filter(ordinal=1).update(passage="")
        assert counts(swept(ArticleEmbedding, repair=True)) == {"stale": 1}
        drain()
        # Its vector is right, and not made again.
        assert asked.words() == []
        assert_right(article)


def test_a_size_that_the_model_does_not_read_stops_the_sidecar_and_blames_no_row(
    drain, monkeypatch
):
    write("one")
    remark = Remark.objects.create(text="others go on")
    embedder = type(get_embedder("worded"))
    monkeypatch.setattr(embedder, "max_tokens", 5)
    worker = drain()
    assert "Set size to 5 or less" in worker.errors[KEY]
    owed = Ledger.objects.get(sidecar=KEY)
    assert (owed.attempts, owed.token) == (0, None)
    assert remark.embedding is not None


def test_other_chunks_start_a_comparison_that_embeds_what_changed(drain, asked):
    article = write("one", "two")
    drain()
    asked.words()
    # As if the passages had been cut otherwise before.
    ArticleEmbedding.objects.filter(ordinal=1).update(digest=b"other")
    SidecarState.objects.filter(key=KEY).update(fingerprint="other", backfilled_at=None)
    drain()
    assert asked.words() == ["two"]
    assert_right(article)


class TestLongTextsWithoutChunks:
    def test_are_counted_and_warned_of_once(self, drain, caplog):
        Remark.objects.bulk_create([Remark(text="word " * n) for n in (3, 12, 13, 100)])
        drain()
        cut = Remark.embedding.model.objects.filter(cut=True)
        assert sorted(len(row.source.text.split()) for row in cut) == [13, 100]
        told = [record for record in caplog.records if "Declare chunks=" in record.message]
        assert [record.args[1:3] for record in told] == [(2, 12)]
        assert "articles.RemarkEmbedding" in told[0].message

    def test_are_told_of_by_the_status(self, drain):
        Remark.objects.bulk_create([Remark(text="word " * n) for n in (3, 13, 100)])
        drain()
        output = io.StringIO()
        call_command("embed_status", "articles.Remark", "--json", stdout=output)
        [status] = json.loads(output.getvalue())["sidecars"]
        assert (status["rows"], status["cut"]) == (3, 2)
        output = io.StringIO()
        call_command("embed_status", "articles.Remark", stdout=output)
        assert output.getvalue().splitlines()[1].split()[1:3] == ["3", "2"]

    def test_are_counted_by_an_index_of_their_own(self, drain):
        execute(
            "INSERT INTO articles_remarkembedding (source_id, ordinal, digest, vector, cut)"
            " SELECT n, 0, '', (SELECT array_agg(1) FROM generate_series(1, 64))::halfvec(64),"
            " n % 1000 = 0 FROM generate_series(1, 20000) AS n"
        )
        execute("VACUUM ANALYZE articles_remarkembedding")
        counted = Remark.embedding.model.objects.filter(ordinal=0, cut=True)
        assert "articles_remarkembedding_cut" in counted.explain()
        assert cut_rows("default", Remark.embedding.model) == 20

    def test_are_counted_no_more_when_they_are_shortened(self, drain):
        remark = Remark.objects.create(text="word " * 20)
        drain()
        assert remark.embedding.cut
        Remark.objects.update(text="word")
        drain()
        assert not remark.embedding.cut

    def test_are_told_of_once_by_each_worker(self, drain, caplog):
        for _ in range(2):
            worker = Worker()
            worker.start()
            for _ in range(2):
                Remark.objects.create(text="word " * 20)
                worker.run(drain=True)
        assert caplog.text.count("Declare chunks=") == 2

    def test_passages_are_never_cut(self, drain, caplog):
        write(*(f"p{n}" for n in range(30)))
        drain()
        assert not ArticleEmbedding.objects.filter(cut=True).exists()
        assert "Declare chunks=" not in caplog.text

    def test_what_a_row_had_of_passages_goes_with_its_chunks(self, drain):
        """As after a declaration has lost its chunks."""
        remark = Remark.objects.create(text="word " * 20)
        drain()
        sidecar = Remark.embedding.model
        row = remark.embedding
        sidecar.objects.bulk_create(
            [
                sidecar(source_id=remark.pk, ordinal=n, digest=b"x", vector=row.vector)
                for n in (1, 2)
            ]
        )
        SidecarState.objects.update(backfilled_at=None, backfill_after=None)
        drain()
        assert sidecar.objects.get().cut
        sidecar.objects.update(ordinal=1)
        Remark.objects.update(text="word " * 21)
        drain()
        assert sidecar.objects.get().ordinal == 0
        assert sidecar.objects.get().cut
