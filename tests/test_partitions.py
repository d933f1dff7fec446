"""Partitioned sources and inheritance children: what is captured, and what a comparison finds."""

import psycopg
import pytest
from django.db import connection

from tests.migration_project import Project, vectors_of
from tests.shop import DECLARED, Shape, assert_in_step, movie

KEY = "shop.filmembedding"
FILMS = Shape("", texts="SELECT id, title FROM shop_film", table="shop_film", key=KEY)

TABLES = """
CREATE TABLE shop_film (
    id bigint, title text NOT NULL, year int, genre text DEFAULT 'drama', votes int DEFAULT 0,
    PRIMARY KEY (id, year, genre)
) PARTITION BY RANGE (year);
CREATE TABLE film_old PARTITION OF shop_film FOR VALUES FROM (1900) TO (1950);
CREATE TABLE film_mid PARTITION OF shop_film FOR VALUES FROM (1950) TO (2000)
    PARTITION BY LIST (genre);
CREATE TABLE film_mid_drama PARTITION OF film_mid FOR VALUES IN ('drama');
CREATE TABLE film_mid_rest PARTITION OF film_mid DEFAULT;
CREATE TABLE film_new PARTITION OF shop_film FOR VALUES FROM (2000) TO (2100);
INSERT INTO shop_film VALUES
    (1, 'one', 1920, 'drama'), (2, 'two', 1960, 'drama'),
    (3, 'three', 1970, 'noir'), (4, 'four', 2010, 'drama');
"""
# A partition made elsewhere: its columns stand in another order, and one is gone.
NEXT = """
CREATE TABLE film_next (
    gone text, votes int DEFAULT 0, title text NOT NULL, genre text NOT NULL DEFAULT 'drama',
    year int NOT NULL, id bigint NOT NULL);
ALTER TABLE film_next DROP COLUMN gone;
INSERT INTO film_next (id, title, year) VALUES (5, 'five', 2150);
"""
ATTACH = "ALTER TABLE shop_film ATTACH PARTITION film_next FOR VALUES FROM (2100) TO (2200)"


def models(level, key=""):
    return f"""
class Film(EmbeddedModel):
    {key}
    title = models.TextField()
    year = models.IntegerField()
    genre = models.TextField(default="drama")
    votes = models.IntegerField(default=0)
    embedding = Embedding("title", capture="{level}")
    class Meta:
        managed = False
        db_table = "shop_film"
"""


def install(project, level, key=""):
    """A project whose films are in a partitioned table, in step."""
    project.sql(TABLES)
    code = project.code(models(level, key))
    code.upgrade()
    code.run("check", "--database", "default")
    code.drain()
    return code


@pytest.fixture(scope="module")
def films(postgres, tmp_path_factory):
    """Two projects with the same films, captured by statement and by row."""
    projects = {}
    try:
        for level in ("statement", "row"):
            project = Project(tmp_path_factory.mktemp(level), connection.settings_dict)
            projects[level] = project
            install(project, level)
        yield projects
    finally:
        for project in projects.values():
            project.remove()


def copy_into(table, rows):
    def copied(session):
        with session.cursor().copy(f"COPY {table} (id, title, year) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    return copied


def merge_into(table, new):
    return (
        f"MERGE INTO {table} f USING (VALUES (1), (2), (4), (9)) AS given(id) ON f.id = given.id"
        " WHEN MATCHED AND f.id = 1 THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET title = 'merged'"
        f" WHEN NOT MATCHED AND given.id = 9 THEN INSERT (id, title, year) VALUES (9, 'x', {new})"
    )


MANY = [(n, f"Film {n}", 1900 + n % 200) for n in range(1000, 11_000)]
ALL_THESE = sorted(str(n) for n, *_ in MANY)
# By way of the parent: what is done, and the keys of its events.
THROUGH_THE_PARENT = {
    "INSERT": (
        "INSERT INTO shop_film VALUES (7, 'a', 1930), (8, 'b', 1960), (9, 'c', 2020)",
        ["7", "8", "9"],
    ),
    "COPY of many rows": (copy_into("shop_film", MANY), ALL_THESE),
    "upsert": (
        "INSERT INTO shop_film VALUES (1, 'x', 1920, 'drama'), (9, 'x', 1990, 'noir')"
        " ON CONFLICT (id, year, genre) DO UPDATE SET title = excluded.title",
        ["1", "9"],
    ),
    "MERGE": (merge_into("shop_film", 1990), ["1", "2", "4", "9"]),
    "UPDATE": ("UPDATE shop_film SET title = title || '!'", ["1", "2", "3", "4"]),
    "UPDATE of another column": ("UPDATE shop_film SET votes = 9", []),
    "a row that moves and changes": (
        "UPDATE shop_film SET year = 2015, title = 'x' WHERE id = 1",
        ["1"],
    ),
    "another key": ("UPDATE shop_film SET id = 9 WHERE id = 4", ["4", "9"]),
    "another key that moves": ("UPDATE shop_film SET id = 9, year = 1999 WHERE id = 4", ["4", "9"]),
    "DELETE": ("DELETE FROM shop_film WHERE id IN (1, 3)", ["1", "3"]),
    "TRUNCATE": ("TRUNCATE shop_film", [None]),
}
# Past the parent: statement triggers see nothing of it.
DIRECTLY = {
    "INSERT": ("INSERT INTO film_new VALUES (9, 'x', 2020)", ["9"]),
    "INSERT two levels below": (
        "INSERT INTO film_mid VALUES (8, 'x', 1980);"
        "INSERT INTO film_mid_drama VALUES (9, 'x', 1990)",
        ["8", "9"],
    ),
    "COPY": (copy_into("film_new", [(n, "x", 2050) for n in (7, 8, 9)]), ["7", "8", "9"]),
    "upsert": (
        "INSERT INTO film_new VALUES (4, 'x', 2010), (9, 'x', 2020)"
        " ON CONFLICT (id, year, genre) DO UPDATE SET title = excluded.title",
        ["4", "9"],
    ),
    "MERGE": (merge_into("film_new", 2020), ["4", "9"]),
    "UPDATE": ("UPDATE film_mid SET title = 'x'", ["2", "3"]),
    "a row that moves between partitions of a partition": (
        "UPDATE film_mid SET genre = 'noir' WHERE id = 2",
        ["2"],
    ),
    "another key": ("UPDATE film_new SET id = 9", ["4", "9"]),
    "DELETE": ("DELETE FROM film_mid_rest", ["3"]),
}


def keys_of(project, way):
    """The keys of the events that something makes; it is undone."""
    with project.connection.transaction(force_rollback=True):
        project.sql("DELETE FROM embedsync_inbox")
        way(project.connection) if callable(way) else project.sql(way)
        return sorted({key for _, key in project.events(KEY)}, key=str)


@pytest.mark.parametrize("level", ["statement", "row"])
@pytest.mark.parametrize("road", THROUGH_THE_PARENT)
def test_what_goes_through_the_parent_is_captured(films, level, road):
    way, keys = THROUGH_THE_PARENT[road]
    assert keys_of(films[level], way) == keys


@pytest.mark.parametrize("road", DIRECTLY)
def test_what_goes_directly_into_a_partition_needs_row_triggers(films, road):
    way, keys = DIRECTLY[road]
    assert keys_of(films["row"], way) == keys
    assert keys_of(films["statement"], way) == []


def test_a_row_that_only_moves_is_captured_for_nothing_at_the_worst(films):
    moved = "UPDATE shop_film SET year = 2015 WHERE id = 1"
    assert keys_of(films["statement"], moved) == []
    assert keys_of(films["row"], moved) == ["1"]  # PostgreSQL makes it a DELETE and an INSERT


@pytest.mark.parametrize("level", ["statement", "row"])
def test_a_truncated_partition_is_not_seen(films, level):
    assert keys_of(films[level], "TRUNCATE film_new") == []
    assert keys_of(films[level], "TRUNCATE film_mid_drama") == []


def compare_all(project, code):
    project.sql("UPDATE embedsync_sidecar SET backfill_after = NULL, backfilled_at = NULL")
    code.drain()
    assert_in_step(project, FILMS)


def changes_directly(project, table, new):
    """An INSERT, an UPDATE and a DELETE in a partition; the keys of rows."""
    (gone,), (kept,) = project.sql(f"SELECT id FROM {table} ORDER BY id LIMIT 2")
    project.sql(f"UPDATE {table} SET title = title || ' anew' WHERE id = %s", kept)
    project.sql(f"DELETE FROM {table} WHERE id = %s", gone)
    project.sql(f"INSERT INTO {table} (id, title, year) VALUES (99, 'new', %s)", new)
    return [("row", str(kept)), ("row", str(gone)), ("row", "99")]


def test_statement_triggers_miss_direct_writes_and_a_comparison_finds_them(project):
    code = install(project, "statement")
    project.sql("INSERT INTO film_new VALUES (6, 'six', 2020)")
    code.drain()
    changes_directly(project, "film_new", 2030)
    project.sql("TRUNCATE film_mid_drama")
    assert project.events(KEY) == []
    compare_all(project, code)


@pytest.mark.parametrize("level", ["row", "always"])
def test_a_partition_that_is_attached_later(project, level):
    code = install(project, level)
    project.sql(NEXT + ATTACH)
    assert project.events(KEY) == []
    compare_all(project, code)
    project.sql("INSERT INTO film_next (id, title, year) VALUES (6, 'six', 2160)")
    made = changes_directly(project, "film_next", 2170)
    assert project.events(KEY) == [("row", "6"), *made]
    code.drain()
    assert_in_step(project, FILMS)
    enabled = project.sql("SELECT DISTINCT tgenabled FROM pg_trigger WHERE NOT tgisinternal")
    assert enabled == [("A" if level == "always" else "O",)]
    project.sql("CREATE TABLE film_last PARTITION OF shop_film FOR VALUES FROM (2200) TO (2300)")
    project.sql("INSERT INTO film_last VALUES (7, 'seven', 2200)")
    code.drain()
    assert_in_step(project, FILMS)


def test_partitions_that_go(project):
    code = install(project, "row")
    project.sql("ALTER TABLE shop_film DETACH PARTITION film_new")
    project.sql("UPDATE film_new SET title = 'not ours'")
    project.sql("DROP TABLE film_old")
    project.sql("TRUNCATE film_mid_drama")
    assert project.events(KEY) == []
    assert project.sql(
        "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
    ) == [("film_mid",), ("film_mid_drama",), ("film_mid_rest",), ("shop_film",)]
    compare_all(project, code)
    assert [*project.vectors(FILMS.sidecar)] == [3]


def test_writes_from_django(project):
    code = install(project, "row")
    code.run(
        "shell",
        "-c",
        "from shop.models import Film\n"
        "Film.objects.bulk_create([Film(id=n, title=f'Film {n}', year=1900 + n)"
        " for n in range(10, 190)])\n"
        "films = list(Film.objects.filter(id__lt=100))\n"
        "for film in films: film.title += '!'\n"
        "Film.objects.bulk_update(films, ['title'])\n"
        "Film.objects.filter(id__gte=150).delete()\n"
        "Film.objects.filter(id=1).update(year=2020, title='moved')",
    )
    code.drain()
    assert_in_step(project, FILMS)


def test_a_key_that_is_not_unique_harms_itself_alone(project):
    """Django knows the id alone; PostgreSQL wants the partition's columns in the primary key."""
    code = install(project, "row")
    project.sql("INSERT INTO shop_film VALUES (5, 'five', 1930), (5, 'also five', 2030)")
    project.sql("INSERT INTO shop_film VALUES (6, 'six', 1930)")
    code.drain()
    vectors = project.vectors(FILMS.sidecar)
    assert vectors.pop(5) in vectors_of({1: "five", 2: "also five"}).values()
    texts = dict(project.sql("SELECT id, title FROM shop_film WHERE id <> 5"))
    assert vectors == vectors_of(texts)
    assert project.sql("SELECT * FROM embedsync_ledger") == []
    project.sql("DELETE FROM shop_film WHERE id = 5 AND year = 2030")
    code.drain()
    assert_in_step(project, FILMS)


def test_the_whole_key_may_be_declared(project):
    code = install(
        project,
        "row",
        'pk = models.CompositePrimaryKey("id", "year", "genre")\n    id = models.BigIntegerField()',
    )

    def assert_all_in_step():
        code.drain()
        stored = project.sql(
            "SELECT source_id || '/' || source_year || '/' || source_genre, vector::float4[]"
            f" FROM {FILMS.sidecar}"
        )
        texts = project.sql("SELECT id || '/' || year || '/' || genre, title FROM shop_film")
        assert dict(stored) == vectors_of(dict(texts))

    project.sql(
        "INSERT INTO shop_film VALUES (1, 'another', 1950, 'drama'), (9, 'nine', 2050, 'noir')"
    )
    assert_all_in_step()
    project.sql("UPDATE shop_film SET year = 2001 WHERE id = 3")
    keys = [key for _, key in project.events(KEY)]
    assert sorted(keys) == ['["3", "1970", "noir"]', '["3", "2001", "noir"]']
    project.sql("DELETE FROM film_mid_drama; UPDATE film_new SET title = 'x'")
    assert_all_in_step()


def test_a_migrated_table_that_becomes_a_partition_of_its_successor(project):
    code = project.code(movie('embedding = Embedding("title", capture="row")'))
    code.upgrade()
    project.sql("INSERT INTO shop_movie VALUES (1, 'one', '-', 1920), (2, 'two', '-', 1960)")
    code.drain()
    project.sql(
        "ALTER TABLE shop_movie ALTER id DROP IDENTITY;"
        "ALTER TABLE shop_movie RENAME TO movie_old;"
        "ALTER TABLE movie_old DROP CONSTRAINT shop_movie_pkey, ADD PRIMARY KEY (id, year);"
        "CREATE TABLE shop_movie (LIKE movie_old, PRIMARY KEY (id, year))"
        " PARTITION BY RANGE (year);"
        "ALTER TABLE shop_movie ATTACH PARTITION movie_old FOR VALUES FROM (1900) TO (2000);"
        "CREATE TABLE movie_new PARTITION OF shop_movie FOR VALUES FROM (2000) TO (2100)"
    )
    project.sql("INSERT INTO movie_new VALUES (3, 'unseen', '-', 2050)")
    code.run("migrate")
    project.sql("INSERT INTO movie_new VALUES (4, 'four', '-', 2050)")
    project.sql("UPDATE movie_old SET title = 'changed' WHERE id = 1")
    assert project.events(DECLARED.key) == [("row", "4"), ("row", "1")]
    code.drain()
    assert_in_step(project, DECLARED)


@pytest.mark.parametrize("level", ["statement", "row"])
def test_inheritance_children(project, level):
    """Only statement triggers see a child's rows, and only where a statement names the parent."""
    code = project.code(movie(f'embedding = Embedding("title", capture="{level}")'))
    code.upgrade()
    project.sql("CREATE TABLE remake (of bigint) INHERITS (shop_movie)")
    project.sql("INSERT INTO remake VALUES (1, 'one', '-', 2000), (2, 'two', '-', 2000)")
    project.sql("UPDATE remake SET title = 'zwei' WHERE id = 2")
    assert project.events(DECLARED.key) == []
    code.drain()
    assert project.vectors(DECLARED.sidecar) == {}
    project.sql("UPDATE shop_movie SET title = 'three' WHERE id = 1")
    project.sql("DELETE FROM shop_movie WHERE id = 2")
    seen = [("row", "1"), ("row", "2")] if level == "statement" else []
    assert project.events(DECLARED.key) == seen
    project.sql("UPDATE embedsync_sidecar SET backfill_after = NULL, backfilled_at = NULL")
    code.drain()
    assert_in_step(project, DECLARED)


def test_a_table_is_not_refused_as_a_partition_because_of_our_triggers(project):
    code = project.code(movie('embedding = Embedding("title")'))
    code.upgrade()
    project.sql("ALTER TABLE shop_movie ALTER id DROP IDENTITY")
    project.sql("CREATE TABLE every (LIKE shop_movie) PARTITION BY RANGE (year)")
    project.sql("ALTER TABLE every ATTACH PARTITION shop_movie FOR VALUES FROM (1900) TO (2100)")
    project.sql("INSERT INTO every VALUES (1, 'one', '-', 2000)")
    assert project.events(DECLARED.key) == []
    row = project.code(movie('embedding = Embedding("title", capture="row")'))
    row.upgrade()
    project.sql("INSERT INTO every VALUES (2, 'two', '-', 2000)")
    assert project.events(DECLARED.key) == [("row", "2")]
    row.drain()
    assert_in_step(project, DECLARED)
    with pytest.raises(psycopg.errors.CheckViolation):
        project.sql("INSERT INTO every VALUES (3, 'three', '-', 1000)")
