"""Fault 13: a disk that is really full, as root can make one: a small file system in memory."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from django.db import connection

from tests.application import Application, begin, is_settled, marks
from tests.books import BookEmbedding, execute
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        os.environ.get("DATABASE_URL") is not None or not hasattr(os, "getuid") or os.getuid() != 0,
        reason="only root can mount a file system, and only for a server of its own",
    ),
]

INSERT = (
    "INSERT INTO library_book (title, body, year, published)"
    " SELECT 'Book ' || n || ' of ' || %s, '', 2000, true FROM generate_series(1, 1000) AS n"
)


@pytest.fixture
def disk(transactional_db, tmp_path):
    """A tablespace on a disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    size = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(size, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW data_directory")
            shutil.chown(folder, Path(cursor.fetchone()[0]).owner())
        execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        try:
            yield folder
        finally:
            (folder / "filler").unlink(missing_ok=True)
            execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file:
        while os.statvfs(path).f_bavail:
            with contextlib.suppress(OSError):
                file.write(b"x" * 4096)


@pytest.fixture(params=["embedsync_inbox", "embedsync_ledger", "library_bookembedding"])
def full(request, drain, disk):
    """A table that is on that disk, which is full; a function that makes room."""
    drain()
    execute(f"ALTER TABLE {request.param} SET TABLESPACE small")
    filler = disk / "filler"
    try:
        fill(filler)
        yield request.param, filler.unlink
    finally:
        filler.unlink(missing_ok=True)
        execute(f"ALTER TABLE {request.param} SET TABLESPACE pg_default")


def test_a_full_disk_fails_no_write_of_the_application(full, worker_process):
    table, make_room = full
    before = marks()
    with Application() as application:
        worker = begin(worker_process, DJANGO_SETTINGS_MODULE="tests.short_lease")
        for number in range(4):
            application.execute(INSERT, [number])
        if table == "embedsync_inbox":
            assert any("could not extend file" in warning for warning in application.warnings)
            assert marks() > before
        else:
            worker.says("No space left on device")
        assert BookEmbedding.objects.count() < 4000
        make_room()
        application.execute(INSERT, ["more"])
    until(is_settled, seconds=60)
    assert worker.process.poll() is None
    assert BookEmbedding.objects.count() == Book.objects.count() == 5000
    assert_in_step(BookEmbedding)
