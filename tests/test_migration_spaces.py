"""Changes of index, storage, distance and dimensions: stock migrations, without a question."""

import json
import re

import numpy as np
import pytest

from embedsync.embedders.hashing import HashingEmbedder
from tests.migration_project import DIMENSIONS
from tests.shop import insert, movie

TABLE = "shop_movieembedding"
TITLES = [
    f"{first} {second} in the big city"
    for first in ("Alien", "Brazil", "Dune")
    for second in "abcdefgh"
]


def declared(options=""):
    """The project's models with such a declaration."""
    imports = "from embedsync.models import HNSW, IVFFlat"
    return imports + movie(f'embedding = Embedding("title"{options})')


SEARCH = """
from django.db import connection
from shop.models import Movie
connection.ensure_connection()
import json, embedsync
found = embedsync.similar(Movie.objects.all(), "Brazil c in the big city")[:5]
print("FOUND", json.dumps([row.distance for row in found]))
with connection.cursor() as cursor:
    cursor.execute("SET enable_seqscan = off; SET enable_sort = off")
print("PLAN", found.explain().replace(chr(10), " "))
"""


def search(code):
    """The distances of what is found, and the plan."""
    lines = dict(
        line.split(" ", 1)
        for line in code.run("shell", "-v", "0", "-c", SEARCH).splitlines()
        if line
    )
    return json.loads(lines["FOUND"]), lines["PLAN"]


def column(project):
    ((found,),) = project.sql(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        f" WHERE attrelid = '{TABLE}'::regclass AND attname = 'vector'"
    )
    return found


def indexes(project):
    """Definitions of the indexes of vectors, from USING on."""
    rows = project.sql(
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class ON oid = indexrelid"
        f" WHERE indrelid = '{TABLE}'::regclass AND NOT indisprimary"
        " AND relname !~ '_cut$' ORDER BY relname"
    )
    return [definition.partition("USING ")[2] for (definition,) in rows]


def full_vectors(dimensions):
    """What vectors have to be, by title, to half a thousandth."""
    full = np.array(HashingEmbedder(model="", dimensions=DIMENSIONS).embed_documents(TITLES))
    cut = full[:, :dimensions]
    return dict(zip(TITLES, cut / np.linalg.norm(cut, axis=1, keepdims=True), strict=True))


def assert_embedded(project, dimensions=DIMENSIONS):
    """All rows have the vectors of their texts."""
    rows = project.sql(f"SELECT title, vector::text FROM {TABLE} JOIN shop_movie ON id = source_id")
    wanted = full_vectors(dimensions)
    assert len(rows) == len(wanted)
    for title, vector in rows:
        assert json.loads(vector) == pytest.approx(wanted[title].tolist(), abs=1e-3)


HALF = (
    "halfvec(8)",
    "hnsw (vector halfvec_cosine_ops) WITH (m='16', ef_construction='128')",
    "<=>",
)
# The declaration's options; the column, the index, and the operator of a search.
SPACES = {
    "default": ("", *HALF),
    "parameters": (
        ", index=HNSW(m=8, ef_construction=32)",
        "halfvec(8)",
        "hnsw (vector halfvec_cosine_ops) WITH (m='8', ef_construction='32')",
        "<=>",
    ),
    "ivfflat": (
        ", index=IVFFlat(lists=2)",
        "halfvec(8)",
        "ivfflat (vector halfvec_cosine_ops) WITH (lists='2')",
        "<=>",
    ),
    "ivfflat, lists by rows": (
        ", index=IVFFlat()",
        "halfvec(8)",
        "ivfflat (vector halfvec_cosine_ops) WITH (lists='4')",
        "<=>",
    ),
    "none": (", index=None", "halfvec(8)", None, "<=>"),
    "vector": (
        ', storage="vector"',
        "vector(8)",
        "hnsw (vector vector_cosine_ops) WITH (m='16', ef_construction='128')",
        "<=>",
    ),
    "bit": (
        ', storage="bit"',
        "halfvec(8)",
        "hnsw (((binary_quantize(vector))::bit(8)) bit_hamming_ops)"
        " WITH (m='16', ef_construction='128')",
        "<~>",
    ),
    "l2": (
        ', distance="l2"',
        "halfvec(8)",
        "hnsw (vector halfvec_l2_ops) WITH (m='16', ef_construction='128')",
        "<->",
    ),
    "inner product of vectors": (
        ', distance="inner_product", storage="vector"',
        "vector(8)",
        "hnsw (vector vector_ip_ops) WITH (m='16', ef_construction='128')",
        "<#>",
    ),
}


def assert_space(project, code, name, before=None):
    """Exact at first, then through the index: what is found is the same."""
    _, type_name, index, operator = SPACES[name]
    assert column(project) == type_name
    unbuilt = [re.split(" WITH| WHERE", definition)[0] for definition in indexes(project)]
    assert unbuilt == ([] if index is None else [index.partition(" WITH")[0]] * len(unbuilt))
    distances, plan = search(code)
    assert distances[0] == pytest.approx(-1 if operator == "<#>" else 0, abs=2e-2)
    if before is not None:
        # Not yet built: nothing of the old one is left that could serve.
        assert all(definition.endswith("WHERE false") for definition in indexes(project))
        assert "Index Scan using shop_movieembedding_hnsw" not in plan
        assert "Index Scan using shop_movieembedding_ivf" not in plan
    code.drain()
    assert_embedded(project)
    assert indexes(project) == ([] if index is None else [index])
    served, plan = search(code)
    assert served == pytest.approx(distances, abs=2e-3)
    if index is not None:
        assert f"Index Scan using {TABLE}_" in plan
        assert f"{operator} " in plan


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("default", "parameters"),
        ("default", "ivfflat"),
        ("ivfflat", "ivfflat, lists by rows"),
        ("default", "none"),
        ("default", "vector"),
        ("default", "bit"),
        ("bit", "vector"),
        ("default", "l2"),
        ("l2", "inner product of vectors"),
        ("vector", "ivfflat"),
    ],
)
def test_a_changed_space(project, one, other):
    old, new = (project.code(declared(SPACES[name][0])) for name in (one, other))
    old.upgrade()
    insert(project, *TITLES)
    old.drain()
    assert_space(project, old, one)
    stamps = project.embedded_at(TABLE)
    new.upgrade()
    assert_space(project, new, other, before=one)
    new.run("migrate", "shop", "0001")
    assert_space(project, old, one, before=other)
    new.run("migrate")
    new.is_clean()
    assert_space(project, new, other, before=one)
    # No vector was made again.
    assert project.embedded_at(TABLE) == stamps


def test_what_a_worker_left_unfinished_does_not_serve_the_next_declaration(project):
    old = project.code(declared())
    old.upgrade()
    insert(project, *TITLES)
    old.drain()
    project.sql(f"CREATE INDEX {TABLE}_hnsw_full ON {TABLE} USING hnsw (vector halfvec_cosine_ops)")
    new = project.code(declared(', distance="l2"'))
    new.upgrade()
    assert len(indexes(project)) == 1
    # Nor does one that appears later.
    project.sql(f"CREATE INDEX {TABLE}_hnsw_full ON {TABLE} USING hnsw (vector halfvec_cosine_ops)")
    new.drain()
    assert indexes(project) == [SPACES["l2"][2]]


RESIZES = [("", ", dimensions=4"), (", dimensions=5", ", dimensions=3")]


@pytest.mark.parametrize("storage", ["halfvec", "vector", "bit"])
@pytest.mark.parametrize(("one", "other"), RESIZES)
def test_other_dimensions_of_the_same_embedder(project, storage, one, other):
    """Vectors are cut, or filled up, by the migration: searches go on, and workers embed anew."""
    sizes = {"": 8, ", dimensions=3": 3, ", dimensions=4": 4, ", dimensions=5": 5}
    old, new = (
        project.code(declared(f'{options}, storage="{storage}"')) for options in (one, other)
    )
    old.upgrade()
    insert(project, *TITLES)
    old.drain()
    assert_embedded(project, sizes[one])
    output = new.run("makemigrations")
    assert "Alter field vector" in output
    for there in range(2):
        stamps = project.embedded_at(TABLE)
        new.run("migrate")
        new.is_clean()
        type_name = "vector" if storage == "vector" else "halfvec"
        assert column(project) == f"{type_name}({sizes[other]})"
        # At once, by the migration alone.
        assert_embedded(project, sizes[other])
        assert all(definition.endswith("WHERE false") for definition in indexes(project))
        assert search(new)[0][0] == pytest.approx(0, abs=2e-3)
        new.drain()
        assert_embedded(project, sizes[other])
        assert not stamps.items() & project.embedded_at(TABLE).items()
        assert "WHERE" not in indexes(project)[0]
        if not there:
            new.run("migrate", "shop", "0001")
            assert column(project) == f"{type_name}({sizes[one]})"
            assert len(search(old)[0]) == 5
            # Filled up with zeros, which no worker takes for the text's own vector.
            old.drain()
            assert_embedded(project, sizes[one])


def test_to_and_fro_without_a_worker_leaves_no_vector_that_was_cut(project):
    old, new = project.code(declared()), project.code(declared(", dimensions=4"))
    old.upgrade()
    insert(project, *TITLES)
    old.drain()
    new.upgrade()
    new.run("migrate", "shop", "0001")
    old.drain()
    assert_embedded(project)
