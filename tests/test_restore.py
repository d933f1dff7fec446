"""pg_dump and its restores: what was owed is still owed, and nothing else is done again.

The steps are those of "Backup and restore" in docs/operations.md.
"""

import os
import re
import shutil
import subprocess

import pytest

from example_project.postgres import PROJECT, VERSIONS
from example_project.postgres_programs import PostgresError, Programs
from tests.migration_project import Project
from tests.shop import TITLE_AND_PLOT as SHAPE
from tests.shop import assert_served, insert
from tests.workers import until

KEY = SHAPE.key
APPS = ("django.contrib.contenttypes", "django.contrib.auth")
COMPARE = "UPDATE embedsync_sidecar SET backfill_after = NULL, backfilled_at = NULL"
EMPTY = (
    "TRUNCATE django_migrations, django_content_type, auth_permission, embedsync_sidecar CASCADE"
)
# Of the triggers; ``migrate`` makes these and those.
FUNCTIONS = "embedsync_capture_"
LEASE = f"from embedsync.queue import Queue; assert Queue('default', 'dead').fold(['{KEY}'], 9)[1]"
PAUSED = {"PGOPTIONS": "-c embedsync.capture=off"}


@pytest.fixture
def postgres_program(project):
    """Run pg_dump, pg_restore or psql on a project's database; all of the server's version."""
    version = project.connection.info.server_version // 10000
    try:
        folder = Programs(PROJECT, version).folder() if version in VERSIONS else None
    except PostgresError:
        folder = None
    if folder is None:
        pytest.skip(f"no programs of PostgreSQL {version} are carried")

    def run(program, where, *arguments, lacking="", **more):
        done = subprocess.run(
            [folder / program, f"--dbname={where.url()}", *arguments],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
        )
        errors = re.findall("error: could not execute query: (.*)", done.stderr)
        assert all(lacking and lacking in error for error in errors), done.stderr
        assert done.returncode == bool(errors), done.stderr

    return run


@pytest.fixture
def another(project, tmp_path):
    """The same code in a new and empty database."""
    another = Project(tmp_path / "another", project.server)
    yield another
    another.remove()


def code_of(project, *search_path):
    """The project's code; its tables are looked for, and made, along this path."""
    path = ",".join(search_path or ["public"])
    project.sql(f"SET search_path = {path}")
    options = {**project.server["OPTIONS"], "options": f"-c search_path={path}"}
    return project.code(
        SHAPE.models,
        apps=APPS,
        database=project.database(OPTIONS=options),
        more="EMBEDSYNC_LEASE = 1.0\n",
    )


def live(project, code):
    """Vectors are there, others are owed: by events, and by leases of a worker that died."""
    insert(project, *(f"Film {n}" for n in range(1, 9)))
    code.drain()
    project.sql("UPDATE shop_movie SET title = 'Leased' WHERE id = 1")
    insert(project, "Leased and new")
    code.run("shell", "-c", LEASE)
    project.sql("UPDATE shop_movie SET plot = 'Queued' WHERE id IN (1, 2)")
    project.sql("DELETE FROM shop_movie WHERE id = 3")
    insert(project, "Queued and new")


def kept(project):
    """When the rows were embedded that nothing is owed for."""
    times = project.embedded_at(SHAPE.sidecar)
    return {pk: times[pk] for pk in range(4, 9)}


def assert_goes_on(project, code, embedded_at):
    """All is in step after a worker has run, nothing was embedded needlessly, writes are seen."""
    code.run("migrate")
    code.is_clean()
    # As after the minute for which the index is left to whoever built the one in the dump.
    project.sql("UPDATE embedsync_sidecar SET index_until = NULL")
    owed = (
        "SELECT sidecar FROM embedsync_inbox UNION ALL SELECT sidecar FROM embedsync_ledger"
        " UNION ALL SELECT key FROM embedsync_sidecar WHERE missed <> missed_seen"
    )
    until(lambda: code.drain() or project.sql(owed) == [])
    assert kept(project) == embedded_at
    assert_served(project, code, SHAPE)
    indexes = "SELECT pg_get_expr(indpred, indrelid), indisvalid FROM pg_index"
    (index,) = project.sql(f"{indexes} WHERE indexrelid = 'shop_movieembedding_hnsw'::regclass")
    assert index == (None, True)


@pytest.fixture
def lived_in(project):
    code = code_of(project)
    code.upgrade()
    live(project, code)
    return project


def moved(project, another, *search_path):
    """The code of ``project`` for the database of ``another``."""
    shutil.copytree(project.migrations, another.migrations, dirs_exist_ok=True)
    return code_of(another, *search_path)


@pytest.fixture
def dump(tmp_path):
    return str(tmp_path / "dump")


forms = pytest.mark.parametrize("form", ["custom", "plain"])


@pytest.fixture
def restore(postgres_program, dump, form):
    """Restore a dump of either form, with options for pg_restore."""

    def run(where, *options, **more):
        if form == "custom":
            postgres_program("pg_restore", where, "--exit-on-error", *options, dump, **more)
        else:
            options = ["--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file", dump]
            postgres_program("psql", where, *options, **more)

    return run


@forms
def test_a_full_restore(lived_in, another, postgres_program, restore, dump, form):
    postgres_program("pg_dump", lived_in, f"--format={form}", f"--file={dump}")
    restore(another)
    assert_goes_on(another, moved(lived_in, another), kept(lived_in))


@pytest.mark.parametrize("form", ["custom"])
@pytest.mark.parametrize(
    "state",
    [
        "backfilled_at = NULL, backfill_after = '8'",
        # The number of a transaction that this server has never seen, nor will for years.
        "missed_seen = nextval('embedsync_missed'), missed_until = 1::bigint << 40",
    ],
    ids=["fill", "mark"],
)
def test_a_comparison_in_hand_goes_on(lived_in, another, postgres_program, restore, dump, state):
    lived_in.sql("SET embedsync.capture = 'off'")
    insert(lived_in, "Not captured")
    lived_in.sql(f"UPDATE embedsync_sidecar SET {state}")
    postgres_program("pg_dump", lived_in, "--format=custom", f"--file={dump}")
    restore(another)
    assert_goes_on(another, moved(lived_in, another), kept(lived_in))


@forms
@pytest.mark.parametrize("triggers", [[], ["--disable-triggers"]], ids=["enabled", "disabled"])
def test_the_data_alone(lived_in, another, postgres_program, restore, dump, form, triggers):
    code = moved(lived_in, another)
    code.run("migrate")
    another.sql(EMPTY)
    # Where there is no pg_restore to be told, pg_dump is.
    options = ["--data-only", *(triggers if form == "plain" else [])]
    postgres_program("pg_dump", lived_in, f"--format={form}", *options, f"--file={dump}")
    restore(another, *triggers, **PAUSED)
    assert another.events(KEY) == lived_in.events(KEY)
    assert_goes_on(another, code, kept(lived_in))


@pytest.mark.parametrize("form", ["custom"])
def test_data_that_was_loaded_without_a_pause(lived_in, another, postgres_program, restore, dump):
    """What the trigger writes collides with restored events, and that is embedsync's own loss."""
    code = moved(lived_in, another)
    code.run("migrate")
    another.sql(EMPTY)
    lived_in.sql("UPDATE embedsync_inbox SET seq = seq - 10")
    postgres_program("pg_dump", lived_in, "--format=custom", "--data-only", f"--file={dump}")
    restore(another)
    assert another.events(KEY) == lived_in.events(KEY)
    assert_goes_on(another, code, kept(lived_in))


def beside_us(project, code):
    """The code of a project whose tables go to ``aside``, and embedsync's to ``public``."""
    code.run("migrate", "embedsync")
    project.sql("CREATE SCHEMA IF NOT EXISTS aside")
    return code_of(project, "aside", "public")


def beside_them(project, code):
    """The code of a project whose tables go to ``public``, and embedsync's to ``aside``."""
    project.sql("CREATE EXTENSION vector; CREATE SCHEMA aside")
    code.run("migrate", "contenttypes")  # which also makes django_migrations, in public
    code_of(project, "aside", "public").run("migrate", "embedsync")
    return code_of(project, "public", "aside")


@pytest.fixture
def beside(project):
    code = code_of(project)
    code.run("makemigrations")
    code = beside_us(project, code)
    code.run("migrate")
    live(project, code)
    return code


def test_a_schema_that_comes_back_into_its_database(project, beside, postgres_program, dump):
    embedded_at = kept(project)
    postgres_program("pg_dump", project, "--format=custom", "--schema=aside", f"--file={dump}")
    project.sql("UPDATE embedsync_ledger SET run_at = now()")
    beside.drain()
    project.sql("UPDATE shop_movie SET title = 'Lost' WHERE id IN (4, 5)")
    beside.drain()
    project.sql("DROP SCHEMA aside CASCADE")
    postgres_program("pg_restore", project, "--exit-on-error", dump)
    project.sql(COMPARE)
    assert_goes_on(project, beside, embedded_at)


def test_a_schema_in_a_new_database(project, beside, another, postgres_program, dump):
    postgres_program("pg_dump", project, "--format=custom", "--schema=aside", f"--file={dump}")
    moved(project, another).run("migrate", "embedsync")
    postgres_program("pg_restore", another, dump, lacking=FUNCTIONS)
    another.sql(COMPARE)
    code = code_of(another, "aside", "public")
    code.run("migrate", "--fake")
    assert_goes_on(another, code, kept(project))


@pytest.fixture
def queue_aside(project):
    code = code_of(project)
    code.run("makemigrations")
    code = beside_them(project, code)
    code.run("migrate")
    live(project, code)
    return code


def test_the_schema_of_the_queue_is_lost_and_comes_back(
    project, queue_aside, postgres_program, dump
):
    embedded_at = kept(project)
    postgres_program("pg_dump", project, "--format=custom", "--schema=aside", f"--file={dump}")
    project.sql("DROP SCHEMA aside CASCADE")
    insert(project, "Nobody sees it")
    postgres_program("pg_restore", project, "--exit-on-error", dump)
    project.sql(COMPARE)
    assert_goes_on(project, queue_aside, embedded_at)


def test_all_schemas_but_that_of_the_queue(project, queue_aside, another, postgres_program, dump):
    postgres_program("pg_dump", project, "--format=custom", f"--file={dump}")
    code = beside_them(another, moved(project, another))
    another.sql("DROP TABLE django_migrations, django_content_type")
    postgres_program("pg_restore", another, "--schema=public", dump, lacking=FUNCTIONS)
    another.sql(COMPARE)
    assert_goes_on(another, code, kept(project))


COMPOSITE = """
class Screen(models.Model):
    pk = models.CompositePrimaryKey("cinema", "number")
    cinema = models.IntegerField()
    number = models.IntegerField()
    name = models.TextField()

    embedding = Embedding("name")
"""


@pytest.mark.parametrize("what", [["shop"], []], ids=["app", "everything"])
def test_fixtures(project, tmp_path, what):
    """Of an app, and of all there is; the key of a source may be composite."""
    code = project.code(COMPOSITE + SHAPE.models)
    code.upgrade()
    insert(project, "A film", "Another")
    project.sql("INSERT INTO shop_screen VALUES (1, 2, 'The large one')")
    code.drain()
    sidecars = ["shop_movieembedding", "shop_screenembedding"]
    for sidecar in sidecars:
        project.sql(f"UPDATE {sidecar} SET embedded_at = '2020-01-01'")
    insert(project, "Owed")
    code.run("shell", "-c", LEASE)
    kept = [
        f"SELECT * FROM {each} WHERE embedded_at = '2020-01-01' ORDER BY digest"
        for each in sidecars
    ]
    before = [project.sql(rows) for rows in kept]
    fixture = str(tmp_path / "fixture.json")
    code.run("dumpdata", *what, "--output", fixture)
    code.run("flush", "--no-input")
    code.run("loaddata", fixture)
    project.sql("UPDATE embedsync_ledger SET run_at = now()")
    code.drain()
    assert [project.sql(rows) for rows in kept] == before
    assert code.run("embed_sweep").count(" 0 missing, 0 stale, 0 orphaned, 0 waiting") == 2
