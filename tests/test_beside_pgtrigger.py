"""A model with an embedding and triggers of django-pgtrigger."""

from dataclasses import dataclass
from textwrap import dedent

import pytest

from tests.migration_project import CommandFailedError
from tests.shop import Shape, assert_in_step

APPS = ("django.contrib.postgres", "pgtrigger")
IMPORTS = """
import pgtrigger
from django.contrib.postgres.search import SearchVectorField
"""
EMBEDDING = 'embedding = Embedding("title", "plot", condition=Q(shown=True))'
TRIGGERS = """triggers = [
            pgtrigger.Trigger(
                name="tidy", when=pgtrigger.Before, operation=pgtrigger.Insert | pgtrigger.Update,
                func="NEW.title := btrim(NEW.title); RETURN NEW;",
            ),
            pgtrigger.UpdateSearchVector(
                name="words", vector_field="words", document_fields=["title"]
            ),
            pgtrigger.ReadOnly(name="fixed", fields=["year"]),
            pgtrigger.SoftDelete(name="soft", field="shown"),
            pgtrigger.Trigger(
                name="told", when=pgtrigger.After, operation=pgtrigger.Update,
                level=pgtrigger.Statement,
                referencing=pgtrigger.Referencing(old="old_rows", new="new_rows"),
                func='''
                    INSERT INTO shop_story (text)
                    SELECT n.title FROM new_rows n JOIN old_rows o USING (id)
                    WHERE n.title <> o.title;
                    RETURN NULL;
                ''',
            ),
            pgtrigger.Trigger(
                name="late", when=pgtrigger.After, operation=pgtrigger.Insert,
                timing=pgtrigger.Deferred,
                func="UPDATE shop_movie SET plot = 'Seen' WHERE id = NEW.id; RETURN NULL;",
            ),
        ]"""


def models(embedding=EMBEDDING, triggers=TRIGGERS, title="CharField(max_length=200)"):
    return f"""{IMPORTS}
class Movie(EmbeddedModel):
    title = models.{title}
    plot = models.TextField(default="-")
    year = models.IntegerField(default=2000)
    shown = models.BooleanField(default=True)
    words = SearchVectorField(null=True)
    {embedding}

    class Meta:
        {triggers or "pass"}


class Story(EmbeddedModel):
    text = models.TextField()
    embedding = Embedding("text")
"""


MOVIES = Shape(
    models(),
    texts="SELECT id, concat_ws(E'\\n', title, plot) FROM shop_movie WHERE shown",
)
STORIES = Shape(
    models(),
    texts="SELECT id, text FROM shop_story",
    table="shop_story",
    key="shop.storyembedding",
)


@dataclass
class Both:
    """A project with both kinds of triggers."""

    project: object
    code: object

    def orm(self, program):
        """Run Python in the project."""
        self.code.run("shell", "--verbosity=0", "-c", IN_THE_PROJECT + dedent(program))

    def events(self):
        """Keys that the inbox has for movies and for stories, in order; and drain them."""
        found = [[key for _, key in self.project.events(shape.key)] for shape in (MOVIES, STORIES)]
        self.code.drain()
        for shape in (MOVIES, STORIES):
            assert_in_step(self.project, shape)
        return found

    def theirs(self):
        """The names of pgtrigger's triggers, and whether they are enabled."""
        rows = self.project.sql(
            "SELECT split_part(tgname, '_', 2), tgenabled = 'O' FROM pg_trigger"
            " WHERE tgname LIKE 'pgtrigger%%' ORDER BY 1"
        )
        return dict(rows)

    def ours(self):
        """For each source with its sidecar's key, how many of our triggers are enabled."""
        rows = self.project.sql(
            "SELECT relname, count(*) FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid"
            " JOIN pg_proc p ON p.oid = tgfoid AND proname LIKE 'embedsync_capture%%'"
            " WHERE tgenabled = 'O' GROUP BY 1"
        )
        return dict(rows)


IN_THE_PROJECT = """
import embedsync, pgtrigger
from django.db import transaction
from embedsync.models import Inbox
from shop.models import Movie, Story
"""
ALL_OURS = {"shop_movie": 4, "shop_story": 4}
ALL_THEIRS = dict.fromkeys(["fixed", "late", "soft", "tidy", "told", "words"], True)


@pytest.fixture
def both(project):
    code = project.code(models(), apps=APPS)
    code.upgrade()
    return Both(project, code)


def test_what_their_triggers_make_of_a_write_is_captured(both):
    both.orm("Movie.objects.create(title='  one  ')")
    # Once for the row, and once for what the deferred trigger makes of it at the commit.
    assert both.events() == [["1", "1"], []]
    assert both.project.sql("SELECT title, plot FROM shop_movie") == [("one", "Seen")]
    both.orm("Movie.objects.update(title=' two ')")
    assert both.events() == [["1"], ["1"]]
    assert both.project.sql("SELECT text FROM shop_story") == [("two",)]
    both.orm("Movie.objects.update(title='two  ')")
    assert both.events() == [[], []]


def test_a_change_that_their_trigger_refuses_makes_no_event(both):
    both.orm("Movie.objects.create(title='one')")
    both.events()
    with pytest.raises(CommandFailedError, match="Cannot update rows"):
        both.orm("Movie.objects.update(title='two', year=1)")
    assert both.events() == [[], []]


def test_a_softly_deleted_row_loses_its_vector(both):
    both.orm("Movie.objects.create(title='one'); Movie.objects.create(title='two')")
    both.events()
    both.orm("Movie.objects.filter(title='one').delete()")
    assert both.events() == [["1"], []]
    assert both.project.sql("SELECT count(*) FROM shop_movie") == [(2,)]
    assert both.project.vectors(MOVIES.sidecar).keys() == {2}


def test_what_they_ignore_and_what_we_pause_are_two_things(both):
    both.orm(
        """
        with pgtrigger.ignore():
            Movie.objects.create(title=' one ')
        with pgtrigger.ignore("shop.Movie:tidy"):
            Movie.objects.create(title=' two ')
        """
    )
    assert both.events() == [["1", "2", "2"], []]
    assert both.project.sql("SELECT title FROM shop_movie ORDER BY 1") == [(" one ",), (" two ",)]
    both.orm("with pgtrigger.ignore('shop.Movie:soft'): Movie.objects.get(pk=1).delete()")
    assert both.events() == [["1"], []]
    both.orm(
        """
        with transaction.atomic():
            with embedsync.paused(), pgtrigger.ignore("shop.Movie:soft"):
                Movie.objects.update(title=' three ')
                Movie.objects.create(title=' four ')
            assert not Inbox.objects.exists()
            with pgtrigger.ignore(), embedsync.paused():
                Movie.objects.create(title=' five ')
            Movie.objects.create(title=' six ')
        """
    )
    # The sixth was captured; and the deferred triggers of all run at the commit, after the pause.
    events = [("row", "5"), ("row", "3"), ("row", "4"), ("row", "5")]
    assert both.project.events(MOVIES.key) == events
    titles = both.project.sql("SELECT title FROM shop_movie ORDER BY id")
    assert titles == [("three",), ("four",), ("five",), ("six",)]
    assert both.project.sql("SELECT text FROM shop_story") == [("three",), ("five",)]
    assert both.project.events(STORIES.key) == [("row", "2")]


def test_the_moment_of_a_deferred_trigger_is_the_applications_choice(both):
    both.orm(
        """
        with transaction.atomic():
            Movie.objects.create(title="one")
            assert Inbox.objects.count() == 1
            pgtrigger.constraints(pgtrigger.Immediate, "shop.Movie:late")
            assert Inbox.objects.count() == 2
            Movie.objects.create(title="two")
            assert Inbox.objects.count() == 4
        """
    )
    assert both.events() == [["1", "1", "2", "2"], []]


def test_another_schema_in_front_is_no_hindrance(both):
    both.project.sql("CREATE SCHEMA elsewhere CREATE TABLE embedsync_inbox (seq bigint)")
    both.orm("with pgtrigger.schema('elsewhere', 'public'): Movie.objects.create(title='one')")
    assert both.events() == [["1", "1"], []]


def test_the_commands_and_migrations_of_each_leave_the_others_triggers(both):
    assert (both.ours(), both.theirs()) == (ALL_OURS, ALL_THEIRS)
    both.code.run("pgtrigger", "disable")
    assert (both.ours(), both.theirs()) == (ALL_OURS, dict.fromkeys(ALL_THEIRS, False))
    both.code.run("migrate")
    assert (both.ours(), both.theirs()) == (ALL_OURS, dict.fromkeys(ALL_THEIRS, False))
    both.code.run("pgtrigger", "uninstall")
    both.code.run("pgtrigger", "prune")
    assert (both.ours(), both.theirs()) == (ALL_OURS, {})
    both.code.run("pgtrigger", "install")
    assert (both.ours(), both.theirs()) == (ALL_OURS, ALL_THEIRS)


@pytest.mark.parametrize(
    ("changed", "ours", "theirs"),
    [
        (models(title="TextField()"), ALL_OURS, ALL_THEIRS),
        (models(embedding=EMBEDDING.replace('"plot", ', "")), ALL_OURS, ALL_THEIRS),
        (models(triggers=""), ALL_OURS, {}),
        (models(embedding=""), {"shop_story": 4}, ALL_THEIRS),
    ],
    ids=["type", "fields", "without theirs", "without ours"],
)
def test_migrations_change_either_and_both_and_back(both, changed, ours, theirs):
    both.orm("Movie.objects.create(title='one')")
    both.code.drain()
    both.code = both.project.code(changed, apps=APPS)
    both.code.upgrade()
    assert (both.ours(), both.theirs()) == (ours, theirs)
    both.orm("Movie.objects.create(title='two')")
    both.code.run("migrate", "shop", "0001")
    both.code = both.project.code(models(), apps=APPS)
    assert (both.ours(), both.theirs()) == (ALL_OURS, ALL_THEIRS)
    both.events()
    both.orm("Movie.objects.create(title='three')")
    assert both.events() == [["3", "3"], []]
    both.code.run("migrate", "shop", "zero")
    assert both.project.tables() == []
