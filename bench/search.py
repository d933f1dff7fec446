"""What a search costs and finds: ``.similar(vector)[:10]`` over films with a full HNSW index.

Time: against the same SQL through psycopg alone, and against plain SQL with the settings made once
in the session. Recall: against the exact search, for vectors near films' own and for real queries.

Vectors are real ones from the cache (``bench/films.py`` fills it). Without a full cache the rest
are mixtures of two real ones, and the output says so. At the end clustered vectors, half a million
of them as well, with and without filters (``bench/filters.py``).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import psycopg
from common import Figure, arguments, database, progress, report, run_sql
from django.db import connection
from django.test.utils import override_settings
from films import VectorCache, films, plots, queries, repeated, texts
from pgvector import HalfVector
from timing import TimedCursors, copy_of_connection

from embedsync import indexing
from embedsync.conf import settings as knobs
from embedsync.database import binary_cursor
from embedsync.embedders import embed_query
from embedsync.scan import SCAN_SETTINGS
from example_project.films.models import Movie

SIDECAR = Movie.embedding.model
ROWS = 34_249
FEWEST_REAL = 2_000
K = 10
Queries = dict[str, list[list[float]]]  # by kind
NOISE = 0.5  # the length of what is added to a vector of length 1
OTHER_EF = (40, 80, 200, 400)
# The search as one would write it without embedsync.
PLAIN = f"""
    SELECT m.*, e.vector <=> %s::halfvec AS distance
    FROM {Movie._meta.db_table} m JOIN {SIDECAR._meta.db_table} e ON e.source_id = m.id
    WHERE m.published ORDER BY distance LIMIT {K}
"""
MARK_P50 = 1.15
MARK_RECALL = 0.98


def vectors(rows: int | None) -> tuple[list[Movie], np.ndarray, str]:
    """Films, their vectors ``(n, 384)``, and in words where these come from."""
    real, cache = films(), VectorCache()
    wanted = texts(real)
    cached = len(wanted) - len(cache.missing(wanted))
    if rows is None and cached < len(wanted):
        known = [text for text in wanted if not cache.missing([text])]
        basis = cache.get(known if len(known) >= FEWEST_REAL else wanted[:FEWEST_REAL])
        more = mixtures(basis, ROWS - len(basis))
        said = (
            f"{len(basis)} real vectors and {len(more)} mixtures of two of them: fill the cache"
            " with bench/films.py for real ones alone"
        )
        return repeated(ROWS), np.concatenate([basis, more]), said
    number = min(rows or len(real), len(real))
    return real[:number], cache.get(wanted[:number]), f"{number} films with real vectors"


def mixtures(basis: np.ndarray, number: int) -> np.ndarray:
    random = np.random.default_rng(1)
    one, other = (basis[random.integers(len(basis), size=number)] for _ in range(2))
    return unit(one + random.uniform(0.2, 0.8, (number, 1)) * other)


def unit(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")
    return result


def near(stored: np.ndarray, number: int) -> list[list[float]]:
    """Vectors of films with noise added."""
    random = np.random.default_rng(2)
    chosen = stored[random.choice(len(stored), size=min(number, len(stored)), replace=False)]
    noise = unit(random.standard_normal(chosen.shape)) * NOISE
    result: list[list[float]] = unit(chosen + noise).tolist()
    return result


def write_vectors(keys: Sequence[int], stored: np.ndarray) -> None:
    """Vectors straight into the sidecar."""
    with (
        binary_cursor("default") as cursor,
        cursor.copy(
            f"COPY {SIDECAR._meta.db_table} (source_id, ordinal, digest, vector)"
            " FROM STDIN (FORMAT BINARY)"
        ) as copy,
    ):
        copy.set_types(["int8", "int4", "bytea", "halfvec"])
        for key, vector in zip(keys, stored, strict=True):
            copy.write_row((key, 0, b"\0" * 16, HalfVector(vector)))


def load(rows: list[Movie], stored: np.ndarray) -> float:
    """Films and vectors straight into their tables, then the index. Seconds for the index."""
    run_sql("SET embedsync.capture = off")
    Movie.objects.bulk_create(rows, batch_size=1000)
    run_sql("RESET embedsync.capture")
    write_vectors([row.pk for row in rows], stored)
    started = time.perf_counter()
    indexing.build(SIDECAR, "default")
    taken = time.perf_counter() - started
    run_sql("VACUUM ANALYZE", "CHECKPOINT")
    return taken


def search(vector: Sequence[float], *, exact: bool = False) -> list[int]:
    return [film.pk for film in Movie.objects.similar(vector, exact=exact)[:K]]


def measure_time(searched: Sequence[Sequence[float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds by way of asking, each query asked in all ways in turn."""
    taken: dict[str, list[float]] = {"orm": [], "database": [], "by_hand": [], "plain": []}
    written = [statement_of(vector) for vector in searched]
    with (
        copy_of_connection(connection) as raw,
        copy_of_connection(connection) as tuned,
        TimedCursors(connection) as timed,
    ):
        # Not on the other two: the planner, too, looks at ef_search as the session has it.
        for name, value in {**SCAN_SETTINGS, "hnsw.ef_search": str(knobs.ef_search)}.items():
            tuned.execute("SELECT set_config(%s, %s, false)", [name, value])
        for turn in range(rounds + 1):
            for position, vector in enumerate(searched):
                asked = ask_in_turn(raw, tuned, timed, vector, written[position], turn + position)
                if turn:  # the first round warms up
                    for way, spent in asked.items():
                        taken[way].append(spent)
    return taken


def ask_in_turn(
    raw: psycopg.Connection[Any],
    tuned: psycopg.Connection[Any],
    timed: TimedCursors,
    vector: Sequence[float],
    written: tuple[str, Sequence[Any]],
    turn: int,
) -> dict[str, float]:
    """Milliseconds of one query by way of asking; ``turn`` says which comes first."""
    sql, parameters = written
    asked: dict[str, float] = {}

    def through_django() -> None:
        timed.seconds = 0.0
        whole = milliseconds(lambda: search(vector))
        asked["database"] = timed.seconds * 1e3
        asked["orm"] = whole - asked["database"]

    def by_hand() -> None:
        asked["by_hand"] = milliseconds(lambda: fetch(raw, sql, parameters))

    def plain() -> None:
        asked["plain"] = milliseconds(lambda: fetch(tuned, PLAIN, parameters[:1]))

    ways = [through_django, by_hand, plain]
    # Each is first, second and third in turn: the first finds the caches coldest.
    for way in range(len(ways)):
        ways[(turn + way) % len(ways)]()
    return asked


def fetch(raw: psycopg.Connection[Any], sql: str, parameters: Sequence[Any]) -> None:
    with raw.cursor() as cursor:
        cursor.execute(sql, parameters)
        assert len(cursor.fetchall()) == K


def statement_of(vector: Sequence[float]) -> tuple[str, Sequence[Any]]:
    """The one statement of a search, and its parameters, the vector first."""
    seen: list[tuple[str, Sequence[Any]]] = []

    def watch(execute: Callable[..., Any], sql: str, params: Any, *more: Any) -> Any:
        seen.append((sql, params))
        return execute(sql, params, *more)

    with connection.execute_wrapper(watch):
        found = search(vector)
    if len(seen) != 1 or len(found) != K:
        raise SystemExit(f"A search took {len(seen)} statements and found {len(found)} films.")
    return seen[0]


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


def recalls(searched: Queries, truth: dict[str, list[list[int]]]) -> dict[str, list[float]]:
    """The share of the true nearest rows that is found, for each query of each kind."""
    return {
        kind: [
            len(set(search(vector)) & set(best)) / K
            for vector, best in zip(vectors, truth[kind], strict=True)
        ]
        for kind, vectors in searched.items()
    }


def by_ef(searched: Queries, truth: dict[str, list[list[int]]]) -> list[str]:
    """Recall and time at other values of EMBEDSYNC_EF_SEARCH, in words."""
    lines = []
    for ef in OTHER_EF:
        with override_settings(EMBEDSYNC_EF_SEARCH=ef):
            found = recalls(searched, truth)
            clock = [milliseconds(partial(search, vector)) for vector in searched["near"]]
        shares = ", ".join(f"{kind} {statistics.mean(share):.3f}" for kind, share in found.items())
        lines.append(f"ef_search {ef}: recall {shares}; {statistics.median(clock):.1f} ms")
    return lines


def ratios(above: list[float], below: list[float], parts: int = 10) -> list[float]:
    """Quotients of the medians of both, part by part of the run."""
    cuts = np.array_split(np.arange(len(above)), parts)
    return [
        statistics.median(above[i] for i in cut) / statistics.median(below[i] for i in cut)
        for cut in cuts
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, help="films with real vectors; embeds what is missing")
    parser.add_argument("--queries", type=int, default=200, help="vectors near films' own")
    parser.add_argument("--rounds", type=int, default=3, help="after one to warm up (default: 3)")
    parser.add_argument(
        "--clustered", type=int, nargs="*", default=[34_000, 500_000], help="sizes of those sets"
    )
    options = parser.parse_args()
    rows, stored, said = vectors(options.rows)
    searched: Queries = {"near": near(stored, options.queries)}
    for kind, asked in {"queries": queries(), "plots": plots()}.items():
        if asked:
            searched[kind] = [list(embed_query(text)) for text in asked]
    with database("search"):
        progress(f"loading {said}")
        seconds = load(rows, stored)
        progress(f"built the index in {seconds:.0f} s; searching exactly")
        truth = {
            kind: [search(vector, exact=True) for vector in vectors]
            for kind, vectors in searched.items()
        }
        found = recalls(searched, truth)
        progress("measuring")
        taken = measure_time([*searched["near"], *searched.get("queries", [])], options.rounds)
        others = by_ef(searched, truth)
    both = [*found["near"], *found.get("queries", [])]
    figures = [
        Figure("p50_ratio", ratios(taken["database"], taken["by_hand"]), at_most=MARK_P50),
        Figure("plain_sql_ratio", ratios(taken["database"], taken["plain"])),
        Figure("database_ms", taken["database"], unit="ms"),
        Figure("orm_ms", taken["orm"], unit="ms"),
        Figure("recall_at_10", both, at_least=MARK_RECALL, digits=3, mean=True),
        *(Figure(f"recall_{kind}", shares, digits=3, mean=True) for kind, shares in found.items()),
        Figure("index_build_s", [seconds], unit="s", digits=1),
    ]
    notes = [f"{said}; ef_search {knobs.ef_search}", *others]
    if options.clustered:
        from filters import measure  # which needs what is above

        for size in options.clustered:
            more, lines = measure(size, queries=100, rounds=2)
            figures += more
            notes += lines
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
