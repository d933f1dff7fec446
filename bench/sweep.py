"""What a sweep costs: rows a second, CPU of client and server, bytes read and WAL written.

Over films with short texts, all in step with their vectors, as fast as it goes.
"""

import time
from collections.abc import Iterator

from common import Figure, ServerCPU, arguments, database, one_value, progress, report, run_sql
from django.db import connection
from django.test.utils import override_settings

from embedsync.declaration import declaration_of
from embedsync.embedders import get_embedder
from embedsync.sweep import PAGE, Pace, sweep
from embedsync.text import digest, render
from embedsync.worker import Worker
from example_project.films.models import Movie

SIDECAR = Movie.embedding.model
SOURCE, VECTORS = Movie._meta.db_table, SIDECAR._meta.db_table
HASHING = {
    "default": {
        "BACKEND": "embedsync.embedders.hashing.HashingEmbedder",
        "MODEL": "hashing",
        "DIMENSIONS": 384,
    }
}
CHUNK = 50_000


def make_films(rows: int) -> None:
    run_sql(
        "SET embedsync.capture = 'off'",
        f'INSERT INTO {SOURCE} (title, year, director, "cast", plot_summary, href, published)'
        " SELECT 'title ' || i, 1990 + mod(i, 30), '', '', repeat(md5(i::text), 4), '', true"
        f" FROM generate_series(1, {rows}) AS i",
        "RESET embedsync.capture",
    )


def digests() -> Iterator[tuple[int, bytes]]:
    """The digest of each film's text, by key."""
    declaration, last = declaration_of(SIDECAR), 0
    fingerprint = get_embedder(declaration.embedder).fingerprint
    while True:
        films = Movie.objects.filter(pk__gt=last).order_by("pk")[:CHUNK]
        found = list(films.values("pk", *declaration.fields))
        if not found:
            return
        for film in found:
            last = film.pop("pk")
            yield last, digest(fingerprint, render(declaration.template, film))


def make_vectors() -> None:
    """The right digest beside a vector that is the same for all: no sweep looks at it."""
    found = list(digests())
    # Not in the WAL, which is to be the sweep's own.
    run_sql(f"ALTER TABLE {VECTORS} SET UNLOGGED", "CREATE TEMPORARY TABLE made (id int, d bytea)")
    with connection.cursor() as cursor, cursor.copy("COPY made FROM STDIN") as copy:
        for row in found:
            copy.write_row(row)
    run_sql(
        f"INSERT INTO {VECTORS} (source_id, ordinal, digest, vector)"
        " SELECT id, 0, d, array_fill(0.1::real, ARRAY[384])::vector::halfvec FROM made",
        "DROP TABLE made",
    )
    # As a worker leaves it after a fill.
    Worker().start()
    run_sql("UPDATE embedsync_sidecar SET backfilled_at = clock_timestamp(), backfill_after = NULL")


def blocks_read() -> int:
    """Blocks of the two tables and their indexes that came from outside the shared buffers."""
    run_sql("SELECT pg_stat_force_next_flush()")
    run_sql("SELECT pg_stat_clear_snapshot()")
    return int(
        one_value(
            "SELECT sum(heap_blks_read + idx_blks_read + coalesce(toast_blks_read, 0))"
            f" FROM pg_statio_user_tables WHERE relname IN ('{SOURCE}', '{VECTORS}')"
        )
    )


def wal_position() -> int:
    return int(one_value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def measure(rows: int, rounds: int, page: int) -> list[Figure]:
    server_cpu = ServerCPU().seconds
    samples: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        run_sql("CHECKPOINT")
        pages: list[float] = []
        blocks, wal = blocks_read(), wal_position()
        server, client = server_cpu(), time.process_time()
        started = time.perf_counter()
        swept = sweep(
            SIDECAR,
            pace=Pace(rate=0),
            page=page,
            progress=lambda rows, pages=pages: pages.append(time.perf_counter()),  # type: ignore[misc]
        )
        seconds = time.perf_counter() - started
        client, server = time.process_time() - client, server_cpu() - server
        wal, blocks = wal_position() - wal, blocks_read() - blocks
        if swept.compared != rows or swept.drift or swept.waiting or swept.error:
            raise SystemExit(f"The sweep is not what it should be: {swept} {swept.error}")
        longest = max(b - a for a, b in zip([started, *pages], pages, strict=False))
        progress(f"round {number} of {rounds}: {rows / seconds:,.0f} rows/s")
        if number == 0 and rounds > 0:
            continue  # the warm-up
        for name, value in {
            "sweep_rows_per_s": rows / seconds,
            "sweep_client_us": client / rows * 1e6,
            "sweep_server_us": server / rows * 1e6,
            "sweep_read_bytes": blocks * 8192 / rows,
            "sweep_wal_bytes": wal / rows,
            "longest_page_ms": longest * 1e3,
        }.items():
            samples.setdefault(name, []).append(value)
    units = {"rows_per_s": ("rows/s", 0), "bytes": ("B/row", 2), "us": ("us/row", 2)}
    figures = []
    for name, values in samples.items():
        unit, digits = next((u for end, u in units.items() if name.endswith(end)), ("ms", 1))
        figures.append(Figure(name, values, unit=unit, digits=digits))
    return figures


def size(table: str) -> str:
    heap, indexes = (
        one_value(f"SELECT pg_size_pretty({function}('{table}'))")
        for function in ("pg_table_size", "pg_indexes_size")
    )
    return f"{table} {heap}, its indexes {indexes}"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="after one to warm up (default: 3)")
    parser.add_argument("--page", type=int, default=PAGE, help=f"rows a page (default: {PAGE})")
    options = parser.parse_args()
    with database("sweep"), override_settings(EMBEDSYNC_EMBEDDERS=HASHING):
        make_films(options.rows)
        progress("films made")
        make_vectors()
        run_sql("VACUUM (ANALYZE, FREEZE)")
        progress("vectors made")
        figures = measure(options.rows, options.rounds, options.page)
        notes = [
            f"{options.rows} films in step, pages of {options.page}, no pause between pages",
            f"{size(SOURCE)}; {size(VECTORS)}; shared_buffers {one_value('SHOW shared_buffers')}",
        ]
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
