"""Migrations: stock commands over throw-away projects, forward, backward and forward again."""

import re

import pytest
from django.db.backends.utils import truncate_name

from tests.shop import (
    DECLARED,
    FILM,
    PLAIN,
    SENTENCE,
    TEMPLATE,
    TITLE_AND_PLOT,
    Shape,
    assert_forgotten,
    assert_in_step,
    assert_served,
    insert,
    movie,
    write,
)


def test_a_declaration_on_a_table_with_rows(project):
    plain, declared = project.code(PLAIN.models), project.code(DECLARED.models)
    plain.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    declared.upgrade()
    assert project.sql(f"SELECT * FROM {DECLARED.sidecar}") == []
    assert_served(project, declared, DECLARED)
    declared.run("migrate", "shop", "0001")
    assert_forgotten(project, DECLARED)
    declared.run("migrate")
    declared.is_clean()
    assert_served(project, declared, DECLARED)


DECLARATIONS = [
    (DECLARED, True),
    (TITLE_AND_PLOT, True),
    (
        Shape(
            movie('embedding = Embedding("plot")'),
            texts="SELECT id, plot FROM shop_movie",
            column="plot",
        ),
        True,
    ),
    # A column that comes and goes with its declaration.
    (
        Shape(
            movie(
                'tagline = models.TextField(default="In space")\n'
                '    embedding = Embedding("title", "tagline")'
            ),
            texts="SELECT id, concat_ws(E'\\n', title, tagline) FROM shop_movie",
            column="tagline",
        ),
        True,
    ),
    (TITLE_AND_PLOT, True),
    (Shape(movie(f"{TEMPLATE})"), texts=SENTENCE, column="plot"), False),
    (
        Shape(
            movie(f"{TEMPLATE}, condition=Q(year__gte=1980))"),
            texts=f"{SENTENCE} WHERE year >= 1980",
            column="plot",
        ),
        True,
    ),
    (
        Shape(
            movie(f"{TEMPLATE}, condition=Q(year__gte=1990))"),
            texts=f"{SENTENCE} WHERE year >= 1990",
        ),
        False,
    ),
    (
        Shape(
            movie(f"{TEMPLATE}, condition=~Q(id=3, plot='-'))"),
            texts=f"{SENTENCE} WHERE NOT (id = 3 AND plot = '-')",
        ),
        True,
    ),
    (Shape(movie(f"{TEMPLATE})"), texts=SENTENCE, column="plot"), True),
]


def test_changes_of_the_declaration(project):
    steps = []
    for shape, needs_migration in DECLARATIONS:
        code = project.code(shape.models)
        code.upgrade()
        number = len(list(project.migrations.glob("0*.py")))
        if not steps:
            for year in (1970, 1985, 1995, 2005, 2015):
                project.sql(
                    "INSERT INTO shop_movie (title, plot, year) VALUES ('Film', '-', %s)", year
                )
        else:
            assert number == steps[-1][1] + needs_migration
        assert_served(project, code, shape)
        steps.append((code, number, shape))
    last = code
    for code, number, shape in reversed(steps[:-1]):
        last.run("migrate", "shop", f"{number:04}")
        assert_served(project, code, shape)
    last.run("migrate")
    last.is_clean()
    assert_served(project, last, steps[-1][2])


# Django and PostgreSQL cut what is made from such a name.
LONG = "FilmsThatWereShownInTheLittleCinemaRoundTheCornerBeforeItBurntDown"
LONG_TABLE = truncate_name(f"shop_{LONG}".lower(), 63)
ODD = "Odd {name}"
ODD_SQL = f'"{ODD}"'
# The model before, the model after, and the answers to makemigrations' questions.
RENAMES = {
    "model": (
        DECLARED,
        Shape(
            movie('embedding = Embedding("title")', name=LONG),
            texts=f"SELECT id, title FROM {LONG_TABLE}",
            table=LONG_TABLE,
            key=f"shop.{LONG}embedding".lower(),
        ),
        ["y", "y"],
    ),
    "attribute": (
        DECLARED,
        Shape(movie('title_vector = Embedding("title")'), key="shop.movietitlevector"),
        ["y"],
    ),
    "embedded field": (
        Shape(
            movie(f"{TEMPLATE})"),
            texts="SELECT id, title || ': ' || plot FROM shop_movie",
        ),
        Shape(
            movie(f"{TEMPLATE})").replace("plot", "story"),
            texts="SELECT id, title || ': ' || story FROM shop_movie",
            column="story",
        ),
        ["y"],
    ),
    "field of the condition": (
        Shape(
            movie('embedding = Embedding("title", condition=Q(year__gt=1990))'),
            texts="SELECT id, title FROM shop_movie WHERE year > 1990",
        ),
        Shape(
            movie('embedding = Embedding("title", condition=Q(year__gt=1990))').replace(
                "year", "released"
            ),
            texts="SELECT id, title FROM shop_movie WHERE released > 1990",
        ),
        ["y"],
    ),
    "db_table": (
        DECLARED,
        Shape(
            movie(f'embedding = Embedding("title")\n    class Meta:\n        db_table = "{ODD}"'),
            texts=f"SELECT id, title FROM {ODD_SQL}",
            table=ODD_SQL,
        ),
        [],
    ),
    "column": (
        DECLARED,
        Shape(
            DECLARED.models.replace("max_length=200", f'max_length=200, db_column="{ODD}"'),
            texts=f"SELECT id, {ODD_SQL} FROM shop_movie",
            column=ODD_SQL,
        ),
        [],
    ),
    "key": (
        Shape(
            movie('id = models.BigAutoField(primary_key=True)\n    embedding = Embedding("title")')
        ),
        Shape(
            movie(
                'number = models.BigAutoField(primary_key=True)\n    embedding = Embedding("title")'
            ),
            texts="SELECT number, title FROM shop_movie",
            pk="number",
        ),
        ["y"],
    ),
    "types of key and embedded column": (
        Shape(movie('id = models.AutoField(primary_key=True)\n    embedding = Embedding("title")')),
        Shape(DECLARED.models.replace("CharField(max_length=200)", "TextField()")),
        [],
    ),
}


def leave_work(project, shape):
    """Write, and leave events in the inbox and a row in the ledger; keys of unchanged rows."""
    table, pk, column = shape.table, shape.pk, shape.column
    changed = write(project, shape)
    assert project.events(shape.key) == [("row", str(key)) for key in changed]
    ((second,),) = project.sql(f"SELECT {pk} FROM {table} ORDER BY {pk} OFFSET 1 LIMIT 1")
    project.sql(f"UPDATE {table} SET {column} = {column} || ' more' WHERE {pk} = %s", second)
    project.sql(
        "WITH moved AS (DELETE FROM embedsync_inbox WHERE source_pk = %s RETURNING *)"
        " INSERT INTO embedsync_ledger (sidecar, source_pk, run_at, queued_at)"
        " SELECT sidecar, source_pk, now(), now() FROM moved",
        str(second),
    )
    stamps = project.embedded_at(shape.sidecar)
    return {key: stamp for key, stamp in stamps.items() if key not in [*changed, second]}


def assert_kept(project, code, shape, unchanged):
    """What was owed before a migration is done after it, and nothing else."""
    code.drain()
    assert_in_step(project, shape)
    assert len(unchanged) == 3
    assert unchanged.items() <= project.embedded_at(shape.sidecar).items()
    assert_served(project, code, shape)


@pytest.mark.parametrize("what", RENAMES)
def test_a_rename_loses_nothing_and_embeds_nothing_again(project, what):
    before, after, answers = RENAMES[what]
    old, new = project.code(before.models), project.code(after.models)
    old.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca", "Dogville", "Eraserhead", "Fargo")
    old.drain()

    unchanged = leave_work(project, before)
    new.upgrade(*answers)
    assert_kept(project, new, after, unchanged)

    unchanged = leave_work(project, after)
    new.run("migrate", "shop", "0001")
    assert_kept(project, old, before, unchanged)

    unchanged = leave_work(project, before)
    new.run("migrate")
    new.is_clean()
    assert_kept(project, new, after, unchanged)


def test_a_renamed_model_whose_sidecar_is_made_anew(project):
    """The second question of makemigrations answered with no: vectors go, and are made again."""
    old, new = project.code(DECLARED.models), project.code(FILM.models)
    old.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    old.drain()
    leave_work(project, DECLARED)
    new.upgrade("y", "n")
    assert project.tables() == ["shop_film", "shop_filmembedding"]
    assert_served(project, new, FILM)
    leave_work(project, FILM)
    new.run("migrate", "shop", "0001")
    assert_served(project, old, DECLARED)
    leave_work(project, DECLARED)
    new.run("migrate")
    assert_served(project, new, FILM)


def test_a_declaration_that_goes(project):
    declared, plain = project.code(DECLARED.models), project.code(PLAIN.models)
    declared.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    declared.drain()
    leave_work(project, DECLARED)
    plain.upgrade()
    assert_forgotten(project, DECLARED)
    assert project.tables() == ["shop_movie"]
    plain.run("migrate", "shop", "0001")
    assert_served(project, declared, DECLARED)
    leave_work(project, DECLARED)
    plain.run("migrate")
    assert_forgotten(project, DECLARED)


def test_a_model_that_goes(project):
    declared, nothing = project.code(DECLARED.models), project.code("")
    declared.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    declared.drain()
    leave_work(project, DECLARED)
    nothing.upgrade()
    assert project.triggers() == project.known() == project.tables() == []

    # As makemigrations writes it, it takes the sidecar's relation away first, which is a part of
    # its primary key: Django cannot make such a table again.
    nothing.fail("migrate", "shop", "0001")
    assert project.triggers() == project.known() == project.tables() == []
    # Edited as the message advises (see the next test).
    (project.migrations / "0002_delete.py").write_text(DELETION)
    project.migration("0002_remove").unlink()
    project.sql("UPDATE django_migrations SET name = '0002_delete' WHERE name ~ '0002'")
    nothing.is_clean()
    nothing.run("migrate", "shop", "0001")
    insert(project, "Dogville", "Eraserhead", "Fargo")
    assert_served(project, declared, DECLARED)
    leave_work(project, DECLARED)
    nothing.run("migrate")
    assert project.triggers() == project.known() == project.tables() == []


DELETION = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.DeleteModel("MovieEmbedding"), migrations.DeleteModel("Movie")]
"""


def test_backward_through_the_deletion_of_a_model_says_what_to_do(project):
    declared, nothing = project.code(DECLARED.models), project.code("")
    declared.upgrade()
    nothing.upgrade()
    output = nothing.fail("migrate", "shop", "0001")
    assert "IrreversibleError" in output
    assert "RemoveField of MovieEmbedding.source" in output


def test_backward_through_the_removal_of_two_declarations_says_what_to_do(project):
    both = movie(
        'embedding = Embedding("title")\n    plot_embedding = Embedding("plot", default=True)'
    )
    project.code(both).upgrade()
    plain = project.code(PLAIN.models)
    plain.upgrade()
    output = plain.fail("migrate", "shop", "0001")
    assert "with another operation between its two halves" in output
    # As it advises.
    path = project.migration("0002")
    text = path.read_text()
    removed = re.search(r" +migrations.RemoveField\(\s+model_name='(\w+)',\s+name='source',", text)
    assert f"removefield of {removed[1]}.source" in output.lower()
    path.write_text(text.replace(removed[0] + "\n        ),\n", ""))
    plain = project.code(PLAIN.models)
    plain.run("migrate", "shop", "0001")
    assert {key for _, key, _ in project.triggers()} == {
        "shop.movieembedding",
        "shop.movieplotembedding",
    }
    plain.run("migrate")
    assert project.triggers() == []


def test_everything_goes(project):
    plain, declared = project.code(PLAIN.models), project.code(DECLARED.models)
    plain.upgrade()
    insert(project, "Alien", "Brazil", "Casablanca")
    declared.upgrade()
    installed = project.objects()
    declared.drain()
    leave_work(project, DECLARED)
    declared.run("migrate", "shop", "0001")
    declared.run("migrate", "embedsync", "zero")
    assert project.objects() == project.triggers() == []
    assert project.tables() == ["shop_movie"]
    write(project, DECLARED)
    declared.run("migrate")
    declared.is_clean()
    assert project.objects() == installed
    assert_served(project, declared, DECLARED)

    leave_work(project, DECLARED)
    declared.run("migrate", "shop", "zero")
    assert project.triggers() == project.known() == project.tables() == []
    declared.run("migrate", "embedsync", "zero")
    assert project.objects() == []
    assert project.sql("SELECT extname FROM pg_extension WHERE extname = 'vector'") == [("vector",)]
    declared.run("migrate")
    declared.is_clean()
    insert(project, "Dogville", "Eraserhead", "Fargo")
    assert_served(project, declared, DECLARED)
