"""What a drain costs: the worker's own share, and what it keeps of the model's speed.

First with an embedder that costs nothing: CPU of worker and server per row, and of one whose text
has not changed. Then with the real model: the rate of a drain against one bare
``SentenceTransformer.encode()`` of the same texts.
"""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial

from common import Figure, ServerCPU, arguments, database, one_value, progress, report, run_sql
from django.test.utils import override_settings
from films import repeated, texts

from embedsync.conf import settings as knobs
from embedsync.declaration import key_of
from embedsync.embedders.sentence_transformers import without_bars
from embedsync.index import deferred_index
from embedsync.worker import Worker
from example_project.films.models import Movie

SIDECAR = Movie.embedding.model
NO_COST = {
    "default": {"BACKEND": "embedders.NoCostEmbedder", "MODEL": "no cost", "DIMENSIONS": 384}
}
MARK_CPU = 0.12
MARK_UNCHANGED = 0.06
MARK_MODEL = 0.93


# An event for each row, as an UPDATE makes that leaves the text as it was.
SAME_AGAIN = f"""
INSERT INTO embedsync_inbox (sidecar, kind, source_pk)
SELECT '{key_of(SIDECAR)}', 'row', id::text FROM {Movie._meta.db_table} ORDER BY id
"""


def drop_index() -> None:
    """A sidecar without its index, which workers leave alone."""
    index = deferred_index(SIDECAR)
    assert index is not None
    run_sql(f"DROP INDEX {index.name}")


def empty() -> None:
    """As after migrate: no film, no vector, nothing owed and nothing to fill."""
    run_sql(
        f"TRUNCATE {Movie._meta.db_table}, {SIDECAR._meta.db_table} CASCADE",
        "TRUNCATE embedsync_inbox, embedsync_ledger",
        "UPDATE embedsync_sidecar SET fingerprint = '', embedder = '', backfill_after = NULL,"
        " backfilled_at = clock_timestamp()",
    )


def ready_worker(films: list[Movie]) -> Worker:
    """A worker that has started, with these films' events in the inbox."""
    empty()
    for film in films:
        film.pk = None
        film._state.adding = True
    Movie.objects.bulk_create(films, batch_size=1000)
    run_sql("VACUUM ANALYZE", "CHECKPOINT")
    worker = Worker()
    worker.start()
    # The films are no part of a worker, whose garbage collector would walk through all of them.
    gc.collect()
    gc.freeze()
    return worker


def drain(worker: Worker, rows: int) -> None:
    worker.run(drain=True)
    written = one_value(f"SELECT count(*) FROM {SIDECAR._meta.db_table}")
    if worker.errors or written != rows:
        raise SystemExit(f"{written} of {rows} rows were drained; errors: {worker.errors}")


def measure_cpu(rows: int, rounds: int) -> list[Figure]:
    """CPU milliseconds per row, of the worker's process and of the server's."""
    films = repeated(rows)
    server_cpu = ServerCPU().seconds
    samples: dict[str, list[float]] = {"changed": [], "unchanged": []}
    client, server = [], []
    with override_settings(EMBEDSYNC_EMBEDDERS=NO_COST):
        for number in range(rounds + 1):
            worker = ready_worker(films)
            for what, found in samples.items():
                if what == "unchanged":
                    run_sql(SAME_AGAIN, "VACUUM ANALYZE", "CHECKPOINT")
                server_before, client_before = server_cpu(), time.process_time()
                worker.run(drain=True)
                client_taken = (time.process_time() - client_before) / rows * 1e3
                server_taken = (server_cpu() - server_before) / rows * 1e3
                drain(worker, rows)  # finds nothing: it checks that all was drained
                if number:
                    found.append(client_taken + server_taken)
                    progress(
                        f"round {number} of {rounds}, {what}: {client_taken:.3f} +"
                        f" {server_taken:.3f} ms a row"
                    )
                if number and what == "changed":
                    client.append(client_taken)
                    server.append(server_taken)
    return [
        Figure("cpu_ms_per_row", samples["changed"], at_most=MARK_CPU, unit="ms", digits=3),
        Figure("worker_ms_per_row", client, unit="ms", digits=3),
        Figure("server_ms_per_row", server, unit="ms", digits=3),
        Figure(
            "unchanged_ms_per_row",
            samples["unchanged"],
            at_most=MARK_UNCHANGED,
            unit="ms",
            digits=3,
        ),
    ]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and CPU seconds of this process."""
    started, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - started, time.process_time() - cpu


def measure_model(rows: int, pairs: int) -> list[Figure]:
    """The drain's rate as a share of the bare library's, by the clock and by CPU."""
    from sentence_transformers import SentenceTransformer

    films = repeated(rows)
    wanted = texts(films)
    with without_bars():
        bare = SentenceTransformer(knobs.embedder("default").model)
    bare.encode(wanted[:128])
    few = films[:128]
    drain(ready_worker(few), len(few))
    server_cpu = ServerCPU().seconds
    by_clock, by_cpu, rates = [], [], []
    for number in range(pairs):
        taken: dict[str, tuple[float, float]] = {}
        # Each order in turn, so that a machine that tires or recovers harms both alike.
        for side in ("bare", "drain") if number % 2 == 0 else ("drain", "bare"):
            if side == "bare":
                taken[side] = timed(partial(bare.encode, wanted))
            else:
                worker = ready_worker(films)
                before = server_cpu()
                clock, cpu = timed(partial(worker.run, drain=True))
                taken[side] = clock, cpu + server_cpu() - before
                drain(worker, rows)
        (bare_clock, bare_cpu), (drain_clock, drain_cpu) = taken["bare"], taken["drain"]
        by_clock.append(bare_clock / drain_clock)
        by_cpu.append(bare_cpu / drain_cpu)
        rates.append(rows / drain_clock)
        progress(
            f"pair {number + 1} of {pairs}: bare {rows / bare_clock:.1f} rows/s, drain"
            f" {rates[-1]:.1f}; by CPU {by_cpu[-1]:.3f}"
        )
    return [
        Figure("model_ratio", by_clock, at_least=MARK_MODEL, digits=3),
        Figure("model_cpu_ratio", by_cpu, digits=3),
        Figure("drain_rows_per_s", rates, unit="rows/s", digits=1),
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=10_000, help="for the worker's own share")
    parser.add_argument("--rounds", type=int, default=7, help="after one to warm up (default: 7)")
    parser.add_argument("--model-rows", type=int, default=2_000)
    parser.add_argument("--pairs", type=int, default=3, help="with the model; 0: without")
    parser.add_argument("--threads", type=int, default=1, help="of torch, both sides (default: 1)")
    options = parser.parse_args()
    with database("drain"):
        drop_index()
        figures = measure_cpu(options.rows, options.rounds)
        notes = [
            f"{options.rows} rows, batches of {knobs.batch_size}, no vector index,"
            f" start-up left out; worker and server together"
        ]
        if options.pairs:
            import torch

            torch.set_num_threads(options.threads)
            figures += measure_model(options.model_rows, options.pairs)
            mean = statistics.mean(map(len, texts(repeated(options.model_rows))))
            notes.append(
                f"model: {options.model_rows} films of {mean:.0f} characters in the mean,"
                f" {options.pairs} pairs, torch threads: {options.threads}"
            )
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
