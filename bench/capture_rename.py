"""A style that 10,000 films carry is renamed: what the writer pays, and what a worker pays later.

The one event says which style it was. A worker expands it: it finds the films and puts them into
the ledger. What follows costs what any other row does (``drain.py``).
"""

import time

from capture_statements import Meter
from common import Figure, arguments, database, one_value, progress, report, run_sql
from sources import BARE, INBOX, SIDES, TRACED, Related, make, settle, side, tables

from embedsync.declaration import key_of
from embedsync.queue import ROWS_OF_A_HOP, Queue

SIDECAR = Related.embedding.model
# As many films again do not carry it; each film has two more styles.
FILL = (
    "INSERT INTO films_director (name, note) SELECT 'name ' || i, ''"
    " FROM generate_series(1, 100) AS i",
    "INSERT INTO films_style (name, note) SELECT 'name ' || i, '' FROM generate_series(1, 20) AS i",
    "INSERT INTO films_related (title, body, note, published, director_id)"
    " SELECT 'title ' || i, repeat(md5(i::text), 10), '', true, 1 + mod(i, 100)"
    " FROM generate_series(1, {rows} * 2) AS i",
    "INSERT INTO films_related_styles (related_id, style_id)"
    " SELECT i, s FROM generate_series(1, {rows} * 2) AS i,"
    " unnest(ARRAY[1 + mod(i, 2), 3 + mod(i, 9), 12 + mod(i, 9)]) AS s",
)
RENAME = "UPDATE films_style SET name = name || 'x' WHERE id = 1"


def fill(rows: int) -> None:
    for schema in SIDES:
        with side(schema):
            run_sql(*(sql.format(rows=rows) for sql in FILL))
    settle(tables(Related))


def rename(schema: str, meter: Meter) -> tuple[float, int, float]:
    """CPU seconds, bytes of log, and seconds by the clock."""
    with side(schema):
        meter.start()
        started = time.perf_counter()
        run_sql(RENAME)
        clock = time.perf_counter() - started
        return *meter.read(), clock


def expand(rows: int, meter: Meter) -> float:
    """CPU seconds of a worker and the server for all moves that one event of a style takes."""
    queue = Queue("default", "bench")
    meter.start()
    before = time.process_time()
    while hops := queue.rare([key_of(SIDECAR)])[1]:
        for _, hop in hops:
            queue.expand(SIDECAR, hop)
    spent = time.process_time() - before + meter.read()[0]
    owed = one_value("SELECT count(*) FROM embedsync_ledger")
    if owed != rows or one_value(f"SELECT count(*) FROM {INBOX}"):
        raise SystemExit(f"The style became {owed} rows.")
    run_sql("TRUNCATE embedsync_ledger")
    return spent


def measure(rows: int, rounds: int) -> list[Figure]:
    meter = Meter()
    cpu: dict[str, list[float]] = {schema: [] for schema in SIDES}
    clock: dict[str, list[float]] = {schema: [] for schema in SIDES}
    log: dict[str, list[float]] = {schema: [] for schema in SIDES}
    expanded = []
    for number in range(rounds + 1):
        for schema in reversed(SIDES) if number % 2 else SIDES:
            seconds, written, passed = rename(schema, meter)
            if number:
                cpu[schema].append(seconds * 1e3)
                clock[schema].append(passed * 1e3)
                log[schema].append(written)
        spent = expand(rows, meter) / rows * 1e3
        if number:
            expanded.append(spent)
            progress(f"round {number} of {rounds}: {spent:.4f} ms a row to expand")
    return [
        Figure("rename_cpu_ms", cpu[TRACED], unit="ms"),
        Figure("rename_cpu_ms_bare", cpu[BARE], unit="ms"),
        Figure("rename_ms", clock[TRACED], unit="ms"),
        Figure("rename_ms_bare", clock[BARE], unit="ms"),
        Figure("rename_log_bytes", log[TRACED], unit="bytes", digits=0),
        Figure("rename_log_bytes_bare", log[BARE], unit="bytes", digits=0),
        Figure("expand_ms_per_row", expanded, unit="ms", digits=4),
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=10_000, help="films that carry the style")
    parser.add_argument("--rounds", type=int, default=10, help="after one to warm up (default: 10)")
    options = parser.parse_args()
    with database("rename"):
        make(Related)
        fill(options.rows)
        figures = measure(options.rows, options.rounds)
    note = (
        f"{options.rows} of {options.rows * 2} films carry the style, one event, expanded"
        f" {ROWS_OF_A_HOP} rows at a time"
    )
    report(figures, [note], as_json=options.json)


if __name__ == "__main__":
    main()
