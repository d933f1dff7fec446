"""What the benchmarks share: a database of their own, CPU meters, and how figures are shown.

Importing this module sets Django up with the example project's settings.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ["DJANGO_SETTINGS_MODULE"] = "example_project.settings"

import django  # noqa: E402  (after the path and the settings it needs)
import psutil  # noqa: E402
from django.conf import settings  # noqa: E402
from django.db import connection  # noqa: E402

from example_project.postgres import Cluster  # noqa: E402

django.setup()
# With DEBUG, Django keeps a log of all statements, whose cost is nobody's but the demo's.
settings.DEBUG = False


@contextmanager
def database(name: str, *, fsync: bool = False) -> Iterator[None]:
    """A fresh, migrated database of this name as Django's default one; dropped at the end.

    On the server of DATABASE_URL; without one on an embedded server, started here and stopped at
    the end unless it was running. ``fsync`` chooses one that writes as a server in production.
    """
    started: Cluster | None = None
    if not os.environ.get("DATABASE_URL"):
        folder = "bench-18-fsync" if fsync else "bench-18"
        cluster = Cluster(PROJECT / ".postgres" / folder, 18, fsync=fsync)
        status = cluster.status()
        if status is None or not status.running:
            started = cluster
        cluster.start()
        host, port = cluster.socket() or cluster.expected_socket()
        settings.DATABASES["default"].update(HOST=host, PORT=port, NAME="embedsync")
    connection.settings_dict["TEST"]["NAME"] = f"embedsync_bench_{name}"
    ordinary = connection.settings_dict["NAME"]
    try:
        connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
        try:
            yield
        finally:
            connection.creation.destroy_test_db(ordinary, verbosity=0)
    finally:
        if started:
            started.stop()


def cache() -> Path:
    """A folder of the project's that git ignores."""
    folder = PROJECT / ".cache"
    folder.mkdir(exist_ok=True)
    return folder


def run_sql(*statements: str) -> None:
    """Execute statements that return nothing of interest."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def one_value(query: str) -> Any:
    """The one value that a query returns."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


class ServerCPU:
    """CPU seconds of the server process behind Django's connection.

    Raises ``SystemExit`` where that process is not on this machine.
    """

    def __init__(self) -> None:
        connection.ensure_connection()
        info = connection.connection.info
        local = info.host.startswith("/") or info.hostaddr in {"127.0.0.1", "::1"}
        try:
            self.process = psutil.Process(info.backend_pid)
            if not local or "postgres" not in " ".join(self.process.cmdline()):
                raise psutil.NoSuchProcess(info.backend_pid)
        except psutil.Error:
            raise SystemExit(
                "The server's CPU cannot be measured: PostgreSQL does not run on this machine, or"
                " its processes cannot be seen. Unset DATABASE_URL to use the embedded one."
            ) from None
        self.schedstat = Path(f"/proc/{info.backend_pid}/schedstat")

    def seconds(self) -> float:
        """CPU time since the process began: in nanoseconds where Linux says, else in ticks."""
        try:
            return int(self.schedstat.read_text().split()[0]) / 1e9
        except OSError:
            times = self.process.cpu_times()
            return float(times.user + times.system)


@dataclass(frozen=True)
class Figure:
    """One figure: its samples, and its mark, which their median (or mean) may not go beyond."""

    name: str
    samples: Sequence[float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""
    digits: int = 2
    mean: bool = False

    @property
    def value(self) -> float:
        return (statistics.mean if self.mean else statistics.median)(self.samples)

    @property
    def mark(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def verdict(self) -> str:
        if not self.mark:
            return ""
        met = self.at_most is None or self.value <= self.at_most
        met = met and (self.at_least is None or self.value >= self.at_least)
        return "met" if met else "MISSED"

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="end with the figures as JSON")
    return parser


def report(figures: Sequence[Figure], notes: Sequence[str], *, as_json: bool) -> None:
    """Print a table and, if asked, one line of JSON: figures, their marks, and the notes."""
    width = max(24, *(len(figure.name) + 2 for figure in figures))
    print(f"{'figure':<{width}}{'measured':>9}{'min':>9}{'max':>9}{'n':>5}  {'unit':<6}{'mark':<9}")
    for figure in figures:
        value, least, most = map(
            figure.show, (figure.value, min(figure.samples), max(figure.samples))
        )
        print(
            f"{figure.name:<{width}}{value:>9}{least:>9}{most:>9}{len(figure.samples):>5}"
            f"  {figure.unit:<6}{figure.mark:<9}{figure.verdict}"
        )
    for note in notes:
        print(note)
    if as_json:
        print(json.dumps(as_dict(figures, notes)))


def as_dict(figures: Sequence[Figure], notes: Sequence[str]) -> dict[str, Any]:
    """Figures by name; beside each ``_min``, ``_max``, ``_unit``, ``_mark`` and ``_verdict``."""
    values: dict[str, Any] = {}
    for figure in figures:
        values[figure.name] = round(figure.value, 4)
        values[f"{figure.name}_min"] = round(min(figure.samples), 4)
        values[f"{figure.name}_max"] = round(max(figure.samples), 4)
        if figure.mark:
            values[f"{figure.name}_mark"] = figure.mark
            values[f"{figure.name}_verdict"] = figure.verdict
        if figure.unit:
            values[f"{figure.name}_unit"] = figure.unit
    return {**values, "notes": list(notes)}


def progress(text: str) -> None:
    """A line for whoever waits; on standard error, so that the figures stand alone."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
