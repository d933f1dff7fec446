"""Clients that write as fast as they can, on one side or the other: Django's, psycopg's, pgbench's.

A transaction is an insert and an update of a random row. The first is an application that does
nothing else; the others take less and less CPU for themselves, and leave more to the server.
"""

import multiprocessing
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from common import PROJECT, ServerCPU
from django.db import connection, connections, transaction
from sources import Plain

from example_project.postgres_programs import Programs

NAME = "bench clients"
TABLE = Plain._meta.db_table
INSERT = f"INSERT INTO {TABLE} (title, body, note, published) VALUES (%s, %s, '', true)"
UPDATE = f"UPDATE {TABLE} SET body = %s WHERE id = %s"
WORDS = "a text of some three hundred characters, as a short description has them; " * 4
SCRIPT = f"""\
\\set row random(1, {{rows}})
\\set text random(1, 1000000000)
BEGIN;
INSERT INTO {TABLE} (title, body, note, published) VALUES ('new :text', '{WORDS}', '', true);
UPDATE {TABLE} SET body = ':text {WORDS}' WHERE id = :row;
COMMIT;
"""


@dataclass
class Slice:
    """What some seconds of writing came to; ``cpu`` is microseconds in the server for each commit.

    Only that of the clients' server processes, not of those that write log and pages.
    """

    commits_per_s: float
    cpu: float


class Clients:
    """``number`` clients that write for ``seconds`` at a time to a table of ``rows`` rows."""

    def __init__(self, number: int, seconds: float, rows: int) -> None:
        ServerCPU()  # which refuses a server that is elsewhere
        self.number, self.seconds, self.rows = number, seconds, rows
        info = connection.connection.info
        self.where = {"host": info.host, "port": info.port, "user": info.user}
        self.where |= {"dbname": info.dbname, "password": info.password}

    def django(self, schema: str) -> Slice:
        """Processes that write through Django's models."""
        return self._processes(schema, write_with_django)

    def psycopg(self, schema: str) -> Slice:
        """Processes that send the SQL themselves, with parameters as Django sends them."""
        return self._processes(schema, write_with_psycopg)

    def _processes(self, schema: str, write: Any) -> Slice:
        options = {"options": f"-c search_path={schema}", "application_name": NAME}
        fork = multiprocessing.get_context("fork")
        start, results = fork.Barrier(self.number), fork.SimpleQueue()
        arguments = ({**self.where, **options}, self.seconds, self.rows, start, results)
        processes = [fork.Process(target=write, args=arguments) for _ in range(self.number)]
        spent = Spent()
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            spent.look()
        if any(process.exitcode for process in processes):
            raise SystemExit("A client failed.")
        commits = sum(results.get() for _ in processes)
        return Slice(commits / self.seconds, spent.seconds / commits * 1e6)

    def pgbench(self, schema: str) -> Slice:
        """pgbench of the embedded package, which takes next to no CPU for itself."""
        program = Programs(PROJECT / ".postgres", 18).folder() / "pgbench"
        spent = Spent()
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "transaction.sql"
            script.write_text(SCRIPT.format(rows=self.rows), encoding="utf-8")
            command = [str(program), "--no-vacuum", "--file", str(script)]
            command += ["--client", str(self.number), "--jobs", str(min(2, self.number))]
            command += ["--time", str(round(self.seconds))]
            where = {f"PG{key.upper()}": str(value or "") for key, value in self.where.items()}
            where |= {"PGDATABASE": where.pop("PGDBNAME"), "PGAPPNAME": NAME}
            environment = {**os.environ, **where, "PGOPTIONS": f"-c search_path={schema}"}
            pipe, both = subprocess.PIPE, subprocess.STDOUT
            with subprocess.Popen(command, env=environment, stdout=pipe, stderr=both) as running:
                while running.poll() is None:
                    spent.look()
                said = running.stdout.read().decode() if running.stdout else ""
        rate = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
        done = re.search(r"actually processed: (\d+)", said)
        if running.returncode or not rate or not done:
            raise SystemExit(f"pgbench failed.\n{said}")
        return Slice(float(rate[1]), spent.seconds / int(done[1]) * 1e6)


def write_with_django(
    where: dict[str, Any], seconds: float, rows: int, start: Any, results: Any
) -> None:
    """One client: transactions until the time is over; their number goes to ``results``."""
    # A connection of its own: the other belongs to the process that this one comes from.
    mine = connections.create_connection("default")
    options = {name: where[name] for name in ("options", "application_name")}
    mine.settings_dict = {**mine.settings_dict, "OPTIONS": options}
    connections["default"] = mine
    mine.ensure_connection()

    def one(number: int, text: str, row: int) -> None:
        with transaction.atomic():
            Plain.objects.create(title=f"new {number}", body=text)
            Plain.objects.filter(pk=row).update(body=text)

    results.put(repeat(one, seconds, rows, start))


def write_with_psycopg(
    where: dict[str, Any], seconds: float, rows: int, start: Any, results: Any
) -> None:
    """The same, without Django."""
    with psycopg.connect(**where, autocommit=True, cursor_factory=psycopg.ClientCursor) as client:

        def one(number: int, text: str, row: int) -> None:
            with client.transaction():
                client.execute(INSERT, [f"new {number}", text])
                client.execute(UPDATE, [text, row])

        results.put(repeat(one, seconds, rows, start))


def repeat(one: Callable[[int, str, int], None], seconds: float, rows: int, start: Any) -> int:
    """Make transactions until the time is over. Returns how many."""
    start.wait()
    commits, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        one(commits, f"{random.random()} {WORDS}", random.randint(1, rows))
        commits += 1
    return commits


class Spent:
    """CPU seconds of the clients' server processes, as of the last look at each."""

    def __init__(self) -> None:
        self.by_process: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self.by_process.values())

    def look(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [NAME])
            for (pid,) in cursor.fetchall():
                with suppress(psutil.Error):
                    times = psutil.Process(pid).cpu_times()
                    self.by_process[pid] = times.user + times.system
        time.sleep(0.05)
