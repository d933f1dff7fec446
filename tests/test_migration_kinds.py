"""Migrations of every kind of source, of indexes, of squashed apps, and beside writers."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.migration_project import ROOT
from tests.shop import (
    DECLARED,
    FILM,
    PLAIN,
    TITLE_AND_PLOT,
    Shape,
    assert_forgotten,
    assert_in_step,
    assert_served,
    insert,
    movie,
    write,
)

SNAPSHOTS = Path(__file__).parent / "snapshots"


def test_two_declarations_on_one_model(project):
    both = movie('by_title = Embedding("title")\n    by_plot = Embedding("plot")')
    one, two = project.code(movie('by_title = Embedding("title")')), project.code(both)
    title = Shape("", key="shop.moviebytitle")
    plot = Shape("", texts="SELECT id, plot FROM shop_movie", key="shop.moviebyplot")
    one.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    assert_served(project, one, title)
    for forward in (two.upgrade, lambda: two.run("migrate")):
        forward()
        two.is_clean()
        assert project.triggers() == [(title.table, plot.key, 4), (title.table, title.key, 4)]
        two.drain()
        first, *_ = changed = write(project, title)
        project.sql("UPDATE shop_movie SET plot = 'A new one' WHERE id = %s", first)
        assert project.events(title.key) == [("row", str(pk)) for pk in changed]
        assert project.events(plot.key) == [("row", str(pk)) for pk in (first, changed[2], first)]
        two.drain()
        assert_in_step(project, title)
        assert_in_step(project, plot)
        two.run("migrate", "shop", "0001")
        assert_served(project, one, title)


def facts(project, table):
    """Columns, indexes, constraints, options and dependents of a table."""
    return project.sql(
        "SELECT attname, atttypid, attnotnull, attnum, NULL FROM pg_attribute"
        " WHERE attrelid = %(table)s::regclass"
        " UNION ALL SELECT relname, NULL, indisvalid, NULL, pg_get_indexdef(indexrelid)"
        " FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indrelid = %(table)s::regclass"
        " UNION ALL SELECT conname, NULL, convalidated, NULL, pg_get_constraintdef(oid)"
        " FROM pg_constraint WHERE %(table)s::regclass IN (conrelid, confrelid)"
        " UNION ALL SELECT relname, NULL, relhasrules, relchecks, reloptions::text"
        " FROM pg_class WHERE oid = %(table)s::regclass ORDER BY 1, 4, 5",
        table=table,
    )


def test_a_source_of_a_third_party(project):
    apps = ["django.contrib.sites", "django.contrib.flatpages"]
    shape = Shape(
        """
class PageEmbedding(EmbeddingModel):
    source = EmbeddingSource("flatpages.FlatPage", "title", "content")
""",
        texts="SELECT id, concat_ws(E'\\n', title, content) FROM django_flatpage",
        table="django_flatpage",
        key="shop.pageembedding",
    )
    before, after = project.code(PLAIN.models, apps=apps), project.code(shape.models, apps=apps)
    before.upgrade()
    untouched = facts(project, shape.table)
    assert untouched
    for url in ("/about/", "/imprint/", "/jobs/"):
        project.sql(
            "INSERT INTO django_flatpage"
            " (url, title, content, enable_comments, template_name, registration_required)"
            " VALUES (%s, 'A page', 'About us', false, '', false)",
            url,
        )
    output = after.run("makemigrations")
    assert "shop" in output
    assert "flatpages" not in output
    after.run("migrate")
    after.is_clean()
    assert_served(project, after, shape)
    assert facts(project, shape.table) == untouched
    after.run("migrate", "shop", "0001")
    assert_forgotten(project, shape)
    assert facts(project, shape.table) == untouched
    after.run("migrate")
    assert_served(project, after, shape)


def test_a_declaration_on_an_abstract_base(project):
    base = """
class {base}:
    title = models.TextField()
    plot = models.TextField(default="-")
    embedding = Embedding("title")
{meta}
class Film(Base):
    pass

class Play(Base):
    pass

class GoodPlay(Play):
    class Meta:
        proxy = True
"""
    base = base.format(base="Base(models.Model)", meta="    class Meta:\n        abstract = True\n")
    declared = project.code(base)
    plain = project.code(base.replace('embedding = Embedding("title")', ""))
    plain.upgrade()
    project.sql("INSERT INTO shop_film (title, plot) VALUES ('Alien', ''), ('Brazil', '')")
    for forward in (declared.upgrade, lambda: declared.run("migrate")):
        forward()
        declared.is_clean()
        assert project.tables() == [
            "shop_film",
            "shop_filmembedding",
            "shop_play",
            "shop_playembedding",
        ]
        assert project.triggers() == [
            ("shop_film", "shop.filmembedding", 4),
            ("shop_play", "shop.playembedding", 4),
        ]
        project.sql("INSERT INTO shop_play (title, plot) VALUES ('Faust', '')")
        project.sql("UPDATE shop_film SET title = title || ' again' WHERE title ~ 'Alien'")
        assert len(project.events("shop.playembedding")) == 1
        assert len(project.events("shop.filmembedding")) == 1
        declared.drain()
        for name in ("film", "play"):
            texts = f"SELECT id, title FROM shop_{name}"
            assert_in_step(project, Shape("", texts=texts, key=f"shop.{name}embedding"))
        declared.run("migrate", "shop", "0001")
        assert project.triggers() == project.known() == []
        assert project.tables() == ["shop_film", "shop_play"]


def test_a_declaration_in_a_mixin(project):
    """A migration names the mixin as a base, so it has the declaration in its own state, too."""
    mixin = """
class Mixin:
    embedding = Embedding("title")
"""
    code = project.code(mixin + movie().replace("(models.Model)", "(Mixin, models.Model)"))
    code.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    assert_served(project, code, DECLARED)
    code.run("migrate", "shop", "zero")
    assert project.triggers() == project.known() == project.tables() == []
    code.run("migrate")
    insert(project, "Alien", "Brazil", "Casablanca")
    assert_served(project, code, DECLARED)


def index(project, name):
    """The identity of an index, and whether it holds all rows and is usable."""
    ((identity, whole),) = project.sql(
        "SELECT indexrelid, indisvalid AND indpred IS NULL FROM pg_index"
        " JOIN pg_class ON oid = indexrelid WHERE starts_with(relname, %s)",
        name,
    )
    return identity, whole


@pytest.mark.parametrize("built", [False, True])
def test_a_renamed_model_keeps_its_index(project, built):
    old, new = project.code(DECLARED.models), project.code(FILM.models)
    old.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    if built:
        old.drain()
    before = index(project, "shop_movieembedding_hnsw")
    assert before[1] is built
    new.upgrade("y", "y")
    assert index(project, "shop_filmembedding_hnsw") == before
    new.run("migrate", "shop", "0001")
    assert index(project, "shop_movieembedding_hnsw") == before
    new.run("migrate")
    assert index(project, "shop_filmembedding_hnsw") == before
    assert_served(project, new, FILM)
    assert index(project, "shop_filmembedding_hnsw")[1]


DATA_MIGRATION = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("shop", {dependency!r})]
    operations = [migrations.RunPython(migrations.RunPython.noop, migrations.RunPython.noop)]
"""


@pytest.mark.parametrize("barrier", [False, True], ids=["reduced", "with a data migration"])
def test_a_squashed_migration(project, barrier):
    # Not with a renamed model: there Django itself leaves a ForeignKey to the old name.
    old, new = project.code(DECLARED.models), project.code(TITLE_AND_PLOT.models)
    old.upgrade()
    if barrier:
        # The optimizer cannot move operations past it.
        text = DATA_MIGRATION.format(dependency="0001_initial")
        (project.migrations / "0002_data.py").write_text(text)
    new.upgrade()
    last = max(path.stem for path in project.migrations.glob("0*.py"))
    for way in ((), ("--backwards",)):
        sql = new.run("sqlmigrate", "shop", last, *way)
        assert "CREATE OR REPLACE TRIGGER" in sql
        assert "DROP TRIGGER" in sql
    new.run("squashmigrations", "shop", "0001", last, "--noinput", "--squashed-name", "all")
    new.is_clean()
    squashed = project.migration("0001_all").stem
    assert "CREATE OR REPLACE TRIGGER" in new.run("sqlmigrate", "shop", squashed)
    assert "DROP TABLE" in new.run("sqlmigrate", "shop", squashed, "--backwards")
    # Recorded as applied, because those that it replaces are.
    new.run("migrate")
    new.run("migrate", "shop", "zero")
    for _ in range(2):
        new.run("migrate")
        new.is_clean()
        insert(project, "Alien", "Brazil", "Casablanca")
        assert_served(project, new, TITLE_AND_PLOT)
        new.run("migrate", "shop", "zero")
        assert project.triggers() == project.known() == project.tables() == []


@pytest.mark.parametrize("rows", [False, True])
def test_other_dimensions(project, rows):
    """An empty sidecar follows; where there are vectors PostgreSQL refuses, and nothing changes."""
    old, new = project.code(DECLARED.models), project.code(DECLARED.models, dimensions=16)
    old.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    if rows:
        old.drain()
    new.run("makemigrations")
    operations = project.migration("0002").read_text().split("operations = ")[1]
    assert operations.count("migrations.") == operations.count("migrations.AlterField") == 1
    column = (
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'shop_movieembedding'::regclass AND attname = 'vector'"
    )
    if rows:
        before = project.vectors(DECLARED.sidecar), facts(project, DECLARED.sidecar)
        output = new.fail("migrate")
        assert "DataError: expected 16 dimensions, not 8" in output
        assert before == (project.vectors(DECLARED.sidecar), facts(project, DECLARED.sidecar))
        assert project.sql("SELECT name FROM django_migrations WHERE app = 'shop'") == [
            ("0001_initial",)
        ]
        assert_served(project, old, DECLARED)
        # The cure.
        project.sql("TRUNCATE shop_movieembedding")
    new.run("migrate")
    new.is_clean()
    assert project.sql(column) == [("halfvec(16)",)]
    project.sql("UPDATE shop_movie SET title = title || '.'")
    new.drain()
    ((total, dimensions),) = project.sql(
        "SELECT count(*), min(vector_dims(vector)) FROM shop_movieembedding"
    )
    assert (total, dimensions) == (3, 16)


def test_tests_without_migrations(project):
    project.sql("CREATE EXTENSION vector")
    code = project.code(
        DECLARED.models, more="MIGRATION_MODULES = {'shop': None, 'embedsync': None}\n"
    )
    code.run("migrate", "--run-syncdb")
    assert [name for (name,) in project.objects() if name == "embedsync_lock"]
    insert(project, "Alien", "Brazil", "Casablanca")
    assert_served(project, code, DECLARED)
    code.run("migrate", "--run-syncdb")
    assert_served(project, code, DECLARED)


ALL_KINDS = """
import uuid

class Movie(EmbeddedModel):
    title = models.CharField(max_length=200)
    plot = models.TextField(db_column="Plot text")
    year = models.IntegerField()
    embedding = Embedding("title", "plot", condition=Q(year__gt=1990), template="{title}. {plot}")
    title_vector = Embedding("title")

class Parcel(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    label = models.TextField()
    embedding = Embedding("label")

    class Meta:
        db_table = "odd parcels"

class Note(EmbeddedModel):
    text = models.TextField()
    embedding = Embedding("text")

    class Meta:
        abstract = True

class Memo(Note):
    pass

class ShortMemo(Memo):
    class Meta:
        proxy = True

class PageEmbedding(EmbeddingModel):
    source = EmbeddingSource("flatpages.FlatPage", "title", "content")

    class Meta:
        indexes = [models.Index(fields=["embedded_at"], name="page_embedded_at")]
"""


def test_the_migration_of_all_kinds_is_as_it_was(project):
    """Another text would mean a new migration in every project at its next upgrade.

    If that is meant, delete the snapshot and run this test: it writes a new one and fails.
    """
    apps = ["django.contrib.sites", "django.contrib.flatpages"]
    project.code(ALL_KINDS, apps=apps).run("makemigrations")
    _, text = project.migration("0001").read_text().split("\n", 1)
    snapshot = SNAPSHOTS / "all_kinds.txt"
    if not snapshot.exists():
        snapshot.write_text(text)
        pytest.fail(f"wrote {snapshot}")
    assert text == snapshot.read_text()


def test_migrations_of_example_and_library_are_complete(project):
    """And one migration command serves both."""
    environment = {"DJANGO_SETTINGS_MODULE": "tests.settings", "DATABASE_URL": project.url()}
    subprocess.run(
        [sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
    )


def test_writers_go_on_during_the_migration(project):
    plain, declared = project.code(PLAIN.models), project.code(DECLARED.models)
    plain.upgrade()
    insert(project, *[f"Film {n}" for n in range(50)])
    stopping = threading.Event()
    problems = []

    def keep_writing():
        try:
            with project.connect() as connection:
                while not stopping.is_set():
                    with connection.transaction():
                        (last,) = connection.execute(
                            "INSERT INTO shop_movie (title, plot, year) VALUES ('New', '', 1)"
                            " RETURNING id"
                        ).fetchone()
                        connection.execute(
                            "UPDATE shop_movie SET title = title || ' more' WHERE id = %s"
                            " AND length(title) < 150",
                            [last % 60],
                        )
                        connection.execute("DELETE FROM shop_movie WHERE id = %s", [last - 20])
        except Exception as problem:
            problems.append(problem)

    writers = [threading.Thread(target=keep_writing) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        declared.upgrade()
        declared.run("migrate", "shop", "0001")
        declared.run("migrate")
    finally:
        stopping.set()
        for writer in writers:
            writer.join()
    assert problems == []
    assert project.events(DECLARED.key)
    assert_served(project, declared, DECLARED)
