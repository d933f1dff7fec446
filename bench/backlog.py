"""A backlog of a million events: what a claim costs at its end, and what the worker needs for it.

The events are of rows that are gone, which leaves claims and little else. A second time while
another transaction holds back the horizon of vacuum, so that what was claimed stays behind as dead
rows.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
from common import Figure, arguments, database, progress, report, run_sql
from django.db import connection
from django.test.utils import override_settings
from drain import NO_COST, SIDECAR, empty

from embedsync.declaration import key_of
from embedsync.worker import Worker


@contextmanager
def horizon_held(*, held: bool) -> Iterator[None]:
    """Another transaction that stays open, with an id of its own."""
    values = connection.settings_dict
    if not held:
        yield
        return
    with psycopg.connect(
        host=values["HOST"], port=values["PORT"], user=values["USER"], dbname=values["NAME"]
    ) as other:
        other.execute("SELECT pg_current_xact_id(), count(*) FROM embedsync_inbox")
        yield


def measure(events: int, *, held: bool) -> tuple[float, float]:
    """The 95th percentile of the last tenth of the claims by that of the first; MB of growth."""
    empty()
    run_sql(
        "INSERT INTO embedsync_inbox (sidecar, kind, source_pk)"
        f" SELECT '{key_of(SIDECAR)}', 'row', n::text FROM generate_series(1, {events}) AS n",
        "VACUUM ANALYZE",
    )
    worker = Worker()
    worker.start()
    took: list[float] = []
    memory: list[int] = []
    fold, process = worker.queue.fold, psutil.Process()

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        found = fold(*arguments)
        if found[0]:
            took.append(time.perf_counter() - started)
            memory.append(process.memory_info().rss)
        return found

    worker.queue.fold = timed  # type: ignore[method-assign]
    with horizon_held(held=held):
        worker.run(drain=True)
    tenth = len(took) // 10
    first, last = (
        statistics.quantiles(part, n=20)[-1] for part in (took[:tenth], took[-tenth - 1 : -1])
    )
    growth = (memory[-1] - memory[tenth]) / 1e6
    progress(
        f"{len(took)} claims{', horizon held' if held else ''}: {first * 1e3:.1f} ms at first,"
        f" {last * 1e3:.1f} at last; {growth:.1f} MB more"
    )
    return last / first, growth


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with database("backlog"), override_settings(EMBEDSYNC_EMBEDDERS=NO_COST):
        free = [measure(options.events, held=False) for _ in range(options.rounds)]
        held = [measure(options.events, held=True) for _ in range(options.rounds)]
    figures = [
        Figure("backlog_claim_ratio", [ratio for ratio, _ in free], at_most=1.5),
        Figure("backlog_claim_ratio_held", [ratio for ratio, _ in held], at_most=1.5),
        Figure("backlog_growth_mb", [mb for _, mb in free + held], unit="MB", digits=1),
    ]
    report(figures, [f"{options.events} events in the inbox at once"], as_json=options.json)


if __name__ == "__main__":
    main()
