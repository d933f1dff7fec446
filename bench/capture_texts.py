"""What capture costs where texts are long: 200 kB each, and another column is updated.

A statement trigger reads both versions of each text to compare them; a row-level one, of
``capture="row"``, need not.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager

from common import Figure, ServerCPU, arguments, database, one_value, progress, report, run_sql
from django.db import connection
from sources import BARE, INBOX, TRACED, Plain, RowLevel, make, side

# The side and the table by way of capture.
WAYS = {
    "bare": (BARE, Plain._meta.db_table),
    "statement": (TRACED, Plain._meta.db_table),
    "row": (TRACED, RowLevel._meta.db_table),
}
OTHER = "UPDATE {table} SET note = note || 'x'"


@contextmanager
def way(name: str) -> Iterator[str]:
    """Where ``films_...`` is the table with this way of capture; its name."""
    schema, table = WAYS[name]
    with side(schema):
        yield table


def fill(rows: int, size: int) -> None:
    """Texts that do not compress and so are stored out of line."""
    for name in WAYS:
        with way(name) as table, connection.cursor() as cursor:
            statement = f"COPY {table} (title, body, note, published) FROM STDIN"
            with cursor.copy(statement) as copy:
                for number in range(rows):
                    text = base64.b64encode(os.urandom(size * 3 // 4)).decode()
                    copy.write_row((f"title {number}", text, "", True))
    stored = one_value(f"SELECT min(pg_column_size(body)) FROM {TRACED}.{WAYS['statement'][1]}")
    if stored < size * 0.95:
        raise SystemExit(f"The texts were compressed to {stored} bytes.")


def measure(rows: int, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds a row, by way of capture."""
    cpu = ServerCPU().seconds
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name in list(WAYS)[:: -1 if number % 2 else 1]:
            with way(name) as table:
                run_sql(f"VACUUM ANALYZE {table}", "CHECKPOINT")
                before = cpu()
                run_sql(OTHER.format(table=table))
                if number:
                    taken[name].append((cpu() - before) / rows * 1e6)
        if number:
            last = ", ".join(f"{name} {values[-1]:.1f}" for name, values in taken.items())
            progress(f"round {number} of {rounds}: us a row: {last}")
    return taken


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000, help="in one statement")
    parser.add_argument("--size", type=int, default=200_000, help="bytes of a text")
    parser.add_argument("--rounds", type=int, default=8, help="after one to warm up (default: 8)")
    options = parser.parse_args()
    with database("texts"):
        make(Plain, RowLevel)
        fill(options.rows, options.size)
        run_sql(f"TRUNCATE {INBOX}")
        taken = measure(options.rows, options.rounds)
        if one_value(f"SELECT count(*) FROM {INBOX}"):
            raise SystemExit("A column that is not embedded made events.")
    figures = [
        Figure(f"long_text_{name}_us", values, unit="us", digits=1)
        for name, values in taken.items()
    ]
    note = f"{options.rows} texts of {options.size} bytes, another column updated, CPU a row"
    report(figures, [note], as_json=options.json)


if __name__ == "__main__":
    main()
