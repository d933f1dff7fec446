"""What capture costs by kind of source: one large statement, and one row a transaction.

The server's CPU as a multiple of what the same statements cost on twins without triggers, and how
much more write-ahead log they write. The sources: columns alone, a condition, related rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from common import Figure, ServerCPU, arguments, database, one_value, progress, report, run_sql
from sources import (
    BARE,
    INBOX,
    SIDES,
    TRACED,
    Conditional,
    Plain,
    Related,
    make,
    settle,
    side,
    tables,
)

INSERT = (
    "INSERT INTO {table} (title, body, note, published{more})"
    " SELECT 'title ' || i, repeat(md5(i::text), 10), '', true{value}"
    " FROM generate_series({first}, {last}) AS i"
)
CHANGE = "UPDATE {table} SET {column} = {column} || 'x' WHERE id BETWEEN {{first}} AND {{last}}"
DELETE = "DELETE FROM {table} WHERE {key} BETWEEN {{first}} AND {{last}}"
LINK = (
    "INSERT INTO films_related_styles (related_id, style_id)"
    " SELECT i, 1 + mod(i, 20) FROM generate_series({first}, {last}) AS i"
)


@dataclass(frozen=True)
class Operation:
    """A statement over the rows ``{first}`` to ``{last}``; each of them is an event, or none."""

    sql: str
    captured: bool = True


def on_columns(table: str, more: str = "", value: str = "") -> dict[str, Operation]:
    insert = INSERT.replace("{table}", table).replace("{more}", more).replace("{value}", value)
    return {
        "insert": Operation(insert),
        "update": Operation(CHANGE.format(table=table, column="title")),
        "update_other": Operation(CHANGE.format(table=table, column="note"), captured=False),
    }


def on_rows(table: str, key: str = "id") -> Operation:
    return Operation(DELETE.format(table=table, key=key))


# By kind of source, in an order in which they can follow each other.
OPERATIONS = {
    Plain: {**on_columns("films_plain"), "delete": on_rows("films_plain")},
    Conditional: {**on_columns("films_conditional"), "delete": on_rows("films_conditional")},
    Related: {
        **on_columns("films_related", ", director_id", ", i"),
        "link": Operation(LINK),
        "director": Operation(CHANGE.format(table="films_director", column="name")),
        "director_other": Operation(
            CHANGE.format(table="films_director", column="note"), captured=False
        ),
        "unlink": on_rows("films_related_styles", key="related_id"),
        "delete": on_rows("films_related"),
    },
}
REFERRED = {
    "films_director": "INSERT INTO films_director (name, note) SELECT 'name ' || i, ''"
    " FROM generate_series(1, {rows}) AS i",
    "films_style": "INSERT INTO films_style (name, note) SELECT 'name ' || i, ''"
    " FROM generate_series(1, 20) AS i",
}


@dataclass
class Samples:
    """Of one operation: CPU ratios, CPU microseconds and bytes of log more for each row."""

    ratios: list[float] = field(default_factory=list)
    more_cpu: list[float] = field(default_factory=list)
    more_log: list[float] = field(default_factory=list)


class Meter:
    """CPU of the server's process and bytes of log since ``start``."""

    def __init__(self) -> None:
        self.cpu = ServerCPU().seconds

    def start(self) -> None:
        # What earlier statements left to do is done now, and by others.
        run_sql("CHECKPOINT")
        self.log_before = one_value("SELECT pg_current_wal_insert_lsn()")
        self.cpu_before = self.cpu()

    def read(self) -> tuple[float, int]:
        seconds = self.cpu() - self.cpu_before
        written = f"SELECT pg_current_wal_insert_lsn() - '{self.log_before}'::pg_lsn"
        return seconds, int(one_value(written))


def statements(operation: Operation, rows: int, singly: bool) -> Iterator[str]:
    if not singly:
        yield operation.sql.format(first=1, last=rows)
        return
    for number in range(1, rows + 1):
        yield operation.sql.format(first=number, last=number)


def prepare(source: Any, rows: int) -> None:
    """Empty tables, but for the rows that others will refer to."""
    names = tables(source)
    for schema in SIDES:
        with side(schema):
            run_sql(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE")
            run_sql(*(sql.format(rows=rows) for name, sql in REFERRED.items() if name in names))
    settle(names)


def one_round(
    source: Any, rows: int, singly: bool, swap: bool, meter: Meter
) -> Iterator[tuple[str, dict[str, tuple[float, int]]]]:
    """Each operation, with its CPU seconds and bytes of log by side."""
    prepare(source, rows)
    for name, operation in OPERATIONS[source].items():
        taken = {}
        for schema in reversed(SIDES) if swap else SIDES:
            with side(schema):
                meter.start()
                for sql in statements(operation, rows, singly):
                    run_sql(sql)
                taken[schema] = meter.read()
        events = one_value(f"SELECT count(*) FROM {INBOX}")
        if events != rows * operation.captured:
            raise SystemExit(f"{source.__name__}: {name} of {rows} rows made {events} events.")
        settle(tables(source))
        yield name, taken


def measure(source: Any, rows: int, rounds: int, singly: bool, meter: Meter) -> dict[str, Samples]:
    samples = {name: Samples() for name in OPERATIONS[source]}
    for number in range(rounds + 1):
        for name, taken in one_round(source, rows, singly, number % 2 == 1, meter):
            if number == 0:
                continue  # the warm-up
            (cpu, log), (bare_cpu, bare_log) = taken[TRACED], taken[BARE]
            samples[name].ratios.append(cpu / bare_cpu)
            samples[name].more_cpu.append((cpu - bare_cpu) / rows * 1e6)
            samples[name].more_log.append((log - bare_log) / rows)
        if number:
            last = ", ".join(f"{name} {found.ratios[-1]:.2f}" for name, found in samples.items())
            progress(f"{source.__name__}, round {number} of {rounds}: {last}")
    return samples


def note(title: str, samples: dict[str, Samples], of: Callable[[Samples], list[float]]) -> str:
    return f"{title}: " + ", ".join(
        f"{name} {median(of(found)):.3g}" for name, found in samples.items()
    )


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=100_000, help="in one statement")
    parser.add_argument("--transactions", type=int, default=2_000, help="of one row each")
    parser.add_argument("--rounds", type=int, default=6, help="after one to warm up (default: 6)")
    options = parser.parse_args()
    figures, notes = [], [f"{options.rows} rows a statement, {options.transactions} transactions"]
    with database("capture"):
        make(*OPERATIONS)
        meter = Meter()
        for source in OPERATIONS:
            kind = source.__name__.lower()
            for singly in (False, True):
                rows = options.transactions if singly else options.rows
                samples = measure(source, rows, options.rounds, singly, meter)
                end = "_1row" if singly else ""
                figures += [
                    Figure(f"{kind}_{name}{end}", found.ratios) for name, found in samples.items()
                ]
                title = f"{kind}, {'one row a transaction' if singly else 'one statement'}"
                notes += [
                    note(f"{title}, us of CPU a row more", samples, lambda found: found.more_cpu),
                    note(
                        f"{title}, bytes of log a row more", samples, lambda found: found.more_log
                    ),
                ]
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
