"""Two installations side by side: in two schemas of a database, in two databases of a server."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest

from tests.application import Application
from tests.migration_project import Code, Project, vectors_of
from tests.shop import DECLARED
from tests.workers import until

INSERT = "INSERT INTO shop_movie (title, plot, year) VALUES (%s, '-', 2000)"


@dataclass
class Installation:
    """A project's code, and how to connect to what it sees."""

    code: Code
    connect: partial

    def query(self, sql):
        with self.connect() as opened:
            cursor = opened.execute(sql)
            return cursor.fetchall() if cursor.description else None

    def events(self):
        return self.query("SELECT kind, source_pk FROM embedsync_inbox ORDER BY seq")

    def marks(self):
        return self.query("SELECT last_value, is_called FROM embedsync_missed")

    def vectors(self):
        return dict(self.query(f"SELECT source_id, vector::text FROM {DECLARED.sidecar}"))

    def is_in_step(self):
        found = dict(self.query(f"SELECT source_id, vector::real[] FROM {DECLARED.sidecar}"))
        expected = vectors_of(dict(self.query("SELECT id, title FROM shop_movie")))
        return found == expected and not self.owed()

    def owed(self):
        return self.events() or self.query("SELECT * FROM embedsync_ledger")


@pytest.fixture
def schemas(project):
    """Two installations in one database, each with a search_path of its own."""
    project.sql("CREATE EXTENSION vector")

    def install(schema):
        project.sql(f"CREATE SCHEMA {schema}")
        options = {"options": f"-c search_path={schema},public"}
        database = project.database(OPTIONS={**project.server["OPTIONS"], **options})
        code = project.code(DECLARED.models, database=database)
        return Installation(code, partial(project.connect, **options))

    first, second = install("first"), install('"Second"')
    first.code.upgrade()
    second.code.run("migrate")
    return first, second


@pytest.fixture
def databases(project, tmp_path_factory):
    """Two installations, each in a database of its own."""
    other = Project(tmp_path_factory.mktemp("other"), project.server)
    found = [Installation(each.code(DECLARED.models), each.connect) for each in (project, other)]
    for each in found:
        each.code.upgrade()
    yield found
    other.remove()


@pytest.fixture(params=["schemas", "databases"])
def neighbours(request):
    return request.getfixturevalue(request.param)


def drain_both(installations):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: each.code.drain(), installations))


def test_neighbours_have_nothing_to_do_with_each_other(neighbours):
    """Fault 51: not in what is captured, embedded, truncated, compared or removed."""
    first, second = neighbours
    with (
        Application(connect=first.connect) as ours,
        Application(connect=second.connect) as theirs,
    ):
        for n in (1, 2, 3):
            ours.execute(INSERT, [f"ours {n}"])
        for n in (1, 2):
            theirs.execute(INSERT, [f"theirs {n}"])
        assert first.events() == [("row", "1"), ("row", "2"), ("row", "3")]
        assert second.events() == [("row", "1"), ("row", "2")]

        first.code.drain()
        assert first.is_in_step()
        assert (len(second.events()), second.vectors()) == (2, {})
        second.code.drain()
        assert first.is_in_step()
        assert second.is_in_step()

        ours.execute("TRUNCATE shop_movie RESTART IDENTITY")
        ours.execute(INSERT, ["ours again"])
        assert second.owed() == []
        drain_both(neighbours)
        assert len(first.vectors()) == 1
        assert len(second.vectors()) == 2
        assert first.is_in_step()
        assert second.is_in_step()


def test_a_locked_queue_is_its_own_applications_matter(neighbours):
    """Fault 51: the neighbour's changes are captured, and nothing of it is compared."""
    first, second = neighbours
    first.code.drain()
    second.code.drain()
    before = second.marks()
    embedded = second.query("SELECT backfilled_at FROM embedsync_sidecar")
    with (
        Application(connect=first.connect) as ours,
        Application(connect=second.connect) as theirs,
        first.connect() as owner,
    ):
        owner.execute("BEGIN")
        owner.execute("LOCK TABLE embedsync_inbox IN ACCESS EXCLUSIVE MODE")
        ours.execute(INSERT, ["not captured"])
        theirs.execute(INSERT, ["captured"])
        owner.execute("ROLLBACK")
        assert len(ours.warnings) == 1
        assert theirs.warnings == []
    assert first.events() == []
    assert second.events() == [("row", "1")]
    until(lambda: drain_both(neighbours) or first.is_in_step())
    assert second.is_in_step()
    assert second.marks() == before
    assert second.query("SELECT backfilled_at FROM embedsync_sidecar") == embedded


def test_one_of_two_neighbours_moves_out(neighbours):
    """Fault 51: its triggers and its state go, the other's stay."""
    first, second = neighbours
    with Application(connect=second.connect) as theirs:
        theirs.execute(INSERT, ["theirs"])
        first.code.run("migrate", "shop", "zero")
        first.code.run("migrate", "embedsync", "zero")
        theirs.execute(INSERT, ["theirs too"])
        assert second.events() == [("row", "1"), ("row", "2")]
        assert theirs.warnings == []
    second.code.drain()
    assert second.is_in_step()


def test_a_change_goes_to_the_queue_beside_its_table(schemas):
    """Fault 51: whatever the search_path of the session that makes it is."""
    first, second = schemas
    with Application(connect=second.connect) as theirs:
        theirs.execute(INSERT.replace("shop_movie", "first.shop_movie"), ["from outside"])
    assert first.events() == [("row", "1")]
    assert second.events() == []
    drain_both(schemas)
    assert first.is_in_step()
    assert second.is_in_step()
