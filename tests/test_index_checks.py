"""System checks and refusals of index, storage, distance and dimensions, each with its cure."""

import pytest
from django.core import checks
from django.db import models
from django.test.utils import isolate_apps

from embedsync.checks import indexes as ours
from embedsync.models import HNSW, Chunks, EmbeddedModel, Embedding, IVFFlat

pytestmark = pytest.mark.django_db


def found(made=64, *, settings, **options):
    """What the check says of a model with such a declaration."""
    settings.EMBEDSYNC_EMBEDDERS = {
        "default": {
            "BACKEND": "embedsync.embedders.hashing.HashingEmbedder",
            "DIMENSIONS": made,
        }
    }

    class Story(EmbeddedModel):
        title = models.TextField()
        embedding = Embedding("title", **options)

        class Meta:
            app_label = "library"

    messages = list(ours.wrong_index(Story.embedding.model))
    assert all(isinstance(message, checks.Error) and message.hint for message in messages)
    return messages


@isolate_apps("tests.library")
@pytest.mark.parametrize(
    ("dimensions", "options", "ids"),
    [
        (64, {}, []),
        (64, {"storage": "bit"}, []),
        (64, {"storage": "bit", "distance": "l2"}, ["embedsync.E030"]),
        (64, {"storage": "bit", "distance": "inner_product"}, ["embedsync.E030"]),
        (64, {"storage": "bit", "index": IVFFlat()}, ["embedsync.E030"]),
        (64, {"storage": "bit", "index": None}, ["embedsync.E030"]),
        (64, {"storage": "bit", "chunks": Chunks(size=50)}, ["embedsync.E030"]),
        (2000, {"storage": "vector"}, []),
        (2001, {"storage": "vector"}, ["embedsync.E031"]),
        (2001, {"storage": "vector", "index": IVFFlat()}, ["embedsync.E031"]),
        (2001, {"storage": "vector", "dimensions": 2000}, []),
        (2001, {"storage": "vector", "index": None}, []),
        (4000, {}, []),
        (4001, {}, ["embedsync.E031"]),
        (4001, {"storage": "bit"}, []),
        (64, {"dimensions": 64}, []),
        (64, {"dimensions": 65}, ["embedsync.E032"]),
        (64, {"index": HNSW(m=1)}, ["embedsync.E033"]),
        (64, {"index": HNSW(m=101, ef_construction=1000)}, ["embedsync.E033"]),
        (64, {"index": HNSW(m="16")}, ["embedsync.E033"]),
        (64, {"index": HNSW(m=16, ef_construction=31)}, ["embedsync.E033"]),
        (64, {"index": HNSW(m=16, ef_construction=1001)}, ["embedsync.E033"]),
        (64, {"index": IVFFlat(lists=0)}, ["embedsync.E033"]),
        (64, {"index": IVFFlat(lists=32769)}, ["embedsync.E033"]),
        (64, {"index": IVFFlat(lists=100)}, []),
    ],
)
def test_declarations(settings, dimensions, options, ids):
    assert [one.id for one in found(dimensions, settings=settings, **options)] == ids


@isolate_apps("tests.library")
@pytest.mark.parametrize(
    ("dimensions", "options", "hint"),
    [
        (
            3072,
            {"storage": "vector", "distance": "l2"},
            'Use storage="halfvec" (up to 4000), or dimensions=2000 where the model allows it,'
            " or index=None.",
        ),
        (
            5000,
            {},
            'Use storage="bit" (up to 16000), or dimensions=4000 where the model allows it,'
            " or index=None.",
        ),
        (
            64,
            {"index": HNSW(ef_construction=20)},
            "Set it to a whole number from 32 to 1000, at least twice m.",
        ),
    ],
)
def test_the_cures_are_those_that_help(settings, dimensions, options, hint):
    [message] = found(dimensions, settings=settings, **options)
    assert message.hint == hint


def test_an_unknown_embedder_is_another_check_s_business(settings):
    with isolate_apps("tests.library"):
        assert found(0, settings=settings, dimensions=3) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"index": "hnsw"}, r"index= is HNSW\(\), IVFFlat\(\) or None, not 'hnsw'"),
        ({"index": HNSW}, r"index= is HNSW\(\)"),
        ({"storage": "half"}, "storage= is one of vector, halfvec, bit, not 'half'"),
        ({"distance": "l1"}, "distance= is one of cosine, inner_product, l2, not 'l1'"),
        ({"dimensions": 0}, "dimensions= is a whole number above 0, not 0"),
        ({"dimensions": "8"}, "whole number above 0"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused_at_once(options, said):
    with pytest.raises(TypeError, match=said):
        Embedding("title", **options)


def test_the_fingerprint_is_that_of_vectors():
    """What does not change them has no worker compare all rows."""
    plain = Embedding("title").declaration.fingerprint
    assert Embedding("title", dimensions=8).declaration.fingerprint != plain
    for options in ({"index": None}, {"storage": "bit"}, {"distance": "l2"}):
        assert Embedding("title", **options).declaration.fingerprint == plain
