"""Search: the right rows, all of them, in order; lazily, with one join; and clear refusals."""

import pickle

import numpy as np
import pytest
from django.contrib.flatpages.models import FlatPage
from django.core.paginator import Paginator
from django.db import connection, models
from django.db.models.functions import Length
from django.utils.translation import gettext_lazy
from pgvector import HalfVector, Vector

import embedsync
from embedsync import index, indexing
from embedsync.database import binary_cursor
from embedsync.embedders import get_embedder
from embedsync.models import EmbeddingQuerySet
from tests.books import BookEmbedding, execute
from tests.cinema.models import Film, Person
from tests.embedders import ScriptedEmbedder
from tests.library.models import Book, Letter, Memo, Postscript, Ticket

models.CharField.register_lookup(Length)

pytestmark = pytest.mark.django_db(transaction=True)

DIMENSIONS = 64


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def python_order(query, pks, vectors, k):
    """The keys of the k nearest vectors, by exact search in Python over what is stored."""
    stored = np.asarray(vectors, dtype=np.float64)
    asked = np.asarray(HalfVector(list(map(float, query))).to_list())
    distances = 1 - stored @ asked / np.linalg.norm(stored, axis=1) / np.linalg.norm(asked)
    order = np.lexsort((pks, np.round(distances, 12)))
    return [pks[i] for i in order[:k]]


@pytest.fixture
def library(transactional_db, monkeypatch):
    """3,000 books in 30 clusters, year = cluster, their vectors indexed; the vectors by key."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(30, DIMENSIONS))
    vectors = unit(centres[np.arange(3000) % 30] + 0.4 * random.normal(size=(3000, DIMENSIONS)))
    monkeypatch.setattr("embedsync.compiler.FEW_ROWS", 0)  # through the index, all of them
    execute("SET embedsync.capture = 'off'")
    Book.objects.bulk_create(
        [Book(id=n + 1, title=f"Book {n + 1}", year=n % 30) for n in range(3000)]
    )
    execute("RESET embedsync.capture")
    execute('DROP INDEX "library_bookembedding_hnsw"')
    with connection.schema_editor() as editor:
        editor.add_index(BookEmbedding, index.deferred_index(BookEmbedding))
    with binary_cursor("default") as cursor:
        cursor.execute(
            "INSERT INTO library_bookembedding (source_id, ordinal, digest, vector)"
            " SELECT n, 0, '', v FROM unnest(%(n)s::int[], %(v)b::halfvec[]) AS u(n, v)",
            {"n": list(range(1, 3001)), "v": [HalfVector(vector) for vector in vectors]},
        )
    indexing.build(BookEmbedding, "default")
    execute("ANALYZE library_book, library_bookembedding")
    # With as few books as these a planner may rather sort.
    execute("SET enable_sort = off; SET enable_seqscan = off")
    yield vectors
    execute("RESET enable_sort; RESET enable_seqscan")


@pytest.fixture
def shelf(drain):
    for title in ("red apple", "green apple", "blue sea", "red rose", "deep blue sea"):
        Book.objects.create(title=title)
    drain()


def titles(queryset):
    return [book.title for book in queryset]


def test_nearest_first_with_their_distances(shelf):
    found = list(Book.objects.similar("deep blue sea"))
    assert found[0].title == "deep blue sea"
    assert found[1].title == "blue sea"
    distances = [book.distance for book in found]
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0, abs=1e-3)
    assert len(found) == 5


def test_on_manager_queryset_instance_and_function(shelf):
    book = Book.objects.get(title="blue sea")
    for queryset in (
        Book.objects.similar(book),
        Book.objects.all().similar(book),
        book.similar(),
        embedsync.similar(Book.objects.all(), book),
        Book.objects.similar(embedsync.embed_query("blue sea. ", "scripted")).exclude(pk=book.pk),
    ):
        assert titles(queryset[:1]) == ["deep blue sea"]
        assert book not in queryset
    assert book.embedding.source_id == book.pk
    assert Book(title="new", pk=99).embedding is None


def test_third_party_models(drain):
    FlatPage.objects.create(url="/a/", title="About us", content="who we are")
    FlatPage.objects.create(url="/b/", title="Prices", content="what it costs")
    drain()
    page = embedsync.similar(FlatPage.objects.all(), "what does it costs")[0]
    assert page.title == "Prices"
    assert not hasattr(FlatPage, "flatpageembedding_set")


def test_lazy_and_embedded_once(shelf, monkeypatch, django_assert_num_queries):
    calls = []
    embed = ScriptedEmbedder.embed_documents
    monkeypatch.setattr(
        ScriptedEmbedder, "embed_documents", lambda self, t: calls.append(t) or embed(self, t)
    )
    with django_assert_num_queries(0):
        queryset = Book.objects.similar("blue").filter(distance__gt=-1)
    assert calls == []
    with django_assert_num_queries(3):  # the count, how many to expect, and these
        page = Paginator(queryset, 2).page(1)
        assert len(list(page)) == 2
    assert calls == [["blue"]]


def test_one_inner_join(shelf):
    sql = str(Book.objects.filter(year__gt=1).similar([0.5] * DIMENSIONS).query)
    assert sql.count("JOIN") == 1
    assert sql.count('INNER JOIN "library_bookembedding"') == 1


def test_chains_with_the_rest_of_the_orm(shelf):
    found = Book.objects.similar("red apple")
    assert list(found.values_list("title", flat=True)[:1]) == ["red apple"]
    assert list(found.values("title")[:1]) == [{"title": "red apple"}]
    assert found.count() == 5
    assert found.exists()
    assert found.filter(title__contains="blue").count() == 2
    assert titles(found.exclude(title__contains="apple")[:1]) == ["red rose"]
    assert titles(found.filter(distance__lt=0.01)) == ["red apple"]
    assert titles(Book.objects.similar("red apple", min_similarity=0.99)) == ["red apple"]
    assert found.first().title == "red apple"
    assert titles(found.reverse()[:5])[-1] == "red apple"
    assert titles(found.only("title")[:1]) == ["red apple"]
    assert titles(found.iterator())[0] == "red apple"
    assert found.in_bulk().keys() == set(Book.objects.values_list("pk", flat=True))
    assert found.aggregate(models.Min("distance"))["distance__min"] < 0.01
    assert Book.objects.filter(pk__in=found.values("pk")[:2]).count() == 2
    assert len(found[:2].union(found.none())) == 2


def test_querysets_can_be_pickled(shelf):
    queryset = Book.objects.similar("deep blue sea")[:2]
    copied = Book.objects.all()
    copied.query = pickle.loads(pickle.dumps(queryset.query))
    assert titles(copied) == titles(queryset)
    assert [b.distance for b in pickle.loads(pickle.dumps(queryset))] == [
        b.distance for b in queryset
    ]


def test_managers_of_ones_own(shelf):
    class Published(EmbeddingQuerySet):
        def reds(self):
            return self.filter(title__contains="red")

    manager = models.Manager.from_queryset(Published)()
    manager.model = Book
    assert titles(manager.reds().similar("rose")[:1]) == ["red rose"]


def test_several_kinds_of_keys(drain):
    Ticket.objects.create(code="a b", text="red apple")
    Ticket.objects.create(code="c", text="blue sea")
    drain()
    assert Ticket.objects.similar("red apple").first().code == "a b"
    assert Ticket.objects.get(pk="c").similar().first().code == "a b"


def test_related_filters_and_select_related(drain, django_assert_num_queries):
    letter = Letter.objects.create(text="red apple")
    Letter.objects.create(text="blue sea")
    Postscript.objects.create(letter=letter)
    Film.objects.create(title="red apple", director=Person.objects.create(name="Ann"))
    Film.objects.create(title="blue sea")
    drain()
    found = Letter.objects.filter(postscript__isnull=False).similar("sea")
    assert [row.pk for row in found] == [letter.pk]
    for exact in (True, False):
        films = Film.objects.similar("red apple", exact=exact).select_related("director")
        with django_assert_num_queries(1):
            assert [film.director and film.director.name for film in films[:2]] == ["Ann", None]
    assert Memo.objects.similar("x").count() == 0


def test_deleted_and_excluded_rows_are_never_returned(shelf):
    """At once: before any worker has heard of it."""
    Book.objects.filter(title="blue sea").delete()
    Book.objects.filter(title="red rose").update(published=False)
    found = titles(Book.objects.similar("blue red"))
    assert sorted(found) == ["deep blue sea", "green apple", "red apple"]


def test_the_index_serves_the_search(library):
    plan = Book.objects.similar(library[0])[:10].explain()
    assert "Index Scan using library_bookembedding_hnsw" in plan
    assert "hnsw" not in Book.objects.similar(library[0], exact=True)[:10].explain()


def test_a_count_of_queries_stays_one(library, django_assert_num_queries):
    with django_assert_num_queries(1):
        assert len(Book.objects.similar(library[0])[:10]) == 10


def test_exact_is_exact_search_in_python(library):
    stored = dict(BookEmbedding.objects.values_list("source_id", "vector"))
    pks = list(stored)
    random = np.random.default_rng(1)
    for query in unit(random.normal(size=(20, DIMENSIONS))):
        found = [book.pk for book in Book.objects.similar(query, exact=True)[:50]]
        assert found == python_order(query, pks, list(stored.values()), 50)


def test_recall_through_the_index(library):
    hits = 0
    random = np.random.default_rng(2)
    queries = unit(library[::100] + 0.2 * random.normal(size=(30, DIMENSIONS)))
    for query in queries:
        exact = {book.pk for book in Book.objects.similar(query, exact=True)[:10]}
        hits += len(exact & {book.pk for book in Book.objects.similar(query)[:10]})
    assert hits / (10 * len(queries)) >= 0.98


@pytest.mark.parametrize("k", [1, 50, 100])
def test_all_k_rows_when_all_matches_lie_far_away(library, k):
    """The filter keeps what is farthest from the query: the index alone gives up before it."""
    query = library[0]
    distances = 1 - library @ query
    far = [int(n) + 1 for n in np.argsort(-distances)[:100]]
    Book.objects.filter(pk__in=far).update(title="far")
    execute("ANALYZE library_book")
    # The planner cannot know how few titles are so short, and takes the index.
    short = Book.objects.filter(title__length__lt=5)
    found = short.similar(query)[:k]
    assert "library_bookembedding_hnsw" in found.explain()
    assert len(found) == k
    if k == len(far):
        assert {book.pk for book in found} == set(far)


def test_rows_that_the_index_skips_are_found_all_the_same(library):
    """strict_order leaves out what it meets too late; a short answer is made again exactly."""
    found = Book.objects.similar(library[0])[:3000]
    assert "library_bookembedding_hnsw" in found.explain()
    assert len(found) == 3000


@pytest.mark.parametrize("years", [15, 3, 1])
def test_k_rows_under_filters(library, years):
    for query in library[:5]:
        found = Book.objects.filter(year__lt=years).similar(query)[:60]
        assert len(found) == 60
        assert all(book.year < years for book in found)


def test_exact_pages_neither_repeat_nor_leave_out(library):
    queryset = Book.objects.filter(year__lt=3).similar(library[0], exact=True)
    pages = [book.pk for start in range(0, 300, 20) for book in queryset[start : start + 20]]
    assert len(pages) == len(set(pages)) == 300


def test_a_vector_from_numpy_or_a_list(library):
    nearest = Book.objects.similar(library[41]).first().pk
    assert nearest == Book.objects.similar(library[41].tolist()).first().pk == 42


class TestRefusals:
    def test_blank_text(self):
        for text in ("", "  \n"):
            with pytest.raises(ValueError, match=r"give it some words"):
                Book.objects.similar(text)
        with pytest.raises(ValueError, match=r"blank"):
            embedsync.embed_query(" ", "scripted")

    def test_vectors(self):
        with pytest.raises(ValueError, match=r"vector of 3 dimensions; those of library"):
            Book.objects.similar([1, 2, 3])
        with pytest.raises(ValueError, match=r"zero or not finite"):
            Book.objects.similar([0] * DIMENSIONS)
        with pytest.raises(ValueError, match=r"zero or not finite"):
            Book.objects.similar([float("nan")] * DIMENSIONS)
        for wrong in (None, 7, ["a"] * DIMENSIONS, b"x"):
            with pytest.raises(
                ValueError, match=r"takes a text, an instance or a vector|dimensions"
            ):
                Book.objects.similar(wrong)

    def test_instances(self):
        with pytest.raises(ValueError, match=r"unsaved library.Book"):
            Book.objects.similar(Book(title="x"))
        with pytest.raises(ValueError, match=r"unsaved library.Book"):
            Book(title="x", pk=3).similar()
        with pytest.raises(ValueError, match=r"a library.Memo, whose vectors"):
            Book.objects.similar(Memo.objects.create(text="x"))
        book = Book.objects.create(title="not embedded yet")
        with pytest.raises(ValueError, match=r"has no vector in library.BookEmbedding"):
            list(book.similar())

    def test_querysets(self):
        with pytest.raises(TypeError, match=r"slice the result"):
            Book.objects.all()[:5].similar("x")
        with pytest.raises(ValueError, match=r"can be used once"):
            Book.objects.similar("x").similar("y")
        with pytest.raises(ValueError, match=r"already has 'distance', an annotation"):
            Book.objects.annotate(distance=models.Value(1)).similar("x")
        with pytest.raises(ValueError, match=r"already has 'pk', a field or property"):
            Book.objects.similar("x", distance_name="pk")

    def test_arguments(self):
        with pytest.raises(TypeError, match=r"takes a queryset first"):
            embedsync.similar(Book, "x")
        with pytest.raises(TypeError, match=r"on a union: search each part"):
            Book.objects.all().union(Book.objects.all()).similar("x")
        with pytest.raises(ValueError, match=r"is a number, not '0.5'"):
            Book.objects.similar("x", min_similarity="0.5")
        for wrong in (-1.1, 40):
            with pytest.raises(ValueError, match=r"from -1 to 1"):
                Book.objects.similar("x", min_similarity=wrong)
        assert embedsync.similar(Book.objects, "x").count() == 0

    def test_models_and_names(self):
        with pytest.raises(ValueError, match=r"library.Postscript has no embedding"):
            embedsync.similar(Postscript.objects.all(), "x")
        with pytest.raises(
            ValueError, match=r"has no embedding 'plot': choose one .* of 'embedding'"
        ):
            Book.objects.similar("x", embedding="plot")
        assert Book.objects.similar("x", embedding="embedding").count() == 0


def test_a_text_to_be_translated_and_the_vectors_of_pgvector(shelf):
    vector = embedsync.embed_query("blue sea", "scripted")
    for query in (gettext_lazy("blue sea"), Vector(vector), HalfVector(vector)):
        assert titles(Book.objects.similar(query)[:1]) == ["blue sea"]


def test_an_instance_that_is_deleted_before_the_search_runs(shelf):
    book = Book.objects.get(title="blue sea")
    found = book.similar()
    book.delete()
    with pytest.raises(ValueError, match="has no vector"):
        list(found)


def test_the_embedder_is_made_once():
    assert get_embedder("scripted") is get_embedder("scripted")


class TestWhatNoIndexServes:
    """Compares all rows, since nobody would see whether the index has given enough."""

    def test_another_expression_of_the_same_order(self, library):
        vector = [1.0] * DIMENSIONS
        found = Book.objects.filter(year=3).similar(vector).order_by(models.F("distance").asc())
        exact = Book.objects.filter(year=3).similar(vector, exact=True)
        assert [book.pk for book in found[:90]] == [book.pk for book in exact[:90]]
        assert "+ 0" in str(found.query)

    def test_a_search_without_an_end(self, library):
        assert "+ 0" in str(Book.objects.similar([1.0] * DIMENSIONS).query)
        assert "+ 0" not in str(Book.objects.similar([1.0] * DIMENSIONS)[:10].query)

    def test_unions_have_an_order(self, library):
        one, other = (
            Book.objects.similar(vector, exact=True).filter(year__in=years).values("pk", "distance")
            for vector in ([1.0] * DIMENSIONS,)
            for years in ([1, 2], [2, 3])
        )
        rows = one.union(other).order_by("distance")
        assert len(rows) == 300
        assert [row["distance"] for row in rows] == sorted(row["distance"] for row in rows)

    def test_groups_are_not_of_one_row_each(self, library):
        found = Book.objects.similar([1.0] * DIMENSIONS).values("distance")
        execute(
            "UPDATE library_bookembedding SET vector ="
            " (SELECT vector FROM library_bookembedding ORDER BY source_id LIMIT 1)"
        )
        (group,) = found.annotate(books=models.Count("pk")).order_by("distance")
        assert group["books"] == Book.objects.similar([1.0] * DIMENSIONS).count() > 2000


def test_a_name_that_is_taken_afterwards_is_refused(library):
    found = Book.objects.similar([1.0] * DIMENSIONS).annotate(distance=models.Value(1))
    with pytest.raises(ValueError, match=r"annotation has taken the name 'distance'"):
        list(found[:3])


def test_searches_are_not_joined_by_or(library):
    with pytest.raises(TypeError, match=r"cannot be joined by \|"):
        Book.objects.similar([1.0] * DIMENSIONS) | Book.objects.filter(year=3)


def test_a_pickled_search_forgets_its_vector(shelf):
    """Another process may have another embedder, whose fingerprint would stand beside it."""
    queryset = Book.objects.similar("red")
    assert list(queryset[:1])
    copied = pickle.loads(pickle.dumps(queryset.query))
    distance = copied.annotations["distance"]
    _, vector = distance.get_source_expressions()
    assert vector.memo == []
