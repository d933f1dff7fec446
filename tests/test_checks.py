"""System checks: what is wrong is named, with its cure, before anything is written."""

import dataclasses
import datetime
import types

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Exists, F, Q, Subquery, Value
from django.db.models.functions import Now
from django.test.utils import isolate_apps
from django.utils import timezone

from embedsync import declaration
from embedsync.checks import databases
from embedsync.checks import declarations as ours
from embedsync.checks.choice import check_choice
from embedsync.declaration import declaration_of, relation_of
from embedsync.models import EmbeddedModel, Embedding, EmbeddingModel, EmbeddingSource
from tests.library.models import Book, Play

CURED = {"embedder": "hashing"}


def found(*sidecars):
    """The ids of what the checks find in these sidecars."""
    messages = []
    for sidecar in sidecars:
        for check in (
            ours.wrong_source,
            ours.wrong_text,
            ours.wrong_embedder,
            ours.wrong_condition,
            ours.wrong_database,
        ):
            messages += check(sidecar)
    assert all(message.hint for message in messages)
    return [message.id for message in messages]


def declare(*fields, **options):
    """The sidecar of a model with such a declaration."""

    class Author(models.Model):
        name = models.TextField()

        class Meta:
            app_label = "library"

    class Story(EmbeddedModel):
        title = models.TextField()
        author = models.ForeignKey(Author, models.CASCADE)
        shown_at = models.DateTimeField(null=True)

        embedding = Embedding(*fields, **{**CURED, **options})

        class Meta:
            app_label = "library"

        def told(self):
            return self.title

    class Comment(models.Model):
        story = models.ForeignKey(Story, models.CASCADE)
        text = models.TextField()

        class Meta:
            app_label = "library"

    return Story.embedding.model


@isolate_apps("tests.library")
@pytest.mark.parametrize(
    ("fields", "options", "ids"),
    [
        (("title",), {}, []),
        (("title",), {"template": "{title}!", "condition": Q(title="x") | ~Q(author=3)}, []),
        (("title", "author"), {"template": "{title} {{ {author}"}, []),
        ((), {}, ["embedsync.E001"]),
        (("titel",), {}, ["embedsync.E001"]),
        (("author__name", "author__nationality__name"), {}, ["embedsync.E001"]),
        (
            ("author__name", "comment__text"),
            {"template": "{title} {comment__text}"},
            ["embedsync.E007"],
        ),
        (("title__upper",), {}, ["embedsync.E001"]),
        (("pages",), {}, ["embedsync.E001"]),
        (("title",), {"embedder": "unknown"}, ["embedsync.E002"]),
        (("title",), {"template": "{title} {year}"}, ["embedsync.E007"]),
        (("title",), {"template": "{title"}, ["embedsync.E007"]),
        (("title",), {"template": "{title.upper}"}, ["embedsync.E007"]),
        (("title",), {"template": "{title:>10}"}, ["embedsync.E007"]),
        (("title",), {"template": "{0}"}, ["embedsync.E007"]),
        (("title",), {"condition": Q(nothing=1)}, ["embedsync.E001"]),
        (("title",), {"condition": Q(author__name="x") | Q(title=F("author__name"))}, []),
        (("title",), {"condition": Q(comment__text="x")}, ["embedsync.E010"]),
        (("title",), {"condition": Q(title=F("comment__text"))}, ["embedsync.E010"]),
        ((), {"text": "told", "watch": ["title", "author__name"]}, []),
        ((), {"text": "told"}, ["embedsync.E018"]),
        ((), {"watch": ["title"]}, ["embedsync.E018"]),
        ((), {"text": "sung", "watch": ["title"]}, ["embedsync.E018"]),
        ((), {"text": "told", "watch": ["titel"]}, ["embedsync.E001"]),
        (("title",), {"text": "told", "watch": ["title"]}, ["embedsync.E018"]),
        (("title",), {"condition": Q(shown_at__lte=Now())}, ["embedsync.W012"]),
        (("title",), {"condition": Q(pk__in=Book.objects.all())}, ["embedsync.E024"]),
        (("title",), {"condition": Q(pk=Subquery(Book.objects.values("pk")))}, ["embedsync.E024"]),
        (("title",), {"condition": Exists(Book.objects.all()) & Q()}, ["embedsync.E024"]),
        (("title",), {"condition": Q(shown_at__lte=timezone.now())}, ["embedsync.E011"]),
        (("title",), {"condition": Q(shown_at__lte=Value(timezone.now()))}, ["embedsync.E011"]),
        (("title",), {"condition": Q(shown_at__lte=datetime.datetime(2020, 1, 1))}, []),
    ],
)
def test_declarations(fields, options, ids):
    assert found(declare(*fields, **options)) == ids


@isolate_apps("tests.library")
def test_hints_name_the_columns():
    [message] = ours.wrong_text(declare("titel"))
    assert "no column of library.Story" in message.msg
    assert "id, title, author, shown_at" in message.hint
    assert "relation__field" in message.hint


@isolate_apps("tests.library")
def test_hints_name_the_embedders():
    [message] = ours.wrong_embedder(declare("title", embedder="unknown"))
    assert "'unknown' (there: 'default', 'hashing', 'scripted', 'worded')" in message.msg


@isolate_apps("tests.library")
def test_no_embedders_at_all(settings):
    settings.EMBEDSYNC_EMBEDDERS = None
    [message] = ours.wrong_embedder(declare("title"))
    assert "no embedder 'hashing' (there: none)" in message.msg


@isolate_apps("tests.library")
def test_a_key_that_is_misspelt_is_named(settings):
    settings.EMBEDSYNC_EMBEDDERS = {"hashing": {"DIMENSION": 3}}
    [message] = ours.wrong_embedder(declare("title"))
    assert "TOKENS_PER_MINUTE, not 'DIMENSION'." in message.msg


@isolate_apps("tests.library")
def test_a_proxy_of_a_sidecar_is_none(monkeypatch):
    class OfBook(EmbeddingModel):
        source = EmbeddingSource(Book, "title", **CURED)

        class Meta:
            app_label = "library"

    class Proxy(OfBook):
        class Meta:
            app_label = "library"
            proxy = True

    monkeypatch.setattr(declaration.apps, "get_models", lambda: [OfBook, Proxy])
    assert declaration.sidecars() == [OfBook]


@isolate_apps("tests.library")
def test_a_source_that_is_handed_down(monkeypatch):
    class Base(EmbeddingModel):
        source = EmbeddingSource(Book, "title", **CURED)

        class Meta:
            app_label = "library"
            abstract = True

    class Plain(Base):
        class Meta:
            app_label = "library"

    class WithMeta(Base):
        class Meta(Base.Meta):
            app_label = "library"

    monkeypatch.setattr(ours, "sidecars", lambda: [Plain, WithMeta])
    messages = [
        message for message in ours.check_declarations() if message.obj in (Plain, WithMeta)
    ]
    assert [message.id for message in messages] == ["embedsync.E035"] * 2
    assert "no triggers" in messages[0].msg


@isolate_apps("tests.library")
@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"BACKEND": "no.such.Class", "DIMENSIONS": 3},
        {"BACKEND": "tests.embedders.NoSuchClass", "DIMENSIONS": 3},
        {"BACKEND": "django.db.models.Model", "DIMENSIONS": 3},
        {
            "BACKEND": "embedsync.embedders.sentence_transformers.SentenceTransformerEmbedder",
            "DIMENSIONS": 3,
        },
        {
            "BACKEND": "embedsync.embedders.sentence_transformers.SentenceTransformerEmbedder",
            "MODEL": "./nowhere",
            "DIMENSIONS": 3,
        },
        {"BACKEND": "embedsync.embedders.hashing.HashingEmbedder"},
        {"BACKEND": "embedsync.embedders.hashing.HashingEmbedder", "DIMENSIONS": "3"},
        {"BACKEND": "embedsync.embedders.hashing.HashingEmbedder", "DIMENSIONS": 0},
        {"BACKEND": "embedsync.embedders.hashing.HashingEmbedder", "DIMENSIONS": 16_001},
        {
            "BACKEND": "embedsync.embedders.hashing.HashingEmbedder",
            "DIMENSIONS": 3,
            "TOKEN_PER_MINUTE": 1_000,
        },
        "embedsync.embedders.hashing.HashingEmbedder",
        None,
    ],
)
def test_embedders(settings, entry):
    settings.EMBEDSYNC_EMBEDDERS = {"default": entry}
    assert found(declare("title", embedder="default")) == ["embedsync.E002"]


@isolate_apps("tests.library")
def test_proxies_and_multi_table_children(monkeypatch):
    class Parent(models.Model):
        title = models.TextField()

        class Meta:
            app_label = "library"

    class Proxy(Parent):
        embedding = Embedding("title", **CURED)

        class Meta:
            app_label = "library"
            proxy = True

    class Child(Parent):
        embedding = Embedding("title", **CURED)

        class Meta:
            app_label = "library"

    class ChildOtherEmbedding(EmbeddingModel):
        source = EmbeddingSource(Child, "title", **CURED)

        class Meta:
            app_label = "library"

    class ProxyEmbedding(EmbeddingModel):
        source = EmbeddingSource(Proxy, "title", **CURED)

        class Meta:
            app_label = "library"

    monkeypatch.setattr(ours.apps, "get_models", lambda: [Parent, Proxy, Child])
    messages = list(ours.misplaced())
    assert [message.id for message in messages] == ["embedsync.E003"]
    assert "Parent" in messages[0].hint
    assert found(ChildOtherEmbedding, Child.embedding.model) == []
    assert found(ProxyEmbedding) == ["embedsync.E003"]


@isolate_apps("tests.library")
def test_children_of_a_source_have_no_sidecar_of_their_own():
    class Parent(EmbeddedModel):
        title = models.TextField()
        embedding = Embedding("title", **CURED)

        class Meta:
            app_label = "library"

    class Child(Parent):
        class Meta:
            app_label = "library"

    assert Child.embedding is Parent.embedding


@isolate_apps("tests.library")
def test_managers_without_similar(monkeypatch):
    class Story(models.Model):
        title = models.TextField()
        embedding = Embedding("title", **CURED)

        class Meta:
            app_label = "library"

    monkeypatch.setattr(ours.apps, "get_models", lambda: [Story])
    [message] = ours.managers_without_similar()
    assert message.id == "embedsync.W017"


def test_declarations_of_wrong_types():
    with pytest.raises(TypeError, match=r"one by one"):
        Embedding(["title", "body"])
    with pytest.raises(TypeError, match=r"a Q object, not bool"):
        Embedding("title", condition=True)


@isolate_apps("tests.library")
def test_composite_keys():
    class Pair(models.Model):
        pk = models.CompositePrimaryKey("left", "right")
        left = models.IntegerField()
        right = models.IntegerField()
        title = models.TextField()
        embedding = Embedding("title", **CURED)

        class Meta:
            app_label = "library"

    assert found(Pair.embedding.model) == []


@isolate_apps("tests.library")
def test_a_sidecar_without_a_source(monkeypatch):
    class Lost(EmbeddingModel):
        class Meta:
            app_label = "library"

    monkeypatch.setattr(ours, "sidecars", lambda: [Lost])
    assert [message.id for message in ours.check_declarations()] == ["embedsync.E008"]


@isolate_apps("tests.library")
def test_databases(settings, monkeypatch):
    sidecar = declare("title")

    class Apart:
        def db_for_write(self, model, **hints):
            return "default" if issubclass(model, EmbeddingModel) else "elsewhere"

    settings.DATABASE_ROUTERS = [Apart()]
    assert found(sidecar) == ["embedsync.E005"]
    settings.DATABASE_ROUTERS = []
    sqlite = types.SimpleNamespace(vendor="sqlite", display_name="SQLite")
    monkeypatch.setattr(ours, "connections", {"default": sqlite})
    [message] = ours.wrong_database(sidecar)
    assert message.id == "embedsync.E006"
    assert "SQLite" in message.msg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMBEDSYNC_BATCH_SIZE", 0),
        ("EMBEDSYNC_BATCH_SIZE", 2.5),
        ("EMBEDSYNC_BATCH_SIZE", "500"),
        ("EMBEDSYNC_LEASE", -1),
        ("EMBEDSYNC_POLL_INTERVAL", None),
        ("EMBEDSYNC_MAX_ATTEMPTS", True),
        ("EMBEDSYNC_EF_SEARCH", 1001),
    ],
)
def test_settings(settings, name, value):
    assert list(ours.wrong_knobs()) == []
    setattr(settings, name, value)
    [message] = ours.wrong_knobs()
    assert (message.id, name in message.msg) == ("embedsync.E009", True)


def test_the_project_is_clean():
    assert [m for m in checks.run_checks() if m.id.startswith("embedsync")] == []


@pytest.mark.django_db
class TestDatabase:
    def messages(self):
        return [m.id for m in databases.check_databases(databases=["default"])]

    def test_all_is_well(self):
        assert self.messages() == []
        assert databases.check_databases() == []
        call_command("check", databases=["default"])

    def test_a_table_without_a_key(self):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE library_book DROP CONSTRAINT library_book_pkey CASCADE")
        [message] = databases.check_databases(databases=["default"])
        assert message.id == "embedsync.E015"
        assert 'TABLE "library_book" ADD PRIMARY KEY ("id")' in message.hint

    def test_a_view(self):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE library_memo RENAME TO memos")
            cursor.execute("CREATE VIEW library_memo AS SELECT * FROM memos")
        [message] = databases.check_databases(databases=["default"])
        assert "is no table" in message.msg

    def test_a_table_that_is_not_there_yet(self):
        MigrationRecorder(connection).record_unapplied("library", "0001_initial")
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE library_memo CASCADE")
        assert self.messages() == []

    def test_an_extension_that_is_gone(self):
        with connection.cursor() as cursor:
            cursor.execute("DROP EXTENSION vector CASCADE")
            [message] = databases.check_databases(databases=["default"])
            assert message.id == "embedsync.E014"
            assert "embed_status" in message.hint
            cursor.execute("CREATE EXTENSION vector")
        assert self.messages() == []

    def test_an_extension_that_is_too_old(self):
        with connection.cursor() as cursor:
            cursor.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        [message] = databases.check_databases(databases=["default"])
        assert message.id == "embedsync.E014"
        assert "pgvector 0.7.4" in message.msg
        assert "ALTER EXTENSION vector UPDATE" in message.hint

    @pytest.mark.parametrize(
        ("row", "installed", "ids"),
        [
            ((150003, "0.8.5", True), (0, 8, 5), ["embedsync.E013"]),
            ((160003, None, False), None, ["embedsync.E014"]),
            ((160003, "0.8.0", False), None, []),
        ],
    )
    def test_servers_that_are_too_old(self, monkeypatch, row, installed, ids):
        """No such server can be had here: its answers are made up."""

        class Cursor:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def execute(self, sql):
                pass

            def fetchone(self):
                return row

        server = types.SimpleNamespace(alias="default", cursor=Cursor)
        monkeypatch.setattr(databases.RequireVector, "version", staticmethod(lambda _: installed))
        messages = list(databases.wrong_server(server))
        assert [message.id for message in messages] == ids
        assert all(message.hint for message in messages)


def test_a_database_that_does_not_answer(monkeypatch):
    from django.db import OperationalError

    def fail(connection):
        raise OperationalError("no route")

    monkeypatch.setattr(databases, "wrong_server", fail)
    [message] = databases.check_databases(databases=["default"])
    assert message.id == "embedsync.W016"


def test_a_cache_that_is_not_there(settings):
    settings.EMBEDSYNC_QUERY_CACHE = "redis"
    (message,) = ours.wrong_knobs()
    assert message.id == "embedsync.E009"
    assert "CACHES has no such alias" in message.msg
    assert "'default'" in message.hint


def test_several_defaults(monkeypatch):
    assert list(ours.several_defaults()) == []
    declaration = dataclasses.replace(declaration_of(Play.by_plot.model), default=True)
    monkeypatch.setattr(relation_of(Play.by_plot.model), "declaration", declaration)
    (message,) = ours.several_defaults()
    assert (message.id, message.obj) == ("embedsync.E025", Play)
    assert "by_title" in message.msg


def test_several_and_no_default(monkeypatch):
    assert check_choice() == []
    declaration = dataclasses.replace(declaration_of(Play.by_title.model), default=False)
    monkeypatch.setattr(relation_of(Play.by_title.model), "declaration", declaration)
    (message,) = check_choice()
    assert (message.id, message.obj) == ("embedsync.W036", Play)
    assert "by_title, by_plot" in message.msg


def test_sidecars_of_one_source_and_one_name(monkeypatch):
    assert list(ours.same_names()) == []
    there = list(ours.sidecars())
    twin = Play.by_plot.model
    other = next(sidecar for sidecar in there if sidecar is not twin)
    monkeypatch.setattr(ours, "sidecars", lambda: [twin, other])
    monkeypatch.setattr(ours, "source_of", lambda sidecar: Play)
    monkeypatch.setattr(other._meta, "model_name", twin._meta.model_name)
    (message,) = ours.same_names()
    assert (message.id, message.obj) == ("embedsync.E034", other)
    assert message.hint
