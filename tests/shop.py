"""The model that the tests of migrations change, and what must hold before and after."""

import json
from dataclasses import dataclass
from pathlib import Path

from django.db.backends.utils import truncate_name

from tests.migration_project import vectors_of

SNAPSHOTS = Path(__file__).parent / "snapshots"


def movie(body="", name="Movie"):
    """A models.py with one model, which has this in its body."""
    return f"""
class {name}(models.Model):
    title = models.CharField(max_length=200)
    plot = models.TextField(default="-")
    year = models.IntegerField(default=2000)
    {body}
"""


@dataclass(frozen=True)
class Shape:
    """A models.py, and what it means to the database.

    ``texts`` selects key and text of every row that is to have a vector; a change of ``column``
    makes an event.
    """

    models: str
    texts: str = "SELECT id, title FROM shop_movie"
    table: str = "shop_movie"
    pk: str = "id"
    column: str = "title"
    key: str = "shop.movieembedding"

    @property
    def sidecar(self):
        return truncate_name(self.key.replace(".", "_"), 63)


PLAIN = Shape(movie())
DECLARED = Shape(movie('embedding = Embedding("title")'))
FILM = Shape(
    movie('embedding = Embedding("title")', name="Film"),
    texts="SELECT id, title FROM shop_film",
    table="shop_film",
    key="shop.filmembedding",
)


SENTENCE = "SELECT id, title || ': ' || plot FROM shop_movie"
TEMPLATE = 'embedding = Embedding("title", "plot", template="{title}: {plot}"'
TITLE_AND_PLOT = Shape(
    movie('embedding = Embedding("title", "plot")'),
    texts="SELECT id, concat_ws(E'\\n', title, plot) FROM shop_movie",
    column="plot",
)
# In order, and whether the step to each needs a migration.


def insert(project, *titles):
    """Insert a movie for each title."""
    for title in titles:
        project.sql("INSERT INTO shop_movie (title, plot, year) VALUES (%s, '-', 2000)", title)


def write(project, shape):
    """An INSERT, an UPDATE and a DELETE in raw SQL; the keys of their rows."""
    table, pk, column = shape.table, shape.pk, shape.column
    ((first, last),) = project.sql(f"SELECT min({pk}), max({pk}) FROM {table}")
    project.sql(
        f"INSERT INTO {table} SELECT (jsonb_populate_record(t, %s)).* FROM {table} t"
        f" WHERE {pk} = %s",
        json.dumps({pk: last + 1}),
        first,
    )
    project.sql(f"UPDATE {table} SET {column} = {column} || ' again' WHERE {pk} = %s", first)
    project.sql(f"DELETE FROM {table} WHERE {pk} = %s", last)
    return [last + 1, first, last]


def assert_in_step(project, shape):
    """Every vector is that of its row's text now, none missing, none too many, nothing owed."""
    assert project.vectors(shape.sidecar) == vectors_of(dict(project.sql(shape.texts)))
    assert project.sql("SELECT * FROM embedsync_inbox") == []
    assert project.sql("SELECT * FROM embedsync_ledger") == []


def assert_served(project, code, shape):
    """Nothing but the triggers of this sidecar is there, and vectors follow what is written."""
    assert project.triggers() == [(shape.table.strip('"'), shape.key, 4)]
    assert project.known() == [shape.key]
    code.drain()
    assert_in_step(project, shape)
    written = write(project, shape)
    assert project.events(shape.key) == [("row", str(pk)) for pk in written]
    code.drain()
    assert_in_step(project, shape)


def assert_forgotten(project, shape):
    """No trigger is left, no work is owed, and writes are the application's own."""
    assert project.triggers() == []
    write(project, shape)
    assert project.known() == []
