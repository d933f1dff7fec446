"""Searches as part of other queries, and those that few rows match: as many rows as there are."""

import pytest
from django.db import connection, transaction
from django.db.models import Count, Exists, F, Max, OuterRef, Subquery, Window
from django.db.models.functions import RowNumber
from django.test.utils import CaptureQueriesContext

from embedsync import compiler
from tests.books import execute
from tests.library.models import Book, Letter, Postscript
from tests.test_search import library  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)

K = 3000  # so many that strict_order alone leaves some out


def pks(queryset):
    return {row.pk for row in queryset}


class TestInsideOtherQueries:
    """Nobody sees there how many rows the index has given."""

    def test_the_index_alone_gives_too_few(self, library):  # noqa: F811
        near = Book.objects.similar(library[0])[:K]
        sql, parameters = near.query.get_compiler("default").as_sql()
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM ({sql}) AS s", parameters)
            assert cursor.fetchone()[0] < K

    def test_in_a_sub_query(self, library):  # noqa: F811
        near = Book.objects.similar(library[0])
        assert Book.objects.filter(pk__in=near.values("pk")[:K]).count() == K
        assert pks(Book.objects.filter(pk__in=near.values("pk")[:20])) == pks(near[:20])
        assert pks(Book.objects.filter(pk__in=near.values("pk")[20:40])) == pks(near[20:40])

    def test_in_a_count_an_aggregate_and_a_union(self, library):  # noqa: F811
        near = Book.objects.similar(library[0])[:K]
        assert near.count() == K
        assert near.exists()
        assert near.aggregate(Max("distance"))["distance__max"] > 0
        assert len(near.union(near)) == K
        assert len(Book.objects.none().union(near)) == K
        others = Book.objects.similar(library[5])[:10]
        both = pks(Book.objects.similar(library[0])[:10].union(others))
        assert both == pks(Book.objects.similar(library[0])[:10]) | pks(others)

    def test_the_exact_part_is_not_run_where_the_index_gives_enough(self, library):  # noqa: F811
        near = Book.objects.similar(library[0]).values("pk")[:5]
        outer = Book.objects.filter(pk__in=near)
        sql, parameters = outer.query.sql_with_params()
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {sql}", parameters)
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "One-Time Filter" in plan
        assert "never executed" in plan

    def test_of_an_outer_row(self, drain):
        for text in ("red apple", "red rose", "blue sea"):
            letter = Letter.objects.create(text=text)
            Postscript.objects.create(letter=letter)
        drain()
        nearest = Letter.objects.similar("red").filter(pk=OuterRef("letter_id")).values("distance")
        found = Postscript.objects.annotate(distance=Subquery(nearest[:1])).order_by("distance")
        assert [row.letter.text for row in found][-1] == "blue sea"
        near = Letter.objects.similar("red", min_similarity=0.1).filter(pk=OuterRef("letter_id"))
        assert Postscript.objects.filter(Exists(near)).count() == 2


class TestFewRows:
    """Where few rows pass the filters they are all compared: the index would take longer."""

    @pytest.fixture
    def queries(self, library, monkeypatch):  # noqa: F811
        monkeypatch.setattr(compiler, "FEW_ROWS", 500)
        execute("ANALYZE library_book, library_bookembedding")
        return CaptureQueriesContext(connection)

    def test_exactly_where_few_match(self, library, queries):  # noqa: F811
        with queries:
            found = list(Book.objects.filter(year=7).similar(library[0])[:10])
        assert len(queries) == 2
        assert queries[0]["sql"].startswith("EXPLAIN")
        assert "hnsw" not in queries[1]["sql"]
        exact = Book.objects.filter(year=7).similar(library[0], exact=True)[:10]
        assert [row.pk for row in found] == [row.pk for row in exact]

    def test_whether_filtered_before_or_after(self, library, queries):  # noqa: F811
        with queries:
            list(Book.objects.similar(library[0]).exclude(year__gt=2)[:10])
        assert "hnsw" not in queries[-1]["sql"]

    def test_through_the_index_where_many_match(self, library, queries):  # noqa: F811
        with queries:
            assert len(Book.objects.filter(year__gt=7).similar(library[0])[:10]) == 10
        assert "hnsw" in queries[-1]["sql"]

    def test_without_filters_nobody_asks(self, library, queries):  # noqa: F811
        with queries:
            list(Book.objects.similar(library[0], min_similarity=0.1)[:10])
            list(Book.objects.get(pk=1).similar()[:10])
        assert not any(query["sql"].startswith("EXPLAIN") for query in queries)

    def test_in_another_order_it_is_no_search_of_the_index(self, library, queries):  # noqa: F811
        with queries:
            found = list(Book.objects.similar(library[0]).order_by("-pk")[:10])
        assert [row.pk for row in found] == list(range(3000, 2990, -1))
        assert len(queries) == 1


@pytest.mark.parametrize("exact", [True, False])
def test_with_distinct_groups_and_related_rows(drain, exact):
    for text in ("red apple", "red rose", "blue sea"):
        letter = Letter.objects.create(text=text)
        for _ in range(2):
            Postscript.objects.create(letter=letter)
    drain()
    found = Letter.objects.similar("red apple", exact=exact)
    joined = found.filter(postscript__isnull=False)
    assert [row.text for row in joined[:2]] == ["red apple", "red apple"]
    assert [row.text for row in joined.distinct()[:2]] == ["red apple", "red rose"]
    first = found.annotate(n=Count("postscript"))[0]
    assert (first.text, first.n) == ("red apple", 2)
    (first, *_) = found.prefetch_related("postscript_set")[:1]
    assert len(first.postscript_set.all()) == 2
    later = Letter.objects.filter(postscript__pk__gt=first.postscript_set.last().pk).distinct()
    later = later.similar("red apple", exact=exact)
    assert {row.text for row in later[:5]} == {"red rose", "blue sea"}


def test_of_a_larger_table_more_rows_are_few(library, monkeypatch):  # noqa: F811
    """By the square root of how much larger: comparing n takes as n, a walk as 1 / n."""
    execute("ANALYZE library_book, library_bookembedding")
    search = Book.objects.filter(year__gt=19).similar(library[0])[:10]  # 1,000 of 3,000
    for few, of, expected in [(400, 3000, False), (400, 300, True), (200, 300, False)]:
        monkeypatch.setattr(compiler, "FEW_ROWS", few)
        monkeypatch.setattr(compiler, "FEW_ROWS_OF", of)
        assert search.query.get_compiler("default").few_match() is expected


class TestBounds:
    """Where fewer rows are near enough than are asked for, the index is left at the last of them.

    It would walk to its end, and all rows would be compared after that.
    """

    @pytest.fixture
    def nearest(self, library):  # noqa: F811
        return list(Book.objects.similar(library[0], exact=True)[:20])

    @pytest.fixture
    def bound(self, nearest):
        return (nearest[4].distance + nearest[5].distance) / 2

    @pytest.fixture(params=["min_similarity", "lt", "lte", "filtered"])
    def search(self, library, bound, request):  # noqa: F811
        if request.param == "min_similarity":
            return Book.objects.similar(library[0], min_similarity=1 - bound)
        if request.param == "filtered":
            return Book.objects.filter(year__gte=0).similar(library[0]).filter(distance__lte=bound)
        return Book.objects.similar(library[0]).filter(**{f"distance__{request.param}": bound})

    @pytest.mark.parametrize(
        "page", [slice(10), slice(3), slice(2, 10), slice(3, 5), slice(5, 10), slice(7, 9)], ids=str
    )
    def test_a_page_ends_with_the_last_that_is_near_enough(
        self, search, nearest, page, monkeypatch
    ):
        monkeypatch.setattr(compiler.SimilarCompiler, "few_match", lambda _: False)
        monkeypatch.setattr(compiler.SimilarQuery, "exactly", None)
        with CaptureQueriesContext(connection) as queries:
            found = list(search[page])
        assert [book.pk for book in found] == [book.pk for book in nearest[:5][page]]
        assert all(book.title for book in found)
        searches = [query["sql"] for query in queries if "<=>" in query["sql"]]
        assert len(searches) == (2 if found else 1)
        assert all("hnsw" in sql for sql in searches)

    def test_the_rest_of_the_orm(self, search, nearest):
        first = [book.pk for book in nearest[:5]]
        assert [values["pk"] for values in search.values("pk")[:10]] == first
        assert list(search.values_list("title", flat=True)[2:10]) == [
            book.title for book in nearest[2:5]
        ]
        assert [book.pk for book in search[:10].iterator()] == first
        assert search[:10].count() == search.count() == 5
        assert [book.pk for book in search.distinct()[:10]] == first
        with transaction.atomic():
            assert [book.pk for book in search.select_for_update(of=["self"])[:10]] == first

    def test_what_a_page_of_distances_cannot_tell_is_exact(self, library, bound):  # noqa: F811
        """Other orders, windows over what is within, the bound of another search."""
        within, exact = (
            Book.objects.similar(library[0], min_similarity=1 - bound, exact=is_exact)
            for is_exact in (False, True)
        )
        number = Window(RowNumber(), order_by=F("id").asc())
        for change in (
            lambda found: found.annotate(number=number).filter(number__lte=3),
            lambda found: found.extra(order_by=["-id"]),
            lambda found: Book.objects.similar(library[0]) & found,
            lambda found: Book.objects.similar(library[30]) & found,
            lambda found: Book.objects.similar([-value for value in library[0]]) & found,
        ):
            wanted = [book.pk for book in change(exact)[:10]]
            assert wanted
            assert [book.pk for book in change(within)[:10]] == wanted

    def test_an_equal_distance_is_within_one_and_not_the_other(self, library, nearest):  # noqa: F811
        found, last = Book.objects.similar(library[0]), nearest[4].distance
        assert len(found.filter(distance__lt=last)[:10]) == 4
        assert len(found.filter(distance__lte=last)[:10]) == 5

    def test_where_few_rows_pass_they_are_compared(self, library, monkeypatch):  # noqa: F811
        """The bound is no filter of which the planner would know how many rows pass."""
        monkeypatch.setattr(compiler, "FEW_ROWS", 500)
        execute("ANALYZE library_book, library_bookembedding")
        few = Book.objects.filter(year=7).similar(library[0], min_similarity=-1)[:10]
        with CaptureQueriesContext(connection) as queries:
            assert len(few) == 10
        assert [query["sql"][:7] for query in queries] == ["EXPLAIN", "SELECT "]
        many = Book.objects.filter(year__gt=7).similar(library[0], min_similarity=-1)[:10]
        with CaptureQueriesContext(connection) as queries:
            assert list(many)
        assert [query["sql"][:7] for query in queries].count("EXPLAIN") == 1
        assert sum("hnsw" in query["sql"] for query in queries) == 2
        with CaptureQueriesContext(connection) as queries:
            list(Book.objects.similar(library[0]).filter(distance__lte=1)[:10])
        assert not any(query["sql"].startswith("EXPLAIN") for query in queries)
