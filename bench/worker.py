"""How workers do in time: a distant provider, two cores and two workers, freshness, idleness.

* An endpoint that answers after 200 ms, asked four at a time: the rate as a share of the ideal.
* The real model in two worker processes of one thread each, against one bare
  ``SentenceTransformer.encode()`` of one thread: by torch, and as ``embed_export`` has made it. And
  two bare ones at once, which is what the machine gives.
* From the commit of a row to its vector, on an idle system; what an idle worker costs.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from common import PROJECT, Figure, arguments, cache, database, one_value, progress, report
from django.db import connection
from django.test.utils import override_settings
from drain import NO_COST, SIDECAR, drain, drop_index, empty, ready_worker, timed
from embed import seconds_at_once
from films import repeated, texts

from embedsync.conf import settings as knobs
from embedsync.embedders.export import export
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder, without_bars
from embedsync.worker import Worker
from example_project.films.models import Movie

DISTANT = {"default": {**NO_COST["default"], "BACKEND": "embedders.DistantEmbedder"}}
CONCURRENCY, CALL, SECONDS = 4, 100, 0.2
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def measure_endpoint(rows: int, rounds: int) -> list[Figure]:
    """The rate of a drain as a share of what four endless streams of calls would do."""
    films, ratios = repeated(rows), []
    with override_settings(EMBEDSYNC_EMBEDDERS=DISTANT):
        for number in range(rounds):
            ready_worker(films)
            worker = Worker(concurrency=CONCURRENCY)
            worker.start()
            seconds, _ = timed(partial(worker.run, drain=True))
            drain(worker, rows)
            ratios.append(rows / CALL / CONCURRENCY * SECONDS / seconds)
            progress(f"endpoint {number + 1} of {rounds}: {ratios[-1]:.3f} of the ideal rate")
    return [Figure("endpoint_ratio", ratios, at_least=0.9, digits=3)]


WARM_UP = 512  # films


@contextmanager
def processes(number: int, **environment: str) -> Iterator[list[psutil.Process]]:
    """Worker processes on the benchmark's database."""
    values = connection.settings_dict
    where = urlencode({"host": values["HOST"], "port": values["PORT"]})
    url = f"postgresql://{values['USER']}:{values['PASSWORD']}@/{values['NAME']}?{where}"
    command = [sys.executable, "manage.py", "embed_worker", "--verbosity", "0"]
    more = {**os.environ, "DATABASE_URL": url, "DJANGO_DEBUG": "", **environment}
    started = [subprocess.Popen(command, cwd=PROJECT, env=more) for _ in range(number)]
    try:
        yield [psutil.Process(process.pid) for process in started]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def count() -> int:
    return int(one_value(f"SELECT count(*) FROM {SIDECAR._meta.db_table}"))


def wait_for(rows: int) -> None:
    while count() < rows:
        time.sleep(0.05)


def insert(films: list[Movie]) -> None:
    for film in films:
        film.pk = None
        film._state.adding = True
    Movie.objects.bulk_create(films, batch_size=1000)


def measure_two(rows: int, pairs: int, folder: Path) -> tuple[list[Figure], str]:
    """Two workers of one thread against the bare library with one thread, in turn; and a note."""
    films = repeated(rows + WARM_UP)
    warm_up, films = films[:WARM_UP], films[WARM_UP:]
    bare, wanted = bare_model(), texts(films)
    bare.encode(wanted[:128])
    model = knobs.embedder("default").model
    progress("exporting the model")
    export(SentenceTransformerEmbedder(model=model, dimensions=384), folder, sample=32)
    exported = {"DJANGO_SETTINGS_MODULE": "exported_settings", "EXPORTED_MODEL": str(folder)}
    sides = {"torch": {}, "onnx": {**exported, "PYTHONPATH": str(Path(__file__).parent)}}
    ratios: dict[str, list[float]] = {side: [] for side in (*sides, "bare")}
    rates = []
    for number in range(pairs):
        taken = {}
        for side, more in sides.items():
            empty()
            with processes(2, **ONE_THREAD, **more):
                insert(warm_up)
                wait_for(WARM_UP)
                time.sleep(1)
                started = time.perf_counter()
                insert(films)
                wait_for(rows + WARM_UP)
                taken[side] = time.perf_counter() - started
        alone, _ = timed(partial(bare.encode, wanted))
        command = [sys.executable, __file__, "--bare", str(rows)]
        taken["bare"] = seconds_at_once(command, 2) / 2
        for side, seconds in taken.items():
            ratios[side].append(alone / seconds)
        rates.append(rows / alone)
        said = ", ".join(f"{side} {rows / seconds:.1f}" for side, seconds in taken.items())
        progress(f"pair {number + 1} of {pairs}: bare alone {rates[-1]:.1f} rows/s; two: {said}")
    return [
        Figure("two_workers_ratio", ratios["torch"], at_least=1.6),
        Figure("two_workers_onnx_ratio", ratios["onnx"]),
        Figure("two_bare_ratio", ratios["bare"]),
    ], f"bare encode() of one thread, alone: {statistics.median(rates):.1f} rows/s"


def bare_model() -> Any:
    """The library itself, with one thread."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    with without_bars():
        return SentenceTransformer(knobs.embedder("default").model)


def be_bare(rows: int) -> None:
    """One of two processes at once: it says when it is ready, and embeds when it is told to."""
    bare, wanted = bare_model(), texts(repeated(rows))
    bare.encode(wanted[:16])
    print("ready", flush=True)
    sys.stdin.readline()
    bare.encode(wanted)


def measure_freshness(rows: int) -> list[Figure]:
    """Milliseconds from a commit to the row's vector, and of the call to the model among them."""
    empty()
    film, waits = repeated(1)[0], []
    with processes(1, **ONE_THREAD):
        insert([film])
        wait_for(1)
        for number in range(rows):
            time.sleep(0.05 + number % 20 * 0.02)  # at any moment of the worker's interval
            before = count()
            film.pk, film._state.adding, film.title = None, True, f"film {number}"
            film.save()
            started = time.perf_counter()
            while count() == before:
                time.sleep(0.002)
            waits.append((time.perf_counter() - started) * 1e3)
    p95 = statistics.quantiles(waits, n=20)[-1]
    return [
        Figure("fresh_p50_ms", [statistics.median(waits)], unit="ms", digits=0),
        Figure("fresh_p95_ms", [p95], at_most=300 + embedding_ms(film), unit="ms", digits=0),
    ]


def embedding_ms(film: Movie) -> float:
    """How long the model takes for one text."""
    from embedsync.embedders import get_embedder

    embedder = get_embedder("default")
    embedder.embed_documents(texts([film]))
    return statistics.median(
        timed(partial(embedder.embed_documents, texts([film])))[0] * 1e3 for _ in range(10)
    )


def measure_idle(seconds: float) -> list[Figure]:
    """What a worker with nothing to do costs, with its server process; and transaction ids."""
    empty()
    with processes(1) as [worker]:
        time.sleep(15)
        [backend] = [
            psutil.Process(pid)
            for (pid,) in rows_of(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        ]

        def spent(process: psutil.Process) -> float:
            times = process.cpu_times()
            return float(times.user + times.system)

        xid = int(one_value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))
        before = spent(worker), spent(backend)
        time.sleep(seconds)
        shares = [
            (after - b) / seconds * 100
            for after, b in zip((spent(worker), spent(backend)), before, strict=True)
        ]
        xids = int(one_value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")) - xid
    return [
        Figure("idle_worker_percent", shares[:1], at_most=1.0, unit="%"),
        Figure("idle_server_percent", shares[1:], unit="%"),
        Figure("idle_xids_per_minute", [xids / seconds * 60], at_most=1.0, unit="1/min"),
    ]


def rows_of(sql: str) -> list[tuple[int]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        found: list[tuple[int]] = cursor.fetchall()
        return found


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=10_000, help="for the endpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-rows", type=int, default=2_000)
    parser.add_argument("--pairs", type=int, default=2, help="with two workers; 0: without")
    parser.add_argument("--commits", type=int, default=100, help="for freshness")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds of idleness")
    parser.add_argument("--bare", type=int, help="of itself, for two processes at once")
    options = parser.parse_args()
    if options.bare:
        be_bare(options.bare)
        return
    notes = [
        f"endpoint: {options.rows} rows, {CALL} texts a call, {SECONDS} s a call, concurrency"
        f" {CONCURRENCY}; two workers: {options.model_rows} films, one thread each",
        f"freshness: {options.commits} commits, one at a time; idle: {options.idle:g} s, with a"
        " heartbeat a minute",
    ]
    with database("worker"):
        drop_index()
        figures = measure_endpoint(options.rows, options.rounds)
        figures += measure_idle(options.idle)
        figures += measure_freshness(options.commits)
        if options.pairs:
            with tempfile.TemporaryDirectory(dir=cache()) as folder:
                more, said = measure_two(options.model_rows, options.pairs, Path(folder) / "model")
            figures += more
            notes.append(said)
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
