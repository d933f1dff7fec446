"""Storage, distance and index of every kind: what is found, by what, and how it is compared."""

import math
import pickle

import numpy as np
import pytest
from django.core.paginator import Paginator
from django.db import connection, models

from embedsync import compiler, rescoring, scan
from embedsync.embedders import MismatchError, get_embedder
from embedsync.index import deferred_index
from embedsync.models import HNSW, IVFFlat, SidecarState
from embedsync.status import statuses
from tests.spaces import as_if_large, clusters, fill, nearest, recall, thing

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = {
    "halfvec": {},
    "vector": {"storage": "vector"},
    "bit": {"storage": "bit"},
    "ivfflat": {"index": IVFFlat()},
    "ivfflat of vectors": {"index": IVFFlat(lists=20), "storage": "vector"},
    "none": {"index": None},
}
SCANS = {
    "halfvec": r"_hnsw on",
    "vector": r"_hnsw on",
    "bit": r"_hnsw on",
    "ivfflat": r"_ivf on",
    "ivfflat of vectors": r"_ivf on",
    "none": None,
}
random = np.random.default_rng(5)
VECTORS = clusters(2000, random)
QUERIES = VECTORS[::100] + 0.1 * random.normal(size=(20, 64))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def filled(kind, transactional_db):
    with thing(**KINDS[kind]) as model, as_if_large():
        yield model, fill(model, VECTORS)


def test_each_index_serves_and_finds(filled, kind):
    model, rows = filled
    plan = model.objects.similar(QUERIES[0])[:10].explain()
    assert SCANS[kind] in plan if SCANS[kind] else "embedding_" not in plan.replace("_pkey", "")
    found = recall(model, rows, QUERIES)
    assert found == 1 if kind == "none" else found >= 0.95
    exact = model.objects.similar(QUERIES[0], exact=True)[:10]
    assert "_hnsw" not in exact.explain()
    assert "_ivf" not in exact.explain()
    assert [row.pk for row in exact] == nearest(model, rows, QUERIES[0], 10)[0]


def test_its_status_says_whether_it_is_the_one_declared(filled, kind, monkeypatch):
    """One of another distance is there, serves no search, and nothing else tells of it."""
    sidecar = filled[0].embedding.model
    (status,) = statuses("default", [sidecar])
    assert (status.index.state, status.schema_error) == ("none" if kind == "none" else "built", "")
    if kind == "none":
        return
    # Declared, and not migrated.
    monkeypatch.setattr(deferred_index(sidecar), "opclasses", ["halfvec_l1_ops"])
    (status,) = statuses("default", [sidecar])
    assert status.index.state == "outdated"
    assert not status.is_well
    assert "of another distance or storage than is declared" in status.schema_error


def test_k_rows_under_filters_and_in_order(filled, monkeypatch):
    model, _ = filled
    # Or else they would all be compared, as few as they are.
    monkeypatch.setattr(compiler, "FEW_ROWS", 0)
    for query in QUERIES[:4]:
        for shelves in (15, 3, 1):
            found = list(model.objects.filter(shelf__lt=shelves).similar(query)[:60])
            assert len(found) == 60
            assert all(row.shelf < shelves for row in found)
            distances = [row.distance for row in found]
            # The index has normalised vectors, which halves round otherwise than those in the row.
            assert distances == pytest.approx(sorted(distances), abs=1e-4)
    assert len(model.objects.similar(QUERIES[0])[:2000]) == 2000


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
@pytest.mark.parametrize("index", [HNSW(), IVFFlat(), None])
@pytest.mark.parametrize("distance", ["cosine", "inner_product", "l2"])
def test_distances_are_those_of_numpy(distance, index, storage):
    with thing(distance=distance, index=index, storage=storage) as model, as_if_large():
        rows = fill(model, VECTORS)
        query = 1.7 * QUERIES[3]
        if index is not None:
            assert "Index Scan using" in model.objects.similar(query)[:10].explain()
        found = list(model.objects.similar(query)[:10])
        keys, distances = nearest(model, rows, query, 10)
        assert len({row.pk for row in found} & {*keys}) >= 9
        told = [row.distance for row in found if row.pk in keys]
        mine = [distances[keys.index(row.pk)] for row in found if row.pk in keys]
        assert told == pytest.approx(mine, rel=2e-3, abs=2e-3)
        exactly = model.objects.similar(query, exact=True)[:10]
        assert [row.distance for row in exactly] == pytest.approx(
            distances.tolist(), rel=2e-3, abs=2e-3
        )


def test_full_vectors_are_kept_in_full():
    with thing(storage="vector", index=None) as model:
        fill(model, VECTORS[:3])
        (kept,) = model.embedding.model.objects.filter(source_id=1).values_list("vector", flat=True)
        assert kept == pytest.approx(VECTORS[0].tolist(), rel=1e-6)


class TestBits:
    @pytest.fixture
    def bits(self, transactional_db):
        with thing(storage="bit") as model, as_if_large():
            self.rows = fill(model, VECTORS)
            yield model

    def test_one_query_with_an_index_of_bits(self, bits, django_assert_num_queries):
        found = bits.objects.similar(QUERIES[0])[:10]
        with django_assert_num_queries(1):
            assert len(found) == 10
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_get_indexdef(%s::regclass)", [bits.embedding.model._meta.indexes[0].name]
            )
            (definition,) = cursor.fetchone()
        assert "((binary_quantize(vector))::bit(64)) bit_hamming_ops" in definition
        assert str(bits.objects.filter(shelf=1).similar("a b")[:9].query).count("JOIN") == 1

    def test_candidates_are_rescored(self, bits, monkeypatch):
        """With as many candidates as rows there is nothing to rescore: bits alone find less."""
        assert recall(bits, self.rows, QUERIES) >= 0.95
        monkeypatch.setattr(rescoring, "candidates", lambda end: end)
        assert recall(bits, self.rows, QUERIES) < 0.9

    def test_filters_are_among_what_chooses_candidates(self, bits, monkeypatch):
        """Chosen before them, too few would be left; nor is the search made again exactly."""
        monkeypatch.setattr(compiler.SimilarCompiler, "few_match", lambda _: False)
        monkeypatch.setattr(compiler.SimilarQuery, "exactly", None)
        hits = 0
        for query in QUERIES:
            found = list(bits.objects.filter(shelf__in=[3, 7]).similar(query)[:10])
            assert len(found) == 10
            keys, _ = nearest(bits, self.rows, query, 2000)
            best = [key for key in keys if (key - 1) % 30 in (3, 7)][:10]
            hits += len({row.pk for row in found} & {*best})
        assert hits / 10 / len(QUERIES) >= 0.95

    def test_a_bound_is_outside_of_what_chooses_candidates(self, bits, monkeypatch):
        """Or the index would be walked through for more candidates that are within."""
        nearest = list(bits.objects.similar(QUERIES[1])[:6])
        bound = (nearest[2].distance + nearest[3].distance) / 2
        found = bits.objects.similar(QUERIES[1]).filter(distance__lt=bound)
        assert list(found[3:6]) == []
        monkeypatch.setattr(compiler.SimilarQuery, "exactly", None)
        assert [row.pk for row in found[:6]] == [row.pk for row in nearest[:3]]
        inner, outer = str(found[:6].query).split("AS embedsync_candidates")
        assert str(bound) not in inner
        assert "embedsync_distance < " in outer

    def test_a_text_of_another_embedder_is_refused(self, bits):
        assert len(bits.objects.similar("a deep blue sea")[:3]) == 3
        SidecarState.objects.update_or_create(
            key=bits.embedding.model._meta.label_lower, defaults={"embedder": "another"}
        )
        with pytest.raises(MismatchError, match="were made by another"):
            list(bits.objects.similar("a deep blue sea")[:3])

    def test_the_rest_of_the_orm(self, bits):
        found = bits.objects.similar(QUERIES[1])
        first = [row.pk for row in found[:5]]
        assert list(found.values_list("pk", flat=True)[:5]) == first
        assert [row["name"] for row in found.values("name")[:5]] == [str(pk - 1) for pk in first]
        assert list(found.values_list("distance", flat=True)[:1]) == [found[0].distance]
        assert [row.pk for row in found[2:5]] == first[2:]
        assert set(bits.objects.filter(pk__in=found.values("pk")[:5])) == set(found[:5])
        assert found.count() == 2000
        assert found[:7].count() == 7
        assert found[:5].exists()
        assert found.first().pk == first[0]
        assert [row.pk for row in found.only("name")[:5]] == first
        assert [row.pk for row in found.iterator()][:5] == first
        assert len(found[:5].union(bits.objects.none())) == 5
        assert len(found.distinct()[:5]) == 5
        assert found.reverse()[0].pk == list(found.all())[-1].pk
        assert found.aggregate(models.Min("distance"))["distance__min"] == found[0].distance
        assert found.filter(distance__lt=found[4].distance)[:10].count() == 4
        assert len(found[:0]) == 0
        assert len(Paginator(found, 10).page(3)) == 10
        assert found.none().count() == 0
        copied = bits.objects.all()
        copied.query = pickle.loads(pickle.dumps(found[:5].query))
        assert [row.pk for row in copied] == first
        near = [pk for pk in nearest(bits, self.rows, self.rows[2], 2000)[0] if pk != 3]
        assert [row.pk for row in bits.objects.get(pk=3).similar(exact=True)[:3]] == near[:3]
        assert 3 not in {row.pk for row in bits.objects.get(pk=3).similar().exclude(shelf=1)[:60]}
        assert bits.objects.similar(QUERIES[1], min_similarity=0.5)[:3][0].pk == first[0]


def setting(name):
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s, true)", [name])
        return cursor.fetchone()[0]


class TestScans:
    @pytest.mark.parametrize(
        ("end", "expected"), [(10, "300"), (100, "300"), (300, "600"), (5000, "1000")]
    )
    def test_ef_search_follows_the_slice(self, end, expected):
        assert str(scan.ef_search(end)) == expected
        with thing() as model, as_if_large():
            fill(model, VECTORS)
            with connection.cursor() as cursor:
                cursor.execute("BEGIN")
                list(model.objects.similar(QUERIES[0])[end - 1 : end])
                assert setting("hnsw.ef_search") == expected
                cursor.execute("ROLLBACK")

    def test_a_larger_setting_stays(self, settings):
        settings.EMBEDSYNC_EF_SEARCH = 500
        assert scan.ef_search(10) == scan.ef_search(None) == 500
        assert scan.ef_search(400) == 800

    def test_probes_follow_the_lists_as_they_were_built(self):
        with thing(index=IVFFlat()) as model, as_if_large():
            fill(model, VECTORS)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT reloptions FROM pg_class WHERE relname = %s",
                    [model.embedding.model._meta.indexes[0].name],
                )
                assert cursor.fetchone()[0] == [f"lists={math.isqrt(2000)}"]
                for end, share in ((10, scan.PROBED), (200, 2 * scan.PROBED)):
                    cursor.execute("BEGIN")
                    list(model.objects.similar(QUERIES[0])[:end])
                    assert setting("ivfflat.probes") == str(math.ceil(44 * share))
                    cursor.execute("ROLLBACK")

    def test_probes_count_in_the_very_query_that_sets_them(self, monkeypatch):
        with thing(index=IVFFlat(lists=40)) as model, as_if_large():
            rows = fill(model, VECTORS)
            between_clusters = np.random.default_rng(3).normal(size=(20, 64))
            for share, least, most in ((0.001, 0, 0.9), (1.0, 1, 1)):
                monkeypatch.setattr(scan, "PROBED", share)
                assert least <= recall(model, rows, between_clusters) <= most


class TestDimensions:
    def test_documents_and_queries_are_cut_and_brought_to_length_one(self, drain):
        with thing(dimensions=40) as model:
            sidecar = model.embedding.model
            model.objects.create(name="an apple a day keeps the doctor away")
            model.objects.create(name="the deep blue sea and the devil")
            drain()
            embedder = get_embedder("hashing")
            for row in model.objects.all():
                full = np.array(embedder.embed_documents([row.name])[0])[:40]
                kept = sidecar.objects.get(source_id=row.pk).vector
                assert kept == pytest.approx((full / np.linalg.norm(full)).tolist(), abs=1e-3)
            text = "a doctor in the deep blue sea"
            query = np.array(embedder.embed_query(text))
            cut = query[:40] / np.linalg.norm(query[:40])
            rows = np.array([row.vector for row in sidecar.objects.order_by("source_id")])
            expected = 1 - rows @ cut / np.linalg.norm(rows, axis=1)
            for asked in (text, query, cut):
                found = {row.pk: row.distance for row in model.objects.similar(asked)}
                assert [found[pk] for pk in sorted(found)] == pytest.approx(
                    expected.tolist(), abs=1e-3
                )
            with pytest.raises(ValueError, match=r"20 dimensions; those of .* have 40 or 64"):
                model.objects.similar([1.0] * 20)

    def test_a_text_without_anything_in_the_first_components_is_parked(self, drain, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        with thing(dimensions=1) as model:
            model.objects.create(name="apple")
            model.objects.create(name="sea")
            drain()
            with connection.cursor() as cursor:
                cursor.execute("SELECT last_error FROM embedsync_ledger WHERE run_at IS NULL")
                errors = [error for (error,) in cursor.fetchall()]
            assert errors
            assert all("first 1 of 64 components are (nearly) zero" in error for error in errors)


class TestSimilarity:
    def test_an_inner_product(self):
        with thing(distance="inner_product", index=None) as model:
            rows = fill(model, VECTORS)
            products = rows @ QUERIES[0]
            least = float(np.sort(products)[-20])
            found = model.objects.similar(QUERIES[0], min_similarity=least - 1e-3)
            assert found.count() == 20
            assert all(row.distance <= 1e-3 - least for row in found)
            with pytest.raises(ValueError, match="an inner product, not inf"):
                model.objects.similar(QUERIES[0], min_similarity=math.inf)

    def test_none_for_l2(self):
        with thing(distance="l2", index=None) as model:
            fill(model, VECTORS[:50])
            with pytest.raises(ValueError, match=r"filter\(distance__lte=...\)"):
                model.objects.similar(QUERIES[0], min_similarity=0.5)
            assert model.objects.similar([0.0] * 64).count() == 50
            with pytest.raises(ValueError, match="longer than 65504"):
                model.objects.similar([1e5] * 64)


def test_the_workers_write_full_vectors(drain):
    with thing(storage="vector", index=None) as model:
        model.objects.create(name="an apple a day for all")
        drain()
        vector = get_embedder("hashing").embed_documents(["an apple a day for all"])[0]
        (kept,) = model.embedding.model.objects.values_list("vector", flat=True)
        assert kept == pytest.approx(vector, rel=1e-6)
