"""Passages for prompts: a sidecar's own search."""

import numpy as np
import pytest
from django.contrib.flatpages.models import FlatPage

from tests.articles.models import Article, Leaf
from tests.books import BookEmbedding, execute
from tests.library.models import Book, FlatPageEmbedding, Hall, Seat, Ticket
from tests.long_texts import ArticleEmbedding, body, write
from tests.test_passage_search import archive, queries  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_nearest_passages_with_their_rows(drain, django_assert_num_queries):
    one = write("blue sea", "deep blue sea", "grey stone", title="one")
    two = write("blue sky", title="two")
    drain()
    with django_assert_num_queries(1):
        found = list(ArticleEmbedding.objects.similar("deep blue sea")[:3])
        assert [(row.source, row.source.title, row.passage) for row in found] == [
            (one, "one", body("deep blue sea")),
            (one, "one", body("blue sea")),
            (two, "two", body("blue sky")),
        ]
        distances = [row.distance for row in found]
    assert distances == sorted(distances)
    assert len(ArticleEmbedding.objects.similar("deep blue sea")[:10]) == 4


def test_filters_and_forms(drain):
    one, two = write("blue sea", "grey stone"), write("blue sky")
    drain()
    found = ArticleEmbedding.objects.similar("blue sea")
    assert found.count() == 3
    assert found.exists()
    assert [row.source for row in found.filter(source=two)] == [two]
    assert list(found.values_list("source_id", "ordinal")[:1]) == [(one.pk, 0)]
    assert ArticleEmbedding.objects.filter(ordinal=0).similar("blue sea").count() == 2
    assert ArticleEmbedding.objects.similar("blue sea", min_similarity=0.99).count() == 0
    exact = ArticleEmbedding.objects.similar(body("blue sea"), min_similarity=0.99)
    assert [row.source for row in exact] == [one]
    assert [row.source for row in ArticleEmbedding.objects.similar(one)] == [two]
    assert ArticleEmbedding.objects.similar(list(one.embedding.vector))[0].source == one


def test_rows_that_are_gone_or_excluded_are_not_found(drain):
    gone, hidden, kept = write("blue sea", "x"), write("blue sky", "y"), write("grey stone")
    drain()
    gone.delete()
    Article.objects.filter(pk=hidden.pk).update(published_time=None)
    for options in ({}, {"exact": True}):
        found = ArticleEmbedding.objects.similar("blue sea", **options)
        assert found.count() == 1
        assert [row.source for row in found] == [kept]
        assert [row.source for row in found[:5]] == [kept]
    assert ArticleEmbedding.objects.count() == 5


def test_every_kind_of_source(drain):
    hall = Hall.objects.create(name="Great")
    Seat.objects.create(hall=hall, number="1", view="blue sea")
    Seat.objects.create(hall=hall, number="2", view="grey stone")
    Seat.objects.create(hall=hall, number="3", view="blue sea", free=False)
    Ticket.objects.create(code="a b", text="blue sea")
    FlatPage.objects.create(url="/a/", title="blue", content="sea")
    Leaf.objects.create(volume="v", number=1, text="grey stone " * 6 + "blue sea")
    drain()
    found = Seat.embedding.model.objects.similar("blue sea")
    assert [row.source.number for row in found] == ["1", "2"]
    assert found.count() == 2
    Seat.objects.filter(number="1").delete()
    assert found.all().count() == 1
    assert Ticket.embedding.model.objects.similar("sea")[0].source.code == "a b"
    assert FlatPageEmbedding.objects.similar("blue sea")[0].source.title == "blue"
    leaf = Leaf.embedding.model.objects.similar("blue sea")[0]
    assert (leaf.source.number, "blue sea" in leaf.passage) == (1, True)


def test_the_index_serves_it(archive):  # noqa: F811
    query = queries(1)[0]
    execute("ANALYZE")
    found = ArticleEmbedding.objects.similar(query)[:10]
    assert "Index Scan using articles_articleembedding_hnsw" in found.explain()
    vectors = [(pk, n, v) for pk, several in archive.items() for n, v in enumerate(several)]
    distances = [1 - v @ query / np.linalg.norm(v) for _, _, v in vectors]
    expected = [vectors[n][:2] for n in np.argsort(distances)[:10]]
    exact = ArticleEmbedding.objects.similar(query, exact=True)[:10]
    assert [(row.source_id, row.ordinal) for row in exact] == expected
    everything = ArticleEmbedding.objects.similar(query)[: len(vectors)]
    assert len(everything) == len(vectors)


def test_refusals(drain):
    Book.objects.create(title="A")
    drain()
    with pytest.raises(ValueError, match="give it some words"):
        BookEmbedding.objects.similar(" ")
    with pytest.raises(ValueError, match="from -1 to 1"):
        BookEmbedding.objects.similar("a", min_similarity=2)
    with pytest.raises(TypeError, match="slice the result"):
        BookEmbedding.objects.all()[:2].similar("a")
    with pytest.raises(ValueError, match="can be used once"):
        BookEmbedding.objects.similar("a").similar("b")
    with pytest.raises(ValueError, match="whose vectors are not those of"):
        BookEmbedding.objects.similar(write("x"))
