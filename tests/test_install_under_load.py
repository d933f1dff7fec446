"""Installing and uninstalling beside writers: nobody waits for long, and no row is forgotten."""

import itertools
import os
import threading

import pytest

from tests.application import Application
from tests.migration_project import CommandFailedError
from tests.shop import DECLARED, PLAIN, assert_in_step, insert
from tests.workers import WorkerProcess, until

pytestmark = pytest.mark.django_db

PATIENT = {"options": "-c lock_timeout=200ms"}


def write(client, stopping):
    """Insert, update and delete, one row a statement, until told to stop."""
    for number in itertools.count():
        if stopping.wait(0.005):
            return
        (key,) = client.execute(
            "INSERT INTO shop_movie (title, plot, year) VALUES (%s, '', 1) RETURNING id",
            [f"New {number}"],
        ).fetchone()
        client.execute("UPDATE shop_movie SET title = title || '!' WHERE id = %s", [key - 5])
        client.execute("DELETE FROM shop_movie WHERE id = %s", [key - 20])


def locks_tried(project):
    """Whether a migration waits for a lock on the source."""
    return project.sql(
        "SELECT 1 FROM pg_locks WHERE relation = 'shop_movie'::regclass AND NOT granted"
        " AND mode <> 'RowExclusiveLock'"
    )


class Migration(threading.Thread):
    """A command of a project that runs beside the test."""

    def __init__(self, code, *argv):
        super().__init__(daemon=True)
        self.code, self.argv, self.error = code, argv, None

    def run(self):
        try:
            self.code.run(*self.argv)
        except CommandFailedError as error:
            self.error = error


@pytest.fixture
def load(project):
    """Writers at work, and a transaction that has written to the source and does not end."""
    plain = project.code(PLAIN.models)
    plain.upgrade()
    insert(project, *[f"Film {n}" for n in range(50)])
    stopping = threading.Event()
    with Application(connect=project.connect) as application:
        writers = [
            threading.Thread(target=write, args=[application.client(), stopping], daemon=True)
            for _ in range(2)
        ]
        for writer in writers:
            writer.start()
        with project.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("UPDATE shop_movie SET year = 1999 WHERE id = 1")
            yield holder
            holder.execute("COMMIT")
        stopping.set()
        for writer in writers:
            writer.join()
        made = sum("INSERT" in statement.sql for statement in application.made)
        assert made > 50


def test_a_declaration_comes_while_others_write(project, load):
    """Fault 54: the migration waits for the long transaction, and the writers not for it."""
    declared = project.code(DECLARED.models)
    declared.run("makemigrations")
    migration = Migration(declared, "migrate")
    migration.start()
    tries = 0
    while tries < 3:
        until(lambda: locks_tried(project))
        until(lambda: not locks_tried(project))
        tries += 1
    assert migration.is_alive()
    load.execute("COMMIT")
    load.execute("BEGIN")
    migration.join(60)
    assert not migration.is_alive()
    assert migration.error is None
    assert project.triggers() == [("shop_movie", DECLARED.key, 4)]
    until(lambda: len(project.events(DECLARED.key)) > 20)


def test_no_row_is_forgotten_between_trigger_and_fill(project):
    plain, declared = project.code(PLAIN.models), project.code(DECLARED.models)
    plain.upgrade()
    insert(project, *[f"Film {n}" for n in range(50)])
    stopping = threading.Event()
    with Application(connect=project.connect) as application:
        writer = threading.Thread(target=write, args=[application.client(), stopping], daemon=True)
        writer.start()
        declared.upgrade()
        until(lambda: len(project.events(DECLARED.key)) > 20)
        stopping.set()
        writer.join()
    declared.drain()
    assert_in_step(project, DECLARED)


def test_a_declaration_goes_while_others_write_and_a_worker_works(project, load):
    """Fault 54: a stock migration, made patient as the docs say; the worker says why it ends."""
    load.execute("COMMIT")
    declared = project.code(DECLARED.models)
    declared.upgrade()
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": str(project.folder),
    }
    worker = WorkerProcess([], environment)
    worker.says("serving")
    load.execute("BEGIN")
    load.execute("UPDATE shop_movie SET year = 1999 WHERE id = 1")
    gone = project.code(PLAIN.models, database=project.database(OPTIONS=PATIENT))
    gone.run("makemigrations")
    assert "lock timeout" in gone.fail("migrate")
    load.execute("COMMIT")
    load.execute("BEGIN")

    def migrated():
        try:
            gone.run("migrate")
        except CommandFailedError as error:
            if "lock timeout" not in str(error):
                raise
            return False
        return True

    try:
        until(migrated)
        status, output = worker.wait()
    finally:
        worker.kill()
    assert (status, "is not served" in output, "Traceback" in output) == (1, True, False)
    assert project.triggers() == project.known() == []
