"""Search among long texts: each row once, by its nearest passage, in every form of a queryset."""

import pickle

import numpy as np
import pytest
from django.core.paginator import Paginator
from django.db import connection, models
from django.db.models import OuterRef, Q
from django.db.models.expressions import RawSQL
from django.utils import timezone
from pgvector import HalfVector

import embedsync
from embedsync import index, indexing
from embedsync.database import binary_cursor
from tests.articles.models import Article, Entry, Leaf
from tests.books import execute
from tests.long_texts import ArticleEmbedding, body, write

pytestmark = pytest.mark.django_db(transaction=True)

DIMENSIONS = 64
ROWS, PASSAGES = 400, 8

# Before PostgreSQL 18 a sort that is disabled costs 1e10, and so does that of the sub-select, for
# each passage: beside that no other cost is seen.
COUNTS_WHAT_IS_DISABLED = 180000


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def archive(transactional_db):
    """400 articles of 1 to 8 passages each, their vectors indexed; the vectors by key."""
    random = np.random.default_rng(3)
    execute("SET embedsync.capture = 'off'")
    now = timezone.now()
    Article.objects.bulk_create(
        [Article(id=n, title=f"t{n % 7}", published_time=now) for n in range(1, ROWS + 1)]
    )
    execute("RESET embedsync.capture")
    made = {n: unit(random.normal(size=(1 + n % PASSAGES, DIMENSIONS))) for n in range(1, ROWS + 1)}
    rows = [(pk, n, vector) for pk, vectors in made.items() for n, vector in enumerate(vectors)]
    execute('DROP INDEX "articles_articleembedding_hnsw"')
    with connection.schema_editor() as editor:
        editor.add_index(ArticleEmbedding, index.deferred_index(ArticleEmbedding))
    with binary_cursor("default") as cursor:
        cursor.execute(
            "INSERT INTO articles_articleembedding (source_id, ordinal, digest, vector, passage)"
            " SELECT pk, n, '', v, pk || '/' || n"
            " FROM unnest(%(pk)s::int[], %(n)s::int[], %(v)b::halfvec[]) AS u(pk, n, v)",
            {
                "pk": [pk for pk, _, _ in rows],
                "n": [n for _, n, _ in rows],
                "v": [HalfVector(vector) for _, _, vector in rows],
            },
        )
    indexing.build(ArticleEmbedding, "default")
    execute("ANALYZE articles_article, articles_articleembedding")
    execute("SET enable_seqscan = off")
    if connection.pg_version >= COUNTS_WHAT_IS_DISABLED:
        execute("SET enable_sort = off")
    yield {
        pk: np.asarray([HalfVector(vector).to_list() for vector in vectors])
        for pk, vectors in made.items()
    }
    execute("RESET enable_sort; RESET enable_seqscan")


def nearest(query, archive, keys=None):
    """(key, ordinal) of each row's nearest passage, nearest row first, as Python finds it."""
    asked = np.asarray(HalfVector([float(value) for value in query]).to_list())
    found = []
    for pk, vectors in archive.items():
        if keys is None or pk in keys:
            norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
            distances = 1 - vectors @ asked / norms
            found.append((distances.min(), pk, int(distances.argmin())))
    return [(pk, ordinal) for _, pk, ordinal in sorted(found)]


def pairs(rows):
    return [(row.pk, int(row.passage.split("/")[1])) for row in rows]


def queries(count, seed=5):
    return unit(np.random.default_rng(seed).normal(size=(count, DIMENSIONS)))


def test_each_row_once_by_its_nearest_passage(archive):
    for query in queries(20):
        expected = nearest(query, archive)
        assert pairs(Article.objects.similar(query, exact=True)[:30]) == expected[:30]
        assert pairs(Article.objects.similar(query, exact=True)) == expected


def test_through_the_index(archive):
    hits = 0
    for query in queries(20):
        found = pairs(Article.objects.similar(query)[:10])
        assert len({pk for pk, _ in found}) == 10
        hits += len(set(found) & set(nearest(query, archive)[:10]))
    assert hits >= 0.95 * 200


def test_the_index_serves_the_search_and_the_key_the_passages(archive):
    plan = Article.objects.similar(queries(1)[0])[:1].explain()
    assert "Index Scan using articles_articleembedding_hnsw" in plan
    below = plan.split("SubPlan", 1)[1]
    assert "articles_articleembedding_pkey on articles_articleembedding embedsync_nearest" in below
    assert "hnsw" not in below
    exact = Article.objects.similar(queries(1)[0], exact=True)[:10].explain()
    assert "hnsw" not in exact


def test_one_inner_join(archive):
    sql = str(Article.objects.filter(title="t1").similar(queries(1)[0]).query)
    assert sql.count("JOIN") == 1
    assert sql.count('INNER JOIN "articles_articleembedding"') == 1


@pytest.mark.parametrize("k", [1, 20, 57])
def test_all_k_rows_under_filters(archive, k):
    keys = {pk for pk in archive if pk % 7 == 3}
    for query in queries(5):
        found = Article.objects.filter(title="t3").similar(query)[:k]
        assert len(found) == min(k, len(keys))
        exact = Article.objects.filter(title="t3").similar(query, exact=True)
        assert pairs(exact) == nearest(query, archive, keys)


def test_a_short_answer_is_made_again_exactly(archive):
    query = queries(1)[0]
    found = Article.objects.similar(query)[:ROWS]
    if connection.pg_version >= COUNTS_WHAT_IS_DISABLED:
        assert "articles_articleembedding_hnsw" in found.explain()
    assert pairs(found) == nearest(query, archive)


def test_in_every_form_of_a_queryset(archive, django_assert_num_queries):
    query = queries(1)[0]
    expected = nearest(query, archive)
    found = Article.objects.similar(query, exact=True)
    assert found.count() == ROWS
    assert found.exists()
    assert found.filter(title="t1").count() == sum(pk % 7 == 1 for pk in archive)
    assert list(found.values_list("pk", "passage")[:3]) == [
        (pk, f"{pk}/{ordinal}") for pk, ordinal in expected[:3]
    ]
    assert [row["pk"] for row in found.values("pk")[:3]] == [pk for pk, _ in expected[:3]]
    assert pairs(found[10:20]) == expected[10:20]
    assert pairs(found.reverse())[:2] == expected[::-1][:2]
    assert found.first().pk == expected[0][0]
    assert pairs(found.exclude(pk=expected[0][0])[:2]) == expected[1:3]
    assert pairs(found.iterator())[:2] == expected[:2]
    within = Article.objects.filter(pk__in=found.values("pk")[:5])
    assert {row.pk for row in within} == {pk for pk, _ in expected[:5]}
    assert len(found[:2].union(found[2:4])) == 4
    assert len(found.in_bulk()) == ROWS
    assert found.aggregate(n=models.Count("pk"), d=models.Min("distance"))["n"] == ROWS
    paginator = Paginator(found, 150)
    assert [len(page) for page in paginator] == [150, 150, 100]
    copied = pickle.loads(pickle.dumps(found[:3].query))
    rows = Article.objects.all()
    rows.query = copied
    assert pairs(rows) == expected[:3]
    with django_assert_num_queries(1):
        assert len(list(found[:5])) == 5


def test_min_similarity_is_that_of_the_nearest_passage(archive):
    query = queries(1)[0]
    bound = Article.objects.similar(query, exact=True)[9].distance
    found = Article.objects.similar(query, exact=True, min_similarity=1 - bound - 1e-6)
    assert pairs(found) == nearest(query, archive)[: len(found)]
    assert 9 <= found.count() <= 10


def test_a_count_compares_no_passages(archive, django_assert_num_queries):
    search = Article.objects.similar(queries(1)[0].tolist())
    with django_assert_num_queries(2) as asked:
        assert search.count() == ROWS
        assert Paginator(search, 10).count == ROWS
    sql = asked.captured_queries[0]["sql"]
    assert "embedsync_nearest" not in sql
    assert search.filter(title="t3").exclude(pk=3).count() == 56


def test_a_count_of_what_is_asked_of_the_nearest_passage(archive):
    asked = queries(1)[0]
    search = Article.objects.similar(asked.tolist())
    last = [pk for pk, ordinal in nearest(asked, archive) if ordinal == 2]
    assert search.filter(passage__endswith="/2").count() == len(last)
    assert search.filter(Q(passage__endswith="/2") | Q(pk=0)).count() == len(last)
    assert search.filter(distance__lt=0.7).count() == len([r for r in search if r.distance < 0.7])
    outer = ArticleEmbedding.objects.filter(passage=OuterRef("passage"), ordinal=2)
    assert search.filter(models.Exists(outer)).count() == len(last)
    table = ArticleEmbedding._meta.db_table
    for raw in (
        search.filter(RawSQL(f"{table}.ordinal = %s", [2], models.BooleanField())),
        search.extra(where=[f"{table}.ordinal = 2"]),
    ):
        assert raw.count() == len(last)
    assert search.none().count() == 0
    assert search.all()[:7].count() == 7
    assert search.values("passage").distinct().count() == ROWS


def test_joined_with_more(archive):
    query = queries(1)[0]
    nested = Article.objects.filter(
        articleembedding__ordinal__gte=0, pk__in=Article.objects.similar(query).values("pk")
    )
    assert nested.distinct().count() == ROWS


def test_rows_that_do_not_meet_the_condition_now_are_not_found(archive):
    query = queries(1)[0]
    first, second = (pk for pk, _ in nearest(query, archive)[:2])
    Article.objects.filter(pk=first).update(published_time=None)
    assert Article.objects.similar(query)[0].pk == second
    Article.objects.filter(pk=second).delete()
    assert first not in {row.pk for row in Article.objects.similar(query)[:50]}
    assert Article.objects.similar(query).count() == ROWS - 2


def test_more_like_a_row_goes_by_the_mean_of_its_passages(archive):
    article = Article.objects.get(pk=15)
    mean = archive[15].mean(axis=0)
    expected = [pair for pair in nearest(mean, archive) if pair[0] != 15]
    found = pairs(embedsync.similar(Article.objects.all(), article, exact=True)[:20])
    assert {pk for pk, _ in found} == {pk for pk, _ in expected[:20]}
    assert article.similar()[0].pk != 15


def test_texts_and_their_passages(drain):
    both = write("apple tree", "blue sea", title="both")
    write("green field", "grey stone", title="neither")
    drain()
    found = Article.objects.similar("blue sea and so on and on")
    assert found[0] == both
    assert found[0].passage == body("blue sea")
    assert found[0].distance == pytest.approx(0, abs=1e-3)
    assert Article.objects.similar("apple tree")[0].passage == body("apple tree")
    assert len(found) == 2


def test_keys_of_other_kinds(drain):
    Leaf.objects.create(volume="a", number=1, text="red apple " + "x " * 20 + "blue sea")
    Leaf.objects.create(volume="a", number=2, text="grey stone")
    Entry.objects.create(slug="one", text="red apple " + "filler " * 30 + "blue sea")
    Entry.objects.create(slug="two", text="grey stone")
    drain()
    leaf = Leaf.objects.similar("blue sea")[0]
    assert (leaf.volume, leaf.number) == ("a", 1)
    assert "blue sea" in leaf.passage
    assert "red apple" in Leaf.objects.similar("red apple")[0].passage
    assert Leaf.objects.similar("blue sea").count() == 2
    assert "blue sea" in Entry.objects.similar("blue sea")[0].passage
    assert [leaf.number for leaf in leaf.similar()] == [2]


def test_a_passage_that_is_there_twice_counts_once(drain):
    write("same", "same", "same")
    drain()
    assert len(Article.objects.similar("same")) == 1


def test_an_annotation_that_is_named_passage_is_not_taken_for_the_text_found(transactional_db):
    labelled = Article.objects.annotate(passage=models.Value("mine"))
    with pytest.raises(ValueError, match=r"annotation named passage, which similar\(\) needs"):
        labelled.similar("anything")
