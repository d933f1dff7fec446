"""What filters do to a search, and how it grows: the same clustered vectors at two sizes.

``bench/search.py`` ends with this. Of each size: its time against the same SQL by hand; then time
and recall of ``.similar(vector)[:10]`` without a filter, under filters that keep
50 %, 5 % and 0.5 % of the rows at random, and under one that keeps the 1 % farthest from what is
searched for. Each as it is, and through the index alone, as it would be if nobody asked the planner
how many rows pass.
"""

import statistics
import time
from collections.abc import Sequence
from functools import partial
from unittest import mock

import numpy as np
from common import Figure, arguments, database, progress, report, run_sql
from search import (
    MARK_P50,
    SIDECAR,
    K,
    measure_time,
    milliseconds,
    ratios,
    unit,
    write_vectors,
)

from embedsync import compiler, indexing
from example_project.films.models import Movie

DIMENSIONS, CLUSTERS = 384, 500
FAR = 2000
FILTERS = {"none": None, "50%": 500, "5%": 50, "0.5%": 5, "far": FAR}
MARK_RECALL, MARK_FILTERED = 0.97, 0.95


def clustered(rows: int) -> np.ndarray:
    """Vectors in clusters of very different sizes, as texts are, in some 30 directions each."""
    random = np.random.default_rng(3)
    centres = random.standard_normal((CLUSTERS, DIMENSIONS))
    spread = random.standard_normal((CLUSTERS, 30, DIMENSIONS)) / 30**0.5
    which = (CLUSTERS * random.random(rows) ** 2).astype(int)
    found = np.empty((rows, DIMENSIONS), "f4")
    for start in range(0, rows, 10_000):
        part = which[start : start + 10_000]
        weights = random.standard_normal((len(part), 30))
        found[start : start + 10_000] = centres[part] + np.einsum(
            "nk,nkd->nd", weights, spread[part]
        )
    return unit(found)


def load(stored: np.ndarray, query: Sequence[float]) -> float:
    """Films with a random year, 0 to 999, and ``FAR`` for the farthest; seconds for the index."""
    # All of the graph fits, or building it takes many times as long.
    run_sql("SET embedsync.capture = off", "SET maintenance_work_mem = '2GB'")
    run_sql(
        f'INSERT INTO {Movie._meta.db_table} (id, title, year, director, "cast",'
        " plot_summary, href, published)"
        f" SELECT n, 'Film ' || n, (n * 7919::bigint) % 1000, '', '', '', '', true"
        f" FROM generate_series(1, {len(stored)}) AS n"
    )
    far = np.argsort(stored @ np.asarray(query, "f4"))[: len(stored) // 100] + 1
    keys = ",".join(map(str, far.tolist()))
    run_sql(f"UPDATE {Movie._meta.db_table} SET year = {FAR} WHERE id = ANY('{{{keys}}}')")
    write_vectors(range(1, len(stored) + 1), stored)
    started = time.perf_counter()
    indexing.build(SIDECAR, "default")
    taken = time.perf_counter() - started
    run_sql("VACUUM ANALYZE", "CHECKPOINT")
    return taken


def search(vector: Sequence[float], years: int | None, *, exact: bool = False) -> list[int]:
    films = Movie.objects.all()
    if years is not None:
        films = films.filter(year=FAR) if years == FAR else films.filter(year__lt=years)
    found: list[int] = [film.pk for film in films.similar(vector, exact=exact)[:K]]
    return found


def measure(size: int, queries: int, rounds: int) -> tuple[list[Figure], list[str]]:
    """The figures of one size, and a line for each filter."""
    stored = clustered(size)
    random = np.random.default_rng(4)
    noise = unit(random.standard_normal((queries, DIMENSIONS))) * 0.3
    searched = unit(stored[random.choice(size, queries, replace=False)] + noise).tolist()
    figures, lines = [], []
    with database("filters"):
        seconds = load(stored, searched[0])
        progress(f"{size:,} rows: built the index in {seconds:.0f} s")
        taken = measure_time(searched, rounds)
        ratio = ratios(taken["database"], taken["by_hand"])
        figures.append(Figure(f"p50_ratio_{size // 1000}k", ratio, at_most=MARK_P50))
        whole = [sum(parts) for parts in zip(taken["database"], taken["orm"], strict=True)]
        for what, clock in (("similar()", whole), ("the same SQL by hand", taken["by_hand"])):
            lines.append(f"{size:,} rows, {what}: {summary(clock)}")
            progress(lines[-1])
        for name, years in FILTERS.items():
            # What is far is far from the first of them.
            asked = searched[:1] * max(2, queries // 20) if name == "far" else searched
            # Through the index alone each takes 19 s, of half a million rows.
            alone = asked[:2] if name == "far" else asked
            truth = [set(search(vector, years, exact=True)) for vector in asked]
            said = []
            ways = (("", compiler.FEW_ROWS, asked), (" by the index alone", 0, alone))
            for way, few, vectors in ways:
                with mock.patch.object(compiler, "FEW_ROWS", few):
                    shares = [
                        len(set(search(vector, years)) & best) / K
                        for vector, best in zip(vectors, truth, strict=False)
                    ]
                    clock = [
                        milliseconds(partial(search, vector, years))
                        for _ in range(rounds)
                        for vector in vectors
                    ]
                said.append(f"recall {statistics.mean(shares):.3f}, {summary(clock)}{way}")
                if not way:
                    figures.append(
                        Figure(
                            f"recall_{name}_{size // 1000}k",
                            shares,
                            at_least=MARK_RECALL if years is None else MARK_FILTERED,
                            digits=3,
                            mean=True,
                        )
                    )
            lines.append(f"{size:,} rows, filter {name}: {'; '.join(said)}")
            progress(lines[-1])
    return figures, lines


def summary(clock: Sequence[float]) -> str:
    """Milliseconds of searches, in words."""
    p50, p95 = statistics.median(clock), statistics.quantiles(clock, n=20)[-1]
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, {1e3 / statistics.mean(clock):.0f}/s"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", default=[34_000, 500_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    figures, lines = [], []
    for size in options.sizes:
        more, said = measure(size, options.queries, options.rounds)
        figures += more
        lines += said
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
