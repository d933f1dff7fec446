"""Triggers of related tables come and go with stock migrations, in other apps too."""

import pytest

from tests.migration_project import MODELS, vectors_of

pytestmark = pytest.mark.django_db

GENRE = """
class Genre(models.Model):
    name = models.CharField(max_length=100)

"""
REVIEW = """
class Review(models.Model):
    movie = models.ForeignKey("shop.Movie", models.CASCADE, related_name="reviews")
    text = models.TextField()
"""
KEY = "shop.movieembedding"
SOURCE = ("shop_movie", KEY, 4)
GENRES = "(SELECT string_agg(name, ', ' ORDER BY g.id) FROM shop_genre g JOIN shop_movie_genres l ON l.genre_id = g.id WHERE l.movie_id = m.id)"  # noqa: E501
TEXTS = f"SELECT m.id, concat_ws(E'\\n', title, {GENRES}) FROM shop_movie m"
REVIEWS = "(SELECT string_agg(text, ', ' ORDER BY r.id) FROM press_review r WHERE movie_id = m.id)"


def movie(declaration, more=""):
    return f"""
class Movie(models.Model):
    title = models.CharField(max_length=200)
    genres = models.ManyToManyField("Genre")
    {more}
    {declaration}
"""


PLAIN = GENRE + movie('embedding = Embedding("title")')
RELATED = GENRE + movie('embedding = Embedding("title", "genres__name")')


def press(project, models):
    """Another app, with this ``models.py``; what to add to ``INSTALLED_APPS``."""
    folder = project.folder / "press"
    (folder / "migrations").mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    (folder / "migrations" / "__init__.py").touch()
    (folder / "models.py").write_text(MODELS + models)
    return ["press"]


def fill(project):
    project.sql("INSERT INTO shop_genre (name) VALUES ('Drama'), ('Farce')")
    project.sql("INSERT INTO shop_movie (title) VALUES ('One'), ('Two')")
    project.sql("INSERT INTO shop_movie_genres (movie_id, genre_id) VALUES (1, 2), (1, 1), (2, 1)")


def assert_in_step(project, code, texts=TEXTS):
    code.drain()
    assert project.vectors("shop_movieembedding") == vectors_of(dict(project.sql(texts)))
    assert project.sql("SELECT * FROM embedsync_inbox") == []
    assert project.sql("SELECT * FROM embedsync_ledger") == []


def test_a_relation_is_added_to_a_declaration_and_taken_away_again(project):
    code = project.code(PLAIN)
    code.upgrade()
    fill(project)
    assert_in_step(project, code, "SELECT id, title FROM shop_movie")
    code = project.code(RELATED)
    code.upgrade()
    both = [("shop_genre", KEY, 2), SOURCE, ("shop_movie_genres", KEY, 4)]
    assert project.triggers() == both
    assert_in_step(project, code)
    project.sql("UPDATE shop_genre SET name = 'Noir' WHERE id = 1")
    project.sql("DELETE FROM shop_movie_genres WHERE movie_id = 1 AND genre_id = 2")
    assert project.events(KEY) == [("hop", "1"), ("row", "1")]
    assert_in_step(project, code)
    code.run("migrate", "shop", "0001")
    assert project.triggers() == [SOURCE]
    code.run("migrate")
    assert project.triggers() == both
    code = project.code(PLAIN)
    code.upgrade()
    assert project.triggers() == [SOURCE]
    assert_in_step(project, code, "SELECT id, title FROM shop_movie")


def test_a_reverse_relation_of_another_app_brings_its_migrations_first(project):
    apps = press(project, REVIEW)
    models = GENRE + movie('embedding = Embedding("title", "reviews__text")')
    code = project.code(models, apps=apps)
    code.upgrade()
    assert ("press_review", KEY, 4) in project.triggers()
    texts = f"SELECT m.id, concat_ws(E'\\n', title, {REVIEWS}) FROM shop_movie m"
    fill(project)
    project.sql("INSERT INTO press_review (movie_id, text) VALUES (1, 'Good'), (1, 'Bad')")
    assert_in_step(project, code, texts)
    # From nothing, in the order that Django finds by itself.
    project.sql("TRUNCATE press_review")
    code.run("migrate", "shop", "zero")
    code.run("migrate")
    assert ("press_review", KEY, 4) in project.triggers()
    # A column that another app renames, with the declaration.
    press(project, REVIEW.replace("text =", "body ="))
    code = project.code(models.replace("reviews__text", "reviews__body"), apps=apps)
    code.upgrade("y")
    fill(project)
    project.sql("INSERT INTO press_review (movie_id, body) SELECT id, 'Fine' FROM shop_movie")
    assert_in_step(project, code, texts.replace("(text", "(body"))
    # The reviews go, and what was said of them.
    press(project, "")
    code = project.code(PLAIN, apps=apps)
    code.upgrade()
    assert project.triggers() == [SOURCE]


def test_relations_that_refer_to_each_other(project):
    """Django adds the second of them after the sidecar's triggers; migrate makes up for it."""
    apps = press(project, REVIEW)
    best = (
        'best = models.ForeignKey("press.Review", models.SET_NULL, null=True,'
        ' related_name="best_of")'
    )
    fields = 'embedding = Embedding("title", "best__text", "reviews__text")'
    code = project.code(GENRE + movie(fields, best), apps=apps)
    code.upgrade()
    assert ("press_review", KEY, 6) in project.triggers()
    fill(project)
    project.sql("INSERT INTO press_review (movie_id, text) VALUES (1, 'Good'), (2, 'Bad')")
    project.sql("UPDATE shop_movie SET best_id = 1")
    texts = (
        "SELECT m.id, concat_ws(E'\\n', title, (SELECT text FROM press_review WHERE id = best_id),"
        f" {REVIEWS}) FROM shop_movie m"
    )
    assert_in_step(project, code, texts)
    project.sql("UPDATE press_review SET text = 'Changed'")
    assert_in_step(project, code, texts)


@pytest.mark.parametrize("what", ["related model", "related field", "relation", "source"])
def test_what_is_renamed_on_the_way_loses_nothing(project, what):
    code = project.code(RELATED)
    code.upgrade()
    fill(project)
    assert_in_step(project, code)
    made = project.embedded_at("shop_movieembedding")
    old, new, table = {
        "related model": ("Genre", "Kind", ("shop_genre", "shop_kind", "genre_id", "kind_id")),
        "related field": ("name", "label", ("string_agg(name", "string_agg(label")),
        "relation": ("genres", "kinds", ("shop_movie_genres", "shop_movie_kinds")),
        "source": ("Movie", "Film", ()),
    }[what]
    code = project.code(RELATED.replace(old, new))
    code.upgrade("y", "y")
    if what == "source":
        assert {(key, count) for _, key, count in project.triggers()} == {
            ("shop.filmembedding", 4),
            ("shop.filmembedding", 2),
        }
        return
    texts = TEXTS
    for before, after in zip(table[::2], table[1::2], strict=True):
        texts = texts.replace(before, after)
    assert_in_step(project, code, texts)
    assert project.embedded_at("shop_movieembedding") == made
    tables = dict(zip(table[::2], table[1::2], strict=True))
    genre, column = tables.get("shop_genre", "shop_genre"), new if new == "label" else "name"
    project.sql(f"UPDATE {genre} SET {column} = 'Noir' WHERE id = 1")
    link = tables.get("shop_movie_genres", "shop_movie_genres")
    project.sql(f"DELETE FROM {link} WHERE movie_id = 1 AND id = (SELECT min(id) FROM {link})")
    assert_in_step(project, code, texts)
    assert project.embedded_at("shop_movieembedding") != made


def test_a_relation_goes_with_its_column(project):
    code = project.code(RELATED)
    code.upgrade()
    fill(project)
    code.drain()
    code = project.code(
        PLAIN.replace(GENRE, "").replace('genres = models.ManyToManyField("Genre")', "")
    )
    code.upgrade()
    assert project.triggers() == [SOURCE]
    assert_in_step(project, code, "SELECT id, title FROM shop_movie")


def test_the_sql_can_be_read_before_it_is_run(project):
    code = project.code(RELATED)
    code.run("makemigrations")
    code.run("migrate", "embedsync")
    sql = code.run("sqlmigrate", "shop", "0001")
    assert 'AFTER UPDATE ON "shop_genre"' in sql
    assert sql.index("embedsync_lock") < sql.index("CREATE OR REPLACE TRIGGER")
