"""Shapes of querysets: what the index does not serve is exact, and what makes no sense refused."""

import pytest

from tests.library.models import Book
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
