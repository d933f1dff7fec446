"""What the triggers cost: the server's CPU for one large statement, with them and without.

Two identical tables of films, one with the sidecar's triggers as the migrations made them. Both
keep their primary key and lose their other indexes, whose upkeep would make the triggers look
cheaper; ``--indexes`` keeps them.
"""

from collections.abc import Callable

from common import Figure, ServerCPU, arguments, database, one_value, progress, report, run_sql

from example_project.films.models import Movie

TRACED = Movie._meta.db_table
PLAIN = "films_movie_plain"
INBOX = "embedsync_inbox"

OPERATIONS = {
    "insert": (
        'INSERT INTO {table} (title, year, director, "cast", plot_summary, href, published)'
        " SELECT 'title ' || i, 1990 + mod(i, 30), '', '', repeat(md5(i::text), 10), '', true"
        " FROM generate_series(1, {rows}) AS i"
    ),
    # An embedded column; then one that the triggers do not watch.
    "update": "UPDATE {table} SET plot_summary = plot_summary || 'x'",
    "update_other": "UPDATE {table} SET director = director || 'x'",
}
MARKS = {"insert": 2.3, "update": 2.5, "update_other": 2.2}


def make_twin() -> None:
    run_sql(f"CREATE TABLE {PLAIN} (LIKE {TRACED} INCLUDING ALL)")


def drop_indexes() -> None:
    """Leave both tables nothing but their primary keys."""
    run_sql(
        """
        DO $$
        DECLARE i record;
        BEGIN
            FOR i IN
                SELECT x.indexrelid::regclass AS name, x.indrelid::regclass AS on_table, c.conname
                FROM pg_index x LEFT JOIN pg_constraint c
                    ON c.conindid = x.indexrelid AND c.contype = 'u'
                WHERE x.indrelid IN ('films_movie'::regclass, 'films_movie_plain'::regclass)
                    AND NOT x.indisprimary
            LOOP
                IF i.conname IS NULL THEN
                    EXECUTE format('DROP INDEX %s', i.name);
                ELSE
                    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', i.on_table, i.conname);
                END IF;
            END LOOP;
        END $$
        """
    )


def one_round(rows: int, cpu: Callable[[], float], swap: bool) -> dict[str, dict[str, float]]:
    """CPU seconds by operation and table, and the number of events by operation."""
    taken: dict[str, dict[str, float]] = {}
    run_sql(f"TRUNCATE {PLAIN}, {TRACED} CASCADE", f"TRUNCATE {INBOX}")
    for name, operation in OPERATIONS.items():
        taken[name] = {}
        for table in [TRACED, PLAIN] if swap else [PLAIN, TRACED]:
            # What earlier statements left to do is done now, and by others.
            run_sql("CHECKPOINT")
            before = cpu()
            run_sql(operation.format(table=table, rows=rows))
            taken[name][table] = cpu() - before
        taken[name]["events"] = one_value(f"SELECT count(*) FROM {INBOX}")
        run_sql(f"TRUNCATE {INBOX}", f"VACUUM ANALYZE {PLAIN}", f"VACUUM ANALYZE {TRACED}")
    return taken


def measure(rows: int, rounds: int, keep_indexes: bool) -> list[Figure]:
    make_twin()
    if not keep_indexes:
        drop_indexes()
    cpu = ServerCPU().seconds
    ratios: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    per_row: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    needless = []
    for number in range(rounds + 1):
        taken = one_round(rows, cpu, swap=number % 2 == 1)
        for name in ("insert", "update"):
            if taken[name]["events"] != rows:
                raise SystemExit(f"{name} of {rows} rows made {taken[name]['events']} events.")
        if number == 0:
            continue  # the warm-up
        for name, by_table in taken.items():
            ratios[name].append(by_table[TRACED] / by_table[PLAIN])
            per_row[name].append((by_table[TRACED] - by_table[PLAIN]) / rows * 1e6)
        needless.append(taken["update_other"]["events"])
        progress(
            f"round {number} of {rounds}: "
            + ", ".join(f"{name} {values[-1]:.2f}" for name, values in ratios.items())
        )
    return [
        *(Figure(f"{name}_ratio", ratios[name], at_most=MARKS[name]) for name in OPERATIONS),
        Figure("needless_events", needless, at_most=0, digits=0),
        *(Figure(f"{name}_us_per_row", per_row[name], unit="us") for name in OPERATIONS),
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=8, help="after one to warm up (default: 8)")
    parser.add_argument("--indexes", action="store_true", help="keep the table's other indexes")
    options = parser.parse_args()
    with database("triggers"):
        figures = measure(options.rows, options.rounds, options.indexes)
    kept = "all its indexes" if options.indexes else "its primary key only"
    note = f"{options.rows} rows in one statement, server CPU, a table with {kept}"
    report(figures, [note], as_json=options.json)


if __name__ == "__main__":
    main()
