"""Searches and rows that have many related ones: excluded, prefetched, found among a row's own."""

import numpy as np
import pytest
from django.db import models
from django.db.models import F, OuterRef, Prefetch, Q, Subquery

from embedsync import compiler
from embedsync.models import Chunks
from tests.spaces import clusters, fill, nearest, thing

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = {
    "index": {},
    "bits": {"storage": "bit"},
    "none": {"index": None},
    "passages": {"chunks": Chunks(size=4, markdown=False)},
}
random = np.random.default_rng(11)
VECTORS = clusters(600, random)
QUERIES = VECTORS[::60] + 0.1 * random.normal(size=(10, 64))


def relations():
    return {
        "parent": models.ForeignKey("self", models.CASCADE, null=True, related_name="children"),
        "friends": models.ManyToManyField("self", symmetrical=False),
    }


def keys(rows):
    return [row.pk for row in rows]


@pytest.mark.parametrize("few", [0, 3000])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_excluded_by_their_many_related_ones(kind, exact, few, drain, monkeypatch):
    monkeypatch.setattr(compiler, "FEW_ROWS", few)
    with thing(relations(), **KINDS[kind]) as model:
        one, other, *rest = [model.objects.create(name=f"red apple {n}") for n in range(6)]
        one.friends.add(rest[0], rest[1])
        rest[2].parent = other
        rest[2].save()
        drain()
        found = model.objects.similar("red apple", exact=exact)
        without = {
            one.pk: Q(friends__name="red apple 2"),
            other.pk: Q(children__name="red apple 4"),
        }
        for pk, condition in without.items():
            wanted = set(keys(model.objects.exclude(pk=pk)))
            for rows in (
                found.exclude(condition),
                found.filter(~condition),
                found.exclude(condition, shelf=0),
                model.objects.exclude(condition).similar("red apple", exact=exact),
            ):
                assert set(keys(rows[:10])) == set(keys(rows.all())) == wanted
                assert len(rows[:3]) == 3
                assert rows.count() == rows[:10].count() == 5
                assert set(keys(model.objects.filter(pk__in=rows.values("pk")[:10]))) == wanted
            sidecar = model.embedding.model
            passages = sidecar.objects.similar("red apple", exact=exact)
            about = Q(**{f"source__{name}": value for name, value in condition.children})
            assert {row.source_id for row in passages.exclude(about)[:99]} == wanted


@pytest.fixture
def family(transactional_db):
    """600 rows; of all but the first 30 the parent is one of these: the one on the same shelf."""
    with thing(relations()) as model:
        rows = fill(model, VECTORS)
        model.objects.filter(pk__gt=30).update(parent_id=F("shelf") + 1)
        model.friends.through.objects.bulk_create(
            model.friends.through(**{f"from_{name}": pk, f"to_{name}": pk + 1})
            for name in [f"{model._meta.model_name}_id"]
            for pk in range(1, 500, 3)
        )
        yield model, rows


def in_order(family, query, wanted):
    order, _ = nearest(*family, query, len(VECTORS))
    return [pk for pk in order if wanted(pk)]


def shelf(pk):
    return (pk - 1) % 30


def child_of(parent):
    return lambda pk: pk > 30 and shelf(pk) == shelf(parent)


class TestExactIsSearchInPython:
    def assert_same(self, family, change, wanted, k=40):
        for query in QUERIES:
            expected = in_order(family, query, wanted)
            found = change(family[0].objects).similar(query, exact=True)
            assert keys(found[:k]) == expected[:k]
            assert keys(found.all()) == expected
            within = family[0].objects.filter(pk__in=found.values("pk")[:k])
            assert set(keys(within)) == set(expected[:k])

    def test_under_exclude(self, family):
        self.assert_same(family, lambda rows: rows.exclude(shelf=4), lambda pk: shelf(pk) != 4)
        self.assert_same(
            family,
            lambda rows: rows.exclude(friends__pk__gt=300),
            lambda pk: not (pk % 3 == 1 and 300 <= pk < 500),
        )
        self.assert_same(
            family,
            lambda rows: rows.exclude(children__shelf__in=[2, 5]),
            lambda pk: pk not in (3, 6),
        )

    def test_under_filters_on_related_rows(self, family):
        self.assert_same(
            family,
            lambda rows: rows.filter(parent__shelf=3),
            child_of(4),
        )
        self.assert_same(
            family,
            lambda rows: rows.filter(Q(parent__shelf=3) | Q(shelf=7)),
            lambda pk: shelf(pk) == 7 or child_of(4)(pk),
        )

    def test_in_a_sub_query_of_each_row(self, family):
        model, _ = family
        near = model.objects.similar(QUERIES[0], exact=True).filter(parent=OuterRef("pk"))
        rows = model.objects.filter(pk__lte=30).annotate(near=Subquery(near.values("pk")[:1]))
        for row in rows:
            assert row.near == in_order(family, QUERIES[0], child_of(row.pk))[0]


def test_the_nearest_of_each_rows_own(family):
    model, _ = family
    near, parents = model.objects.similar(QUERIES[0]), model.objects.filter(pk__lte=30)
    for queryset, k in ((near[:3], 3), (near[2:5], 5), (near, 19)):
        for parent in parents.prefetch_related(Prefetch("children", queryset, to_attr="near")):
            expected = in_order(family, QUERIES[0], child_of(parent.pk))[:k]
            assert keys(parent.near) == expected[queryset.query.low_mark :]
            assert parent.near[0].distance >= 0


def test_among_a_rows_own(family):
    model, _ = family
    parent = model.objects.get(pk=5)
    expected = in_order(family, QUERIES[0], child_of(5))
    assert keys(parent.children.similar(QUERIES[0])[:5]) == expected[:5]
    assert keys(parent.children.filter(pk__gt=100).similar(QUERIES[0], exact=True)) == [
        pk for pk in expected if pk > 100
    ]
    friend = model.objects.get(pk=7)
    assert keys(friend.friends.similar(QUERIES[0])[:5]) == [8]
    assert keys(friend.friends.similar(friend)[:5]) == [8]
