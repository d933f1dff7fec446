"""What the tests of the embedded PostgreSQL share."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from example_project.postgres import PROJECT

VERSION = int(os.environ.get("EMBEDDED_POSTGRES_VERSION") or 18)


@contextlib.contextmanager
def room_for_clusters() -> Iterator[Path]:
    """A folder in the project that PostgreSQL can enter even when root runs the tests."""
    (PROJECT / ".postgres").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=PROJECT / ".postgres"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def manage(data: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Begin a command of the example project, whose embedded data would lie in ``data``."""
    inherited = {k: v for k, v in os.environ.items() if k != "DATABASE_URL"}
    ours = {
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "EMBEDDED_POSTGRES_DATA": str(data),
        "EMBEDDED_POSTGRES_FSYNC": "off",
    }
    return subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT,
        env=inherited | ours | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status of a command and what it printed."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output
