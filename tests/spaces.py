"""What the tests of indexes share: throw-away models with tables, of every kind of index."""

import itertools
from contextlib import contextmanager

import numpy as np
from django.apps import apps
from django.db import connection, models

from embedsync import indexing
from embedsync.database import binary_cursor
from embedsync.declaration import declaration_of, key_of
from embedsync.index import deferred_index
from embedsync.models import EmbeddedModel, Embedding, SidecarState
from embedsync.space import column_type, stored
from tests.books import execute
from tests.library import models as books

DIMENSIONS = 64
_numbers = itertools.count(1)

# As pgvector has them; what is stored is not of length 1 in these tests.
DISTANCES = {
    "cosine": lambda rows, query: (
        1 - rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    ),
    "inner_product": lambda rows, query: -(rows @ query),
    "l2": lambda rows, query: np.linalg.norm(rows - query, axis=1),
}


@contextmanager
def thing(fields=None, **options):
    """A model with such a declaration, and its tables; known to Django for as long."""
    name = f"Thing{next(_numbers)}"
    attrs = {
        "__module__": "tests.library.models",
        "name": models.TextField(),
        "shelf": models.IntegerField(default=0),
        **(fields or {}),
        "embedding": Embedding("name", **{"embedder": "hashing", **options}),
        "Meta": type("Meta", (), {"app_label": "library"}),
    }
    model = type(name, (EmbeddedModel,), attrs)
    sidecar = model.embedding.model
    setattr(books, name, model)  # where it says it stands, so that it can be pickled
    try:
        with connection.schema_editor() as editor:
            for made in (model, sidecar):
                editor.create_model(made)
        yield model
    finally:
        with connection.schema_editor() as editor:
            editor.remove_constraint(sidecar, sidecar._meta.constraints[-1])
            for made in (sidecar, model):
                editor.delete_model(made)
        SidecarState.objects.filter(key=key_of(sidecar)).delete()
        delattr(books, name)
        between = [field.remote_field.through for field in model._meta.local_many_to_many]
        for made in (model, sidecar, *between):
            del apps.all_models["library"][made._meta.model_name]
        apps.clear_cache()


def clusters(number, random, dimensions=DIMENSIONS):
    """Vectors ``(number, dimensions)`` in 30 clusters, of lengths from 0.5 to 2."""
    centres = random.normal(size=(30, dimensions))
    rows = centres[np.arange(number) % 30] + 0.4 * random.normal(size=(number, dimensions))
    lengths = random.uniform(0.5, 2, size=(number, 1))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * lengths


def fill(model, vectors, *, build=True):
    """A row for each vector, on shelf n % 30; what is stored of them, ``(n, dimensions)``."""
    sidecar = model.embedding.model
    how = declaration_of(sidecar)
    execute("SET embedsync.capture = 'off'")
    rows = [model(id=n + 1, name=str(n), shelf=n % 30) for n in range(len(vectors))]
    model.objects.bulk_create(rows)
    execute("RESET embedsync.capture")
    kept = [stored(vector.tolist(), how.storage, how.dimensions) for vector in vectors]
    table = connection.ops.quote_name(sidecar._meta.db_table)
    with binary_cursor("default") as cursor:
        cursor.execute(
            f"INSERT INTO {table} (source_id, ordinal, digest, vector) SELECT n, 0, '', v"
            f" FROM unnest(%(n)s::int[], %(v)b::{column_type(how.storage)}[]) AS u(n, v)",
            {"n": [row.pk for row in rows], "v": kept},
        )
    if build and deferred_index(sidecar) is not None:
        indexing.build(sidecar, "default")
    execute("SELECT pg_stat_force_next_flush()")  # or ANALYZE would have rows counted twice
    execute(f"ANALYZE {table}, {connection.ops.quote_name(model._meta.db_table)}")
    return np.array([vector.to_list() for vector in kept], dtype=np.float64)


@contextmanager
def as_if_large():
    """With as few rows as tests have a planner may rather sort."""
    execute("SET enable_sort = off; SET enable_seqscan = off")
    try:
        yield
    finally:
        execute("RESET enable_sort; RESET enable_seqscan")


def nearest(model, rows, query, k):
    """The keys of the k nearest rows and their distances, by search in Python."""
    how = declaration_of(model.embedding.model)
    if how.distance == "cosine":
        query = query / np.linalg.norm(query)
    # What is searched for is rounded as what is stored.
    query = np.array(stored(query.tolist(), how.storage, how.dimensions).to_list())
    distances = DISTANCES[how.distance](rows, query)
    order = np.argsort(distances, kind="stable")[:k]
    return [int(n) + 1 for n in order], distances[order]


def recall(model, rows, queries, k=10):
    """The share of the true k nearest that a search finds."""
    found = [
        len(
            {row.pk for row in model.objects.similar(query)[:k]}
            & {*nearest(model, rows, query, k)[0]}
        )
        for query in queries
    ]
    return sum(found) / k / len(queries)
