"""What capture leaves of the writers' commits per second: 8 clients, an insert and an update each.

They write in short slices to a table with triggers and to its twin without, in turn, on a server
that waits for its disk (fsync and synchronous_commit are on).
"""

from clients import TABLE, Clients, Slice
from common import Figure, arguments, database, one_value, progress, report, run_sql
from sources import BARE, INBOX, SIDES, TRACED, Plain, make, side

KINDS = ("django", "psycopg", "pgbench")
MARK = 0.85  # for the clients that are as an application's are


def fill(rows: int) -> None:
    for schema in SIDES:
        with side(schema):
            run_sql(
                f"INSERT INTO {TABLE} (title, body, note, published)"
                f" SELECT 'title ' || i, repeat(md5(i::text), 10), '', true"
                f" FROM generate_series(1, {rows}) AS i",
            )
    run_sql(f"TRUNCATE {INBOX}", "VACUUM ANALYZE", "CHECKPOINT")


def measure(clients: Clients, rounds: int) -> dict[str, dict[str, list[Slice]]]:
    """Slices by kind of client and side."""
    kinds = {kind: getattr(clients, kind) for kind in KINDS}
    slices: dict[str, dict[str, list[Slice]]] = {
        kind: {schema: [] for schema in SIDES} for kind in kinds
    }
    for number in range(rounds + 1):
        for kind, write in kinds.items():
            found = slices[kind]
            for schema in reversed(SIDES) if number % 2 else SIDES:
                written = write(schema)
                if number:
                    found[schema].append(written)
            if not one_value(f"SELECT count(*) FROM {INBOX}"):
                raise SystemExit("Nothing was captured.")
            run_sql(f"TRUNCATE {INBOX}")
            if number:
                bare, traced = found[BARE][-1].commits_per_s, found[TRACED][-1].commits_per_s
                said = f"{kind}, {bare:.0f} commits/s, {traced / bare:.2f} of them with capture"
                progress(f"pair {number} of {rounds}: {said}")
    return slices


def figures(kind: str, traced: list[Slice], bare: list[Slice], mark: float | None) -> list[Figure]:
    both = list(zip(traced, bare, strict=True))
    rates = [a.commits_per_s / b.commits_per_s for a, b in both]
    return [
        Figure(f"commits_{kind}", rates, at_least=mark),
        Figure(f"commits_{kind}_per_s", [a.commits_per_s for a in traced], unit="/s", digits=0),
        Figure(f"commits_{kind}_cpu", [a.cpu / b.cpu for a, b in both]),
        Figure(f"commits_{kind}_us", [a.cpu - b.cpu for a, b in both], unit="us", digits=0),
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=2, help="of a slice (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="after one to warm up (default: 15)")
    parser.add_argument("--rows", type=int, default=100_000, help="in the table at the beginning")
    options = parser.parse_args()
    with database("commits", fsync=True):
        make(Plain)
        fill(options.rows)
        slices = measure(Clients(options.clients, options.seconds, options.rows), options.rounds)
        knobs = [f"{name} {one_value(f'SHOW {name}')}" for name in ("fsync", "synchronous_commit")]
    found = []
    for kind, sides in slices.items():
        found += figures(kind, sides[TRACED], sides[BARE], MARK if kind == "django" else None)
    note = f"{options.clients} clients, slices of {options.seconds} s; {', '.join(knobs)}"
    report(found, [note], as_json=options.json)


if __name__ == "__main__":
    main()
