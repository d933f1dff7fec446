"""One project with two databases: each has its own queue, its own workers and its own triggers."""

import json

import pytest

from tests.migration_project import Project, vectors_of
from tests.shop import movie

MODELS = movie('embedding = Embedding("title")') + movie('embedding = Embedding("title")', "Film")
SETTINGS = """
DATABASES["other"] = {other!r}

class Router:
    def db_for_read(self, model, **hints):
        return "other" if model._meta.model_name.startswith("film") else "default"

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        if app_label == "shop" and model_name:
            return (db == "other") == model_name.startswith("film")

DATABASE_ROUTERS = ["settings.Router"]
"""
TITLES = ("first", "second", "third")


@pytest.fixture
def other(project, tmp_path):
    other = Project(tmp_path / "other", project.server)
    yield other
    other.remove()


@pytest.fixture
def code(project, other):
    code = project.code(MODELS, more=SETTINGS.format(other=other.database()))
    code.run("makemigrations")
    code.run("migrate")
    code.run("migrate", "--database", "other")
    code.is_clean()
    return code


def insert(place, table):
    for title in TITLES:
        place.sql(f"INSERT INTO {table} (title, plot, year) VALUES (%s, '-', 2000)", title)


def is_in_step(place, table):
    texts = dict(place.sql(f"SELECT id, title FROM {table}"))
    return place.vectors(f"{table}embedding") == vectors_of(texts)


def test_more_like_a_row_of_the_other_database(project, other):
    """Where the key is another row's, with another vector."""
    settings = f"DATABASES['other'] = {other.database()!r}"
    code = project.code(movie('embedding = Embedding("title")'), more=settings)
    code.run("makemigrations")
    for place, alias, titles in (
        (project, "default", ("red apple", "green hill")),
        (other, "other", ("blue sea", "red apple pie", "deep blue sea")),
    ):
        code.run("migrate", "--database", alias)
        for title in titles:
            place.sql("INSERT INTO shop_movie (title, plot, year) VALUES (%s, '-', 2000)", title)
    code.run("embed_worker", "--drain")
    assert code.run("shell", "--verbosity", "0", "-c", SEARCH).split() == ["red"]


SEARCH = """
import embedsync
from shop.models import Movie, MovieEmbedding

rows = Movie.objects.using("other")
for row in rows:
    MovieEmbedding.objects.using("other").create(
        source_id=row.pk, digest=b"", vector=embedsync.embed_query(row.title)
    )
apple = Movie.objects.get(title="red apple")
print(embedsync.similar(rows, apple)[0].title.split()[0])
"""


def test_each_database_is_served_for_itself(project, other, code):
    assert project.triggers() == [("shop_movie", "shop.movieembedding", 4)]
    assert other.triggers() == [("shop_film", "shop.filmembedding", 4)]
    insert(project, "shop_movie")
    insert(other, "shop_film")
    code.run("embed_worker", "--drain", "--database", "other")
    assert is_in_step(other, "shop_film")
    assert len(project.events("shop.movieembedding")) == len(TITLES)
    code.run("embed_worker", "--drain")
    assert is_in_step(project, "shop_movie")

    other.sql("SET embedsync.capture = off")
    other.sql("UPDATE shop_film SET title = 'changed' WHERE title = 'second'")
    code.run("embed_sweep")
    output = code.fail("embed_sweep", "--database", "other")
    assert "1 stale" in output
    code.run("embed_sweep", "--database", "other", "--repair")
    code.run("embed_worker", "--drain", "--database", "other")
    assert is_in_step(other, "shop_film")


def test_each_database_tells_of_itself(project, other, code):
    insert(other, "shop_film")

    def status(*arguments):
        output = code.run("embed_status", "--json", *arguments)
        return json.loads(output[output.index("{") :])

    [here], [there] = (found["sidecars"] for found in (status(), status("--database", "other")))
    assert (here["sidecar"], here["waiting"]) == ("shop.movieembedding", 0)
    assert (there["sidecar"], there["waiting"]) == ("shop.filmembedding", len(TITLES))
    assert "shop.filmembedding" in code.run("embed_status", "--triggers", "--database", "other")
    assert "has no embedding in database 'default'" in code.fail("embed_status", "shop.Film")


TESTED = """
from embedsync.testing import assert_in_sync, embed_now
from shop.models import Film, Movie

embed_now(using="other")
assert_in_sync(using="other")
assert_in_sync(Film, using="other")
for act in (assert_in_sync, lambda: assert_in_sync(Film), lambda: assert_in_sync(Film, Movie)):
    try:
        act()
    except (AssertionError, LookupError) as error:
        print(repr(error))
"""


def test_each_database_has_its_own_assertions(project, other, code):
    insert(project, "shop_movie")
    insert(other, "shop_film")
    output = code.run("shell", "--verbosity", "0", "-c", TESTED)
    told = [line for line in output.splitlines() if "Error(" in line]
    assert "shop.MovieEmbedding: 3 waiting (keys: 1, 2, 3)" in told[0]
    assert told[1:] == ["LookupError(\"shop.Film has no embedding in database 'default'.\")"] * 2
    assert is_in_step(other, "shop_film")
    assert project.vectors("shop_movieembedding") == {}


SEARCHED = """
import json
from django.core.paginator import Paginator
from django.db import connection
from django.test.utils import CaptureQueriesContext
import embedsync
from shop.models import Film

films = [Film.objects, Film.objects.using("other")]
one = films[0].get(title="first")
vector = embedsync.embed_query("second")
with CaptureQueriesContext(connection) as queries:
    for rows in films:
        for exact in (True, False):
            by_text = embedsync.similar(rows.all(), "second", exact=exact)
            by_vector = embedsync.similar(rows.all(), vector, exact=exact)
            by_instance = embedsync.similar(rows.all(), one, exact=exact)
            near = embedsync.similar(rows.all(), vector, exact=exact, min_similarity=0.99)
            within = rows.filter(pk__in=by_text.values("pk")[:2])
            both = by_text[:1].union(by_instance[:2])
            print(json.dumps([
                [film.title for film in by_text[:1]],
                [film.title for film in by_vector.filter(year=2000)[:1]],
                sorted(film.title for film in by_instance[:5]),
                [film.title for film in near[:3]],
                [len(within), len(both), by_text.count(), by_instance[:2].count()],
                [len(page) for page in Paginator(by_text, 2)],
                by_text[0]._state.db,
            ]))
print(len(queries))
"""


def test_each_database_is_searched_where_it_is(project, other, code):
    """The other has no such tables; the router says where, or whoever asks."""
    insert(other, "shop_film")
    code.run("embed_worker", "--drain", "--database", "other")
    output = code.run("shell", "--verbosity", "0", "-c", SEARCHED)
    *found, queries = output.splitlines()
    expected = [["second"], ["second"], ["second", "third"], ["second"], [2, 3, 3, 2], [2, 1]]
    assert [json.loads(line) for line in found] == [[*expected, "other"]] * 4
    assert queries == "0"
