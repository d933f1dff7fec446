"""Shapes of querysets: what the index does not serve is exact, and what makes no sense refused."""

from contextlib import contextmanager

import numpy as np
import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.db import connection, models, transaction
from django.db.models import Count, Exists, F, OuterRef, Q, Window
from django.db.models.functions import PercentRank

from embedsync import compiler, rescoring
from embedsync.embedders import MismatchError
from embedsync.models import SidecarState
from embedsync.worker import Worker
from tests.books import KEY
from tests.cinema.models import Film, Person
from tests.library.models import Book
from tests.spaces import clusters, fill, thing
from tests.test_search import DIMENSIONS, library, shelf, titles  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)

VECTOR = [1.0] * DIMENSIONS


def keys(queryset):
    return [row.pk for row in queryset]


class TestJoined:
    """By & where the search comes first; a plain queryset has no distance to order by."""

    @pytest.mark.parametrize("join", ["__or__", "__xor__"])
    def test_by_nothing_but_and(self, join):
        search, plain = Book.objects.similar(VECTOR), Book.objects.filter(year=3)
        for one, other in ((search, plain), (search, search), (plain, search)):
            with pytest.raises(TypeError, match=r"A search cannot be joined"):
                getattr(one, join)(other)

    def test_the_search_comes_first(self, shelf):  # noqa: F811
        search, plain = Book.objects.similar("red apple"), Book.objects.filter(title__contains="a")
        with pytest.raises(TypeError, match=r"filter before similar\(\), or let it come first"):
            plain & search
        assert titles(search & plain)[:2] == ["red apple", "green apple"]
        assert set(plain & search.order_by("pk")) == set(search & plain)


def test_a_queryset_that_was_reversed_before_is_searched_as_any(shelf):  # noqa: F811
    for exact in (True, False):
        found = Book.objects.reverse().similar("red apple", exact=exact)
        assert titles(found[:1]) == ["red apple"]
        assert titles(found)[0] == "red apple"
        assert titles(found.reverse())[-1] == "red apple"


class TestFewMatch:
    """How many rows are to be compared, not how many are left of them afterwards."""

    @pytest.fixture
    def search(self, library, monkeypatch):  # noqa: F811
        monkeypatch.setattr(compiler, "FEW_ROWS", 500)
        return Book.objects.filter(year__gt=7).similar(library[0])  # 2,200 of 3,000

    def few_match(self, search):
        return search[:10].query.get_compiler("default").few_match()

    def test_distinct_rows(self, search):
        assert self.few_match(search) is False
        assert self.few_match(search.distinct()) is False
        assert self.few_match(search.distinct("distance")) is False
        assert self.few_match(search.filter(year__lt=9).distinct()) is True

    def test_groups(self, search):
        assert self.few_match(search.annotate(n=Count("pk")).filter(n=1)) is False
        few = search.filter(year__lt=9).annotate(n=Count("pk")).filter(n=1)
        assert self.few_match(few) is True
        assert len(few[:10]) == 10

    def test_locked_rows_that_are_joined_to_what_may_not_be_there(self, drain):
        person = Person.objects.create(name="Ann")
        for title in ("red apple", "blue sea"):
            Film.objects.create(title=title, director=person)
        Film.objects.create(title="red rose")
        drain()
        wanted = Q(director__name="Ann") | Q(title="red rose")
        found = Film.objects.filter(wanted).similar("red").select_for_update(of=("self",))
        with transaction.atomic():
            assert len(found[:5]) == 3
            assert len(found[:2]) == 2


class TestTheDistanceByAnotherName:
    """An index would serve it, and nobody see that it has given too few rows."""

    def test_its_order_is_exact(self, library):  # noqa: F811
        rows = Book.objects.filter(year=3)
        found = rows.similar(VECTOR).annotate(score=F("distance")).order_by("score")
        assert "hnsw" not in found[:90].explain()
        assert keys(found[:90]) == keys(rows.similar(VECTOR, exact=True)[:90])
        assert keys(found.alias(twice=F("score") * 2).order_by("twice")[:90]) == keys(found[:90])

    def test_so_is_that_of_groups(self, library):  # noqa: F811
        found = Book.objects.similar(VECTOR).annotate(score=F("distance")).values("score")
        groups = found.annotate(books=Count("pk")).order_by("score")[:20]
        assert "hnsw" not in groups.explain()
        exact = Book.objects.similar(VECTOR, exact=True)[:20]
        assert [group["score"] for group in groups] == [book.distance for book in exact]

    def test_other_annotations_stay(self, shelf):  # noqa: F811
        same = Book.objects.filter(pk=OuterRef("pk"), title__contains="red")
        found = Book.objects.annotate(is_red=Exists(same)).similar("red apple")
        assert next((book.title, book.is_red) for book in found) == ("red apple", True)
        assert sum(book.is_red for book in found.order_by("pk")) == 2


def test_compilers_check_what_those_of_the_database_check():
    """Which aliases are safe to be quoted, for one."""
    own = connection.ops.compiler("SQLCompiler")
    assert issubclass(compiler.SimilarCompiler, own)
    assert issubclass(rescoring.CandidateCompiler, own)


def test_parameters_that_the_server_binds(shelf, bound_by_the_server):  # noqa: F811
    found = Book.objects.similar("red apple")
    assert titles(found[:1]) == ["red apple"]
    assert found.count() == found[:9].count() == 5
    assert titles(found.filter(title__contains="blue")[:3])[0] == "blue sea"
    assert titles(Book.objects.similar("red apple", min_similarity=0.99)[:3]) == ["red apple"]
    assert Book.objects.filter(pk__in=found.values("pk")[:2]).count() == 2
    SidecarState.objects.update_or_create(key=KEY, defaults={"embedder": "another"})
    with pytest.raises(MismatchError, match="were made by another and this text by"):
        list(found[:2])


class TestBits:
    def test_keys_of_several_columns(self, drain):
        fields = {
            "pk": models.CompositePrimaryKey("shelf", "number"),
            "number": models.IntegerField(),
        }
        with thing(fields, storage="bit") as model:
            for number, name in enumerate(["red apple", "blue sea", "red rose"]):
                model.objects.create(shelf=7, number=number, name=name)
            drain()
            found = model.objects.similar("red rose")
            assert found.values("pk")[:2][0] == {"pk": (7, 2)}
            assert list(found.values_list("pk", flat=True)[:1]) == [(7, 2)]
            assert list(found.values_list("name", "pk")[:1]) == [("red rose", (7, 2))]
            assert list(found.values_list("number", "name")[:1]) == [(2, "red rose")]
            assert keys(found[:1]) == [(7, 2)]
            within = model.objects.filter(pk__in=found.values("pk")[:2])
            assert len(within) == 2

    def test_select_related(self, drain, django_assert_num_queries):
        fields = {"parent": models.ForeignKey("self", models.CASCADE, null=True)}
        with thing(fields, storage="bit") as model:
            parent = model.objects.create(name="red apple")
            model.objects.create(name="blue sea", parent=parent)
            drain()
            with django_assert_num_queries(2):  # the second because there are only two
                rows = list(model.objects.similar("sea").select_related("parent")[:3])
                assert [row.parent and row.parent.name for row in rows] == ["red apple", None]
            with django_assert_num_queries(1):
                (row,) = model.objects.similar("sea").select_related("parent")[:1]
                assert (row.name, row.parent.name) == ("blue sea", "red apple")


@contextmanager
def proxy_of(model):
    attrs = {"__module__": __name__, "Meta": type("Meta", (), {"proxy": True})}
    attrs["Meta"].app_label = "library"
    made = type("Volume", (model,), attrs)
    try:
        yield made
    finally:
        del apps.all_models["library"]["volume"]
        apps.clear_cache()


class TestWindows:
    """They see all rows that pass the filters, as they do where nothing is searched for."""

    @pytest.mark.parametrize(
        "window", [Window(Count("*")), Window(PercentRank(), order_by="distance")]
    )
    def test_beside_the_distance(self, library, window):  # noqa: F811
        search = Book.objects.filter(year__lt=25).similar(library[0]).annotate(n=window)
        exact = Book.objects.filter(year__lt=25).similar(library[0], exact=True).annotate(n=window)
        assert [row.n for row in search[:5]] == [row.n for row in exact[:5]]

    def test_in_the_order(self, library):  # noqa: F811
        window = Window(Count("*"), partition_by="year").desc()
        search = Book.objects.similar(library[0]).order_by("distance", window)
        assert not search[:5].query.uses_index

    def test_among_candidates_of_bits(self):
        with thing(storage="bit") as model:
            fill(model, clusters(3000, np.random.default_rng(11)))
            near = model.objects.similar(model.objects.first(), min_similarity=0.6)
            (row,) = near.annotate(n=Window(Count("*")))[:1]
            assert 0 < row.n == near.count() < 1000


def test_values_that_are_the_same_are_one(shelf):  # noqa: F811
    Book.objects.bulk_create([Book(title="red apple"), Book(title="blue sea")])
    Worker().run(drain=True)
    for exact in (False, True):
        search = Book.objects.similar("red apple", exact=exact).values_list("title", flat=True)
        found = list(search.distinct())
        assert len(found) == len(set(found)) == search.distinct().count() == 5
        assert sorted(search.distinct()[:5]) == sorted(found)
        assert len(Book.objects.similar("red apple", exact=exact).distinct()) == 7


def test_what_an_index_cannot_be_asked_for(library):  # noqa: F811
    nan = Book.objects.similar(library[0]).filter(distance__lte=float("nan"))
    assert len(nan[:5]) == 5  # PostgreSQL has NaN beyond all numbers
    with thing(storage="bit") as model:
        fill(model, clusters(10, np.random.default_rng(11)))
        assert len(model.objects.similar(model.objects.first())[: 10**18]) == 9


def test_proxies(shelf):  # noqa: F811
    with proxy_of(Book) as volume:
        found = volume.objects.similar("deep blue sea")
        assert titles(found[:2]) == ["deep blue sea", "blue sea"]
        assert type(found[0]) is volume
        assert titles(found[0].similar()[:1]) == ["blue sea"]
        assert titles(volume.objects.similar(Book.objects.get(title="blue sea"))[:1]) == [
            "deep blue sea"
        ]


def test_asynchronously(shelf):  # noqa: F811
    search = Book.objects.similar("deep blue sea")

    async def asked():
        assert await search.acount() == 5
        assert await search[:3].acount() == 3
        assert (await search.afirst()).title == "deep blue sea"
        assert (await search.alast()).title not in ("deep blue sea", "blue sea")
        whole = [book.title async for book in search.all()]
        assert [book.title async for book in search.aiterator()] == whole
        assert [book.title async for book in search[:2].aiterator()] == whole[:2]
        return whole, [book.title async for book in search[:2]]

    whole, first = async_to_sync(asked)()
    assert whole == titles(search)
    assert first == whole[:2] == ["deep blue sea", "blue sea"]


def test_first_and_last_by_another_field(shelf):  # noqa: F811
    for year, book in enumerate(Book.objects.order_by("pk")):
        Book.objects.filter(pk=book.pk).update(year=year)
    for exact in (True, False):
        found = Book.objects.similar("blue sea", exact=exact)
        assert found.earliest("year").title == "red apple"
        assert found.latest("year").title == "deep blue sea"
        assert found.filter(distance__gt=0.01).latest("year").distance > 0.01


def test_changes_of_what_is_found(shelf):  # noqa: F811
    near = Book.objects.similar("deep blue sea", min_similarity=0.5)
    assert set(titles(near)) == {"deep blue sea", "blue sea"}
    assert near.update(year=1900) == 2
    assert set(titles(Book.objects.filter(year=1900))) == {"deep blue sea", "blue sea"}
    with pytest.raises(TypeError, match=r"[Cc]annot"):
        near[:1].delete()
    deleted, _ = near.delete()
    assert deleted == 2
    assert set(titles(Book.objects.all())) == {"red apple", "green apple", "red rose"}
    assert Book.objects.similar("sea").update(year=1) == 3
