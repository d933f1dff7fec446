"""What each kind of index finds, costs and weighs: ``.similar(vector)[:10]`` over the same vectors.

Two sets: films' real vectors, where the cache of ``bench/films.py`` has them, and a mixture of
clusters that is the same everywhere. Recall is against exact search in numpy over what was given.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import Figure, arguments, database, one_value, progress, report, run_sql
from django.db import connection, models
from films import VectorCache, films, plots, queries, texts

from embedsync import indexing
from embedsync.database import binary_cursor
from embedsync.declaration import declaration_of
from embedsync.embedders import embed_query
from embedsync.index import deferred_index
from embedsync.models import EmbeddedModel, Embedding, IVFFlat
from embedsync.space import column_type, stored

DIMENSIONS = 384  # the example project's
K = 10
SYNTHETIC = 20_000
CLUSTERS = 200
NOISE = 0.5  # the length of what is added to a vector of length 1
MARK_RECALL = 0.95
MARK_SIZE = 0.2  # of the index of full vectors
KINDS: dict[str, dict[str, Any]] = {
    "halfvec": {},
    "vector": {"storage": "vector"},
    "bit": {"storage": "bit"},
    "ivfflat": {"index": IVFFlat()},
    "none": {"index": None},
}


@dataclass(frozen=True)
class Measured:
    """One kind of index: recall by query, milliseconds by query, bytes, and seconds to build it."""

    recall: dict[str, list[float]]
    clock: list[float]
    size: int
    built: float


def unit(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")
    return result


def near(rows: np.ndarray, number: int) -> np.ndarray:
    """Some of the vectors with noise added."""
    random = np.random.default_rng(2)
    chosen = rows[random.choice(len(rows), size=number, replace=False)]
    return unit(chosen + unit(random.standard_normal(chosen.shape)) * NOISE)


def synthetic(number: int) -> np.ndarray:
    random = np.random.default_rng(1)
    centres = random.standard_normal((CLUSTERS, DIMENSIONS))
    # As real ones, of fewer dimensions than they have components.
    flat = random.standard_normal((48, DIMENSIONS))
    own = random.standard_normal((number, 48)) @ flat / 7
    return unit(centres[random.integers(CLUSTERS, size=number)] * 0.6 + own)


@contextmanager
def declared(name: str, **options: Any) -> Iterator[Any]:
    """A model with such a declaration, and its tables, as long as it is needed."""
    attrs = {
        "__module__": "example_project.films.models",
        "name": models.TextField(),
        "embedding": Embedding("name", **options),
        "Meta": type("Meta", (), {"app_label": "films"}),
    }
    model: Any = type(name, (EmbeddedModel,), attrs)
    sidecar = model.embedding.model
    with connection.schema_editor() as editor:
        for made in (model, sidecar):
            editor.create_model(made)
    yield model
    with connection.schema_editor() as editor:
        for made in (sidecar, model):
            editor.delete_model(made)


def load(model: Any, rows: np.ndarray) -> float:
    """Rows and vectors straight into their tables, then the index. Seconds for the index."""
    sidecar = model.embedding.model
    how = declaration_of(sidecar)
    run_sql("SET embedsync.capture = off")
    model.objects.bulk_create([model(pk=n, name=str(n)) for n in range(len(rows))], 5000)
    run_sql("RESET embedsync.capture")
    with (
        binary_cursor("default") as cursor,
        cursor.copy(
            f"COPY {sidecar._meta.db_table} (source_id, ordinal, digest, vector)"
            " FROM STDIN (FORMAT BINARY)"
        ) as copy,
    ):
        copy.set_types(["int8", "int4", "bytea", column_type(how.storage)])
        for number, row in enumerate(rows):
            copy.write_row((number, 0, b"\0" * 16, stored(row, how.storage, how.dimensions)))
    started = time.perf_counter()
    if deferred_index(sidecar) is not None:
        indexing.build(sidecar, "default")
    taken = time.perf_counter() - started
    run_sql(f"VACUUM ANALYZE {sidecar._meta.db_table}, {model._meta.db_table}", "CHECKPOINT")
    return taken


def measure(name: str, options: dict[str, Any], rows: np.ndarray, asked: Any) -> Measured:
    """Load one kind, and search it for all queries; ``asked`` are (queries, truth) by kind."""
    with declared(name, **options) as model:
        built = load(model, rows)
        index = deferred_index(model.embedding.model)
        size = 0 if index is None else one_value(f"SELECT pg_relation_size('{index.name}')")
        recall: dict[str, list[float]] = {}
        clock: list[float] = []
        for kind, (vectors, truth) in asked.items():
            recall[kind] = []
            for turn, (vector, best) in enumerate(zip(vectors, truth, strict=True)):
                found: list[int] = []
                spent = milliseconds(lambda v=vector, f=found: f.extend(search(model, v)))
                recall[kind].append(len({*found} & {*best}) / K)
                if turn >= 10:  # the first ones warm up
                    clock.append(spent)
        progress(f"{name}: {size / 1e6:.1f} MB in {built:.1f} s")
    return Measured(recall, clock, int(size), built)


def search(model: Any, vector: np.ndarray) -> list[int]:
    return [row.pk for row in model.objects.similar(vector)[:K]]


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


def truth(rows: np.ndarray, vectors: np.ndarray) -> list[list[int]]:
    """The keys of the K nearest of each query, by exact search."""
    result: list[list[int]] = np.argsort(-(vectors @ rows.T), axis=1)[:, :K].tolist()
    return result


def sets(limit: int, number: int) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """The vectors of each set and the queries of each kind for them."""
    rows = synthetic(SYNTHETIC)
    yield "synthetic", rows, {"near": near(rows, number)}
    cache, wanted = VectorCache(), texts(films())[:limit]
    if cache.missing(wanted):
        progress("no real vectors: fill the cache with bench/films.py")
        return
    rows = unit(cache.get(wanted))
    asked = {"near": near(rows, number)}
    for kind, written in {"queries": queries(), "plots": plots()[:number]}.items():
        if written:
            asked[kind] = unit(np.array([embed_query(text) for text in written]))
    yield "films", rows, asked


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=40_000, help="films at most")
    parser.add_argument("--queries", type=int, default=100, help="of each kind, at most")
    options = parser.parse_args()
    figures: list[Figure] = []
    notes: list[str] = []
    with database("indexes"):
        run_sql("SET maintenance_work_mem = '1GB'")
        for name, rows, asked in sets(options.rows, options.queries):
            notes.append(f"{name}: {len(rows)} vectors of {DIMENSIONS} dimensions")
            known = {kind: (vectors, truth(rows, vectors)) for kind, vectors in asked.items()}
            found = {
                kind: measure(f"{name}_{kind}".title().replace("_", ""), how, rows, known)
                for kind, how in KINDS.items()
            }
            for kind, one in found.items():
                figures += figures_of(f"{name}_{kind}", one, is_bit=kind == "bit")
                shares = ", ".join(
                    f"{what} {statistics.mean(share):.3f}" for what, share in one.recall.items()
                )
                notes.append(f"{name}, {kind}: recall {shares}")
            share = found["bit"].size / found["vector"].size
            figures.append(Figure(f"{name}_bit_size", [share], at_most=MARK_SIZE))
    report(figures, notes, as_json=options.json)


def figures_of(name: str, one: Measured, *, is_bit: bool) -> list[Figure]:
    shares = [share for of_kind in one.recall.values() for share in of_kind]
    mark = MARK_RECALL if is_bit else None
    return [
        Figure(f"{name}_recall", shares, at_least=mark, digits=3, mean=True),
        Figure(f"{name}_ms", one.clock, unit="ms", digits=1),
        Figure(f"{name}_mb", [one.size / 1e6], unit="MB", digits=1),
        Figure(f"{name}_build_s", [one.built], unit="s", digits=1),
    ]


if __name__ == "__main__":
    main()
