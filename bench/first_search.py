"""What the first search by text costs a web process: it loads the model.

Each round is a process of its own that has shown a page already: a first search, a second with
another text, and one whose text is in the cache. Times are the process's own; its CPU is that of
all its threads, its memory what is resident.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlencode

import psutil
from common import PROJECT, Figure, arguments, database, progress, report
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import override_settings

import embedsync
from embedsync.testing import embed_now, fake_embedder
from example_project.films.models import Movie

ROWS = 500
HITS = 1000
UNITS = {"s": 2, "ms": 2, "mb": 0}  # and how many digits they are shown with


def films() -> None:
    """Films with vectors that look like the model's to the database."""
    with fake_embedder():
        Movie.objects.bulk_create(
            Movie(title=f"Film {n}", year=2000, plot_summary=f"Robot {n % 7} meets actor {n}.")
            for n in range(ROWS)
        )
        embed_now()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE embedsync_sidecar SET embedder = ''")  # whose they are


def measured(act: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and MB of memory that an act has taken."""
    process = psutil.Process()
    memory, cpu, started = process.memory_info().rss, time.process_time(), time.perf_counter()
    act()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return seconds, cpu, (process.memory_info().rss - memory) / 1e6


def search(text: str) -> list[Movie]:
    return list(Movie.objects.similar(text)[:10])


def web(entry: str) -> None:
    """One web process: prints what its searches took."""
    if entry:
        settings.EMBEDSYNC_EMBEDDERS = {"default": json.loads(entry)}
    logging.disable(logging.WARNING)
    assert Client(headers={"host": "localhost"}).get("/").status_code == 200
    before = psutil.Process().memory_info().rss / 1e6
    searched = [
        measured(partial(search, text))
        for text in ("robots left on earth", "a heist goes wrong", "a heist goes wrong")
    ]
    embedded = measured(lambda: embedsync.embed_query("strangers on a train"))
    hits = [measured(lambda: embedsync.embed_query("a heist goes wrong"))[0] for _ in range(HITS)]
    (first, first_cpu, grown), (second, *_), (cached, *_) = searched
    found = {
        "web_process_mb": before,
        "first_search_s": first,
        "first_search_cpu_s": first_cpu,
        "first_search_mb": grown,
        "second_search_ms": second * 1e3,
        "cached_search_ms": cached * 1e3,
        "embed_query_ms": embedded[0] * 1e3,
        "embed_query_cached_ms": statistics.median(hits) * 1e3,
    }
    print(json.dumps(found))


def in_a_process(entry: str) -> dict[str, float]:
    """What one web process says."""
    values = connection.settings_dict
    where = {name.lower(): values[name] for name in ("HOST", "PORT", "USER", "PASSWORD")}
    query = urlencode({name: value for name, value in where.items() if value})
    environment = {**os.environ, "DATABASE_URL": f"postgresql:///{values['NAME']}?{query}"}
    run = subprocess.run(
        [sys.executable, __file__, "--web", "--embedder", entry],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    progress(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--embedder", default="", help="an entry of EMBEDSYNC_EMBEDDERS, as JSON")
    parser.add_argument("--web", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.web:
        web(options.embedder)
        return
    named = settings.EMBEDSYNC_EMBEDDERS["default"]
    if options.embedder:
        named = json.loads(options.embedder)
    with override_settings(EMBEDSYNC_EMBEDDERS={"default": named}), database("first_search"):
        films()
        in_a_process(options.embedder)  # its files are in memory after that
        rounds = [in_a_process(options.embedder) for _ in range(options.rounds)]
    figures = []
    for name in rounds[0]:
        unit = name.rpartition("_")[2]
        samples = [found[name] for found in rounds]
        figures.append(Figure(name, samples, unit=unit.replace("mb", "MB"), digits=UNITS[unit]))
    notes = [f"{named['BACKEND']}, {ROWS} films, model and libraries in the page cache"]
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
