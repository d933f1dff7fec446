"""Changes that are replicated or restored: most triggers do not fire, ``capture="always"`` does."""

import os
import subprocess

import psycopg
import pytest
from django.db import connection

from embedsync.capture import LEVELS
from embedsync.triggers import renew_triggers, trigger_states
from example_project.postgres import PROJECT, VERSIONS, Cluster
from example_project.postgres_programs import PostgresError, Programs
from tests.application import compare_all
from tests.books import KEY, BookEmbedding, execute
from tests.embedded import VERSION, room_for_clusters
from tests.levels import captured, events, settle
from tests.library.models import Book
from tests.migration_project import Project
from tests.shop import DECLARED, Shape, assert_in_step, insert, movie
from tests.sync import assert_in_step as books_in_step
from tests.workers import until


def write_books():
    """Changes of books 1, 2, 3 and 4, and one of book 5 that is no event."""
    Book.objects.bulk_create([Book(id=4, title="new")])
    Book.objects.filter(pk=1).update(title="changed")
    Book.objects.filter(pk=2).update(year=1999, published=False)
    Book.objects.filter(pk=3).delete()
    Book.objects.filter(pk=5).update(year=1999)


def states(key=KEY):
    return {state.state for state in trigger_states("default") if state.key == key}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("level", LEVELS)
class TestSwitchedOff:
    @pytest.fixture(autouse=True)
    def books(self, transactional_db, level, drain):
        with captured(level, BookEmbedding):
            Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in (1, 2, 3, 5)])
            drain()
            yield

    def test_the_session_of_a_replica(self, drain, level):
        execute("SET session_replication_role = replica")
        write_books()
        execute("RESET session_replication_role")
        assert events(KEY) == (["1", "2", "3", "4"] if level == "always" else [])
        compare_all()
        drain()
        books_in_step(BookEmbedding)
        execute("SET session_replication_role = replica")
        execute("TRUNCATE library_book")
        execute("RESET session_replication_role")
        assert events(KEY) == ([None] if level == "always" else [])

    def test_triggers_that_are_disabled_and_enabled_again(self, drain, level):
        """What ``pg_restore --disable-triggers`` does, which turns ALWAYS into an ordinary one."""
        execute("ALTER TABLE library_book DISABLE TRIGGER ALL")
        write_books()
        assert events(KEY) == []
        assert states() == {"disabled"}
        execute("ALTER TABLE library_book ENABLE TRIGGER ALL")
        assert states() == {"outdated" if level == "always" else "installed"}
        renew_triggers(using="default")
        assert states() == {"installed"}
        compare_all()
        drain()
        books_in_step(BookEmbedding)
        execute("UPDATE library_book SET title = 'again' WHERE id = 1")
        assert events(KEY) == ["1"]


def shape(level):
    return Shape(movie(f'embedding = Embedding("title", capture="{level}")'))


@pytest.mark.parametrize("level", ["statement", "always"])
def test_a_restore_of_data_with_triggers_disabled(project, tmp_path, level):
    version = project.connection.info.server_version // 10000
    try:
        programs = Programs(PROJECT, version).folder() if version in VERSIONS else None
    except PostgresError:
        programs = None
    if programs is None:
        pytest.skip(f"no programs of PostgreSQL {version} are carried")
    code = project.code(shape(level).models)
    code.upgrade()
    insert(project, "Alien", "Brazil")
    dump = ["--data-only", "--table=shop_movie", "-Fc", f"--file={tmp_path / 'dump'}"]
    restore = ["--data-only", "--disable-triggers", tmp_path / "dump"]
    run = [f"--dbname={project.url()}"]
    subprocess.run([programs / "pg_dump", *run, *dump], check=True, env={**os.environ})
    code.drain()
    project.sql("DELETE FROM shop_movie WHERE title = 'Alien'")
    project.sql("UPDATE shop_movie SET id = 3, title = 'Casablanca'")
    code.drain()
    project.sql("DELETE FROM shop_movie WHERE id = 1")
    subprocess.run([programs / "pg_restore", *run, *restore], check=True, env={**os.environ})
    assert project.events(DECLARED.key) == []
    code.run("migrate")
    project.sql("UPDATE embedsync_sidecar SET backfill_after = NULL, backfilled_at = NULL")
    code.drain()
    assert len(project.vectors(DECLARED.sidecar)) == 3
    assert_in_step(project, DECLARED)


@pytest.fixture(scope="module")
def cluster():
    """A server that can publish and subscribe; large transactions are sent while they go on."""
    with room_for_clusters() as folder:
        cluster = Cluster(folder / "logical", VERSION, fsync=False)
        try:
            cluster.start()
            with psycopg.connect(cluster.url(), autocommit=True) as server:
                server.execute("ALTER SYSTEM SET wal_level = logical")
                server.execute("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
            cluster.stop()
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


class Subscriber:
    """A project that subscribes to the movies of a publisher, another database of the server."""

    def __init__(self, cluster, folder, level):
        host, port = cluster.socket()
        server = {**connection.settings_dict, "HOST": host, "PORT": port, "USER": "postgres"}
        self.project = Project(folder, {**server, "PASSWORD": "", "OPTIONS": {}})
        self.name = f"pub_{self.project.name}"
        cluster.create_database(self.name)
        self.publisher = psycopg.connect(cluster.url(self.name), autocommit=True)
        self.code = self.project.code(shape(level).models)
        self.code.upgrade()
        self.publish(
            "CREATE TABLE shop_movie (id bigint PRIMARY KEY, title text, plot text, year int);"
            "INSERT INTO shop_movie SELECT n, 'Film ' || n, '-', 2000"
            " FROM generate_series(1, 50) AS n;"
            "CREATE PUBLICATION movies FOR TABLE shop_movie"
        )

    def publish(self, sql):
        self.publisher.execute(sql)

    def subscribe(self):
        """Subscribe, and wait for the first copy of the table."""
        # Made beforehand: on the same server CREATE SUBSCRIPTION would wait for itself.
        self.publish(f"SELECT pg_create_logical_replication_slot('{self.name}', 'pgoutput')")
        where = " ".join(f"{k}={v}" for k, v in self.publisher.info.get_parameters().items())
        self.project.sql(
            f"CREATE SUBSCRIPTION movies CONNECTION '{where}' PUBLICATION movies"
            f" WITH (create_slot = false, slot_name = '{self.name}', streaming = parallel)"
        )
        until(lambda: self.project.sql("SELECT 1 FROM pg_subscription_rel WHERE srsubstate = 'r'"))

    def is_in_step(self):
        rows = "SELECT * FROM shop_movie ORDER BY id"
        return self.project.sql(rows) == self.publisher.execute(rows).fetchall()

    def events(self):
        """The keys of the events once all has arrived, each once, sorted. They go."""
        until(self.is_in_step)
        keys = {key for _, key in self.project.events(DECLARED.key)}
        self.project.sql("DELETE FROM embedsync_inbox")
        return sorted(keys, key=str)

    def compare_all(self):
        self.project.sql("UPDATE embedsync_sidecar SET backfill_after = NULL, backfilled_at = NULL")
        self.assert_vectors()

    def assert_vectors(self):
        until(self.is_in_step)
        self.code.drain()
        assert_in_step(self.project, DECLARED)

    def remove(self):
        self.project.sql("DROP SUBSCRIPTION IF EXISTS movies")
        self.project.remove()
        self.publisher.close()


@pytest.fixture
def subscriber(cluster, tmp_path, level):
    subscriber = Subscriber(cluster, tmp_path, level)
    yield subscriber
    subscriber.remove()


CHANGES = {
    "INSERT INTO shop_movie VALUES (51, 'new', '-', 1), (52, 'new', '-', 1)": ["51", "52"],
    "UPDATE shop_movie SET title = 'changed' WHERE id < 4": ["1", "2", "3"],
    "UPDATE shop_movie SET year = 1999": [],
    "UPDATE shop_movie SET id = 99 WHERE id = 9": ["9", "99"],
    "DELETE FROM shop_movie WHERE id IN (5, 6)": ["5", "6"],
    "INSERT INTO shop_movie SELECT n, 'Film ' || n, '-', 1 FROM generate_series(1000, 3999) AS n": [
        str(n) for n in range(1000, 4000)
    ],
}


@pytest.mark.parametrize("level", ["statement", "row"])
def test_a_subscriber_captures_nothing_and_a_comparison_finds_it_all(subscriber):
    subscriber.subscribe()
    assert subscriber.events() == []
    subscriber.compare_all()
    for change in CHANGES:
        subscriber.publish(change)
    assert subscriber.events() == []
    subscriber.compare_all()
    subscriber.publish("TRUNCATE shop_movie")
    assert subscriber.events() == []
    subscriber.compare_all()


@pytest.mark.parametrize("level", ["always"])
class TestAlways:
    def test_a_subscriber_captures_the_first_copy_and_each_change(self, subscriber):
        subscriber.subscribe()
        assert subscriber.events() == sorted(str(n) for n in range(1, 51))
        subscriber.compare_all()
        for change, keys in CHANGES.items():
            subscriber.publish(change)
            assert subscriber.events() == sorted(keys)
        subscriber.compare_all()
        subscriber.publish("TRUNCATE shop_movie")
        assert subscriber.events() == [None]

    def test_vectors_follow_without_a_comparison(self, subscriber):
        subscriber.code.drain()
        subscriber.subscribe()
        subscriber.assert_vectors()
        for change in CHANGES:
            subscriber.publish(change)
            subscriber.publish("BEGIN; UPDATE shop_movie SET title = 'lost'; ROLLBACK")
        subscriber.assert_vectors()
        subscriber.publish("TRUNCATE shop_movie")
        subscriber.assert_vectors()

    def test_a_locked_inbox_does_not_stop_replication(self, subscriber):
        subscriber.code.drain()
        subscriber.subscribe()
        subscriber.assert_vectors()
        with subscriber.project.connect() as other, other.transaction():
            other.execute("LOCK TABLE embedsync_inbox")
            subscriber.publish("UPDATE shop_movie SET title = 'unseen'")
            until(subscriber.is_in_step)
        assert subscriber.events() == []
        settle(subscriber.project, subscriber.code)
        assert_in_step(subscriber.project, DECLARED)
