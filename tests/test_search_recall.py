"""Recall under filters: through the index too, what is nearest among the rows that pass."""

import numpy as np
import pytest

from embedsync import compiler
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.test_search import DIMENSIONS, library, python_order, unit  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)

SHARES = {"a": 0.5, "b": 0.05, "c": 0.005}
K = 10


@pytest.fixture
def stored(library):  # noqa: F811
    return dict(BookEmbedding.objects.values_list("source_id", "vector"))


@pytest.fixture
def queries(library):  # noqa: F811
    return unit(library[::100] + 0.1 * np.random.default_rng(4).normal(size=(30, DIMENSIONS)))


def recall(found, query, stored, passing):
    keys = sorted(passing)
    expected = python_order(query, keys, [stored[key] for key in keys], K)
    assert len(found) == len(expected)
    assert {row.pk for row in found} <= passing
    return len({row.pk for row in found} & {*expected}) / len(expected)


def test_filters_that_have_nothing_to_do_with_what_is_near(library, stored, queries):  # noqa: F811
    """Half of the rows, a twentieth, and too few for the index to meet them soon."""
    keys = np.random.default_rng(6).permutation(sorted(stored))
    execute("SET embedsync.capture = 'off'")
    for body, share in SHARES.items():
        first = [int(key) for key in keys[: int(share * len(keys))]]
        execute("UPDATE library_book SET body = %s WHERE id = ANY(%s)", [body, first])
    execute("RESET embedsync.capture")
    execute("ANALYZE library_book")
    for body, share in SHARES.items():
        passing = {int(key) for key in keys[: int(share * len(keys))]}
        rows = Book.objects.filter(body__gte=body)
        assert "library_bookembedding_hnsw" in rows.similar(queries[0])[:K].explain()
        found = [recall(rows.similar(query)[:K], query, stored, passing) for query in queries]
        assert np.mean(found) >= 0.95, share


def test_a_filter_that_keeps_what_is_far(library, stored, queries, monkeypatch):  # noqa: F811
    """Of 30 clusters the three that are farthest from the query's own."""
    alone, found = [], []
    for query in queries:
        nearness = [library[year::30].mean(axis=0) @ query for year in range(30)]
        years = [int(year) for year in np.argsort(nearness)[:3]]
        passing = {key for key in stored if (key - 1) % 30 in years}
        for few, measured in ((0, alone), (3000, found)):
            monkeypatch.setattr(compiler, "FEW_ROWS", few)
            rows = Book.objects.filter(year__in=years).similar(query)[:K]
            measured.append(recall(rows, query, stored, passing))
    assert np.mean(found) >= 0.95
    # What it gives is as many rows, in order, and this is why few are compared without it.
    assert np.mean(alone) >= 0.8
