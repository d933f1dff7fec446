"""The data folder of the embedded PostgreSQL: its making, its settings, its pid file, its lock."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from example_project.postgres_programs import PostgresError, Programs

USER = "postgres"
PORT = "5432"

_SETTINGS_FILE = "embedded.conf"
_SETTINGS = """\
# Written at every start. Put your own settings at the end of postgresql.conf: they win.
listen_addresses = ''
port = {port}
unix_socket_directories = '"{folder}"'
max_connections = 100
shared_buffers = '128MB'
max_prepared_transactions = 10
fsync = {sync}
synchronous_commit = {sync}
full_page_writes = {sync}
"""
_SOCKET_PATH_LIMIT = 103  # of macOS; Linux allows four more
_SHORT_PARENT = Path("/tmp")  # noqa: S108 (it only ever holds folders made by mkdtemp)
_SHORT_PREFIX = "embedded-postgres-"
_DEAD_PID = 2**31 - 1


class PidFile(NamedTuple):
    """What the server wrote of itself when it started; it may have been killed since."""

    pid: int
    port: int
    socket_dir: Path


@dataclass(frozen=True)
class DataFolder:
    """The files of one server. Only a process that holds ``locked()`` writes here."""

    path: Path
    programs: Programs

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of the file system into PostgresError."""
        try:
            yield
        except OSError as error:
            raise PostgresError(
                f"The data folder {self.path} cannot be used: {error}. If another user made it, "
                "run this as that user; else set EMBEDDED_POSTGRES_DATA to a folder of your own."
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One start or stop at a time: the others wait.

        The lock lies beside the folder, because initdb wants an empty one.
        """
        import fcntl

        with self.explained():
            self.programs.make_folder(self.path.parent)
            with (self.path.parent / f".{self.path.name}.lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield

    def check(self, version: int) -> None:
        """Refuse a folder that is not ours or of another version."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not (self.path / _SETTINGS_FILE).exists():
            raise PostgresError(
                f"{self.path} is neither empty nor a data folder of the embedded PostgreSQL. "
                "Set EMBEDDED_POSTGRES_DATA to another folder."
            )
        if (found := self.version()) != version:
            raise PostgresError(
                f"{self.path} was made by PostgreSQL {found}, but {version} was asked for. "
                f"Set EMBEDDED_POSTGRES_VERSION={found}, or EMBEDDED_POSTGRES_DATA to another "
                "folder, or stop its server and delete it with all its data."
            )

    def exists(self) -> bool:
        """Whether initdb has made it."""
        return (self.path / "PG_VERSION").exists()

    def make(self, *, sync: bool) -> None:
        """Run initdb, under another name, so that a folder cut short is never taken for whole."""
        new = self.path.with_name(f".{self.path.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        self.programs.make_folder(new)
        self.programs.give(new)
        arguments = ["-D", str(new), "-U", USER, "--auth=trust", "--encoding=UTF8"]
        result = self.programs.run("initdb", *arguments, *([] if sync else ["--no-sync"]))
        if result.returncode:
            shutil.rmtree(new, ignore_errors=True)
            raise PostgresError(f"PostgreSQL could not make {self.path}: {result.stderr.strip()}")
        with (new / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude = '{_SETTINGS_FILE}'\n")
        (new / _SETTINGS_FILE).touch()
        new.replace(self.path)

    def configure(self, *, sync: bool) -> Path:
        """Write the settings of the next start; return the folder of its socket."""
        folder = self.path
        if not self.fits_socket():
            folder = Path(tempfile.mkdtemp(prefix=_SHORT_PREFIX, dir=_SHORT_PARENT))
            self.programs.give(folder)
        settings = self.path / _SETTINGS_FILE
        settings.write_text(
            _SETTINGS.format(
                port=PORT, folder=str(folder).replace("'", "''"), sync="on" if sync else "off"
            )
        )
        self.programs.give(settings)
        return folder

    def fits_socket(self) -> bool:
        """Whether a socket in this folder can be named; libpq splits hosts at commas."""
        path = str(self.path / f".s.PGSQL.{PORT}")
        return len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT and "," not in path

    def pid_file(self) -> PidFile | None:
        """The content of postmaster.pid, once the server has written where it listens."""
        try:
            lines = (self.path / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(lines) < 5 or not lines[4]:
            return None
        return PidFile(int(lines[0]), int(lines[3]), Path(lines[4]))

    def version(self) -> int:
        """The major version of PostgreSQL that made it."""
        return int((self.path / "PG_VERSION").read_text())

    def forget_dead_server(self) -> None:
        """Cure the lock files of a killed server, for its pid may by now be another process's.

        Of postmaster.pid only the pid is replaced: from the rest PostgreSQL sees whether orphans
        of the killed server still work on the data.
        """
        if found := self.pid_file():
            remove_short_socket_folder(found.socket_dir)
        (self.path / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        path = self.path / "postmaster.pid"
        lines = path.read_text().splitlines() if path.exists() else []
        if lines:
            path.write_text("\n".join([str(_DEAD_PID), *lines[1:]]) + "\n")
        else:
            path.unlink(missing_ok=True)


def remove_short_socket_folder(folder: Path) -> None:
    """Remove the folder in /tmp that held the socket of a server with a long path, and no other."""
    if folder.parent == _SHORT_PARENT and folder.name.startswith(_SHORT_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
