"""Sources of each kind, and their twins without triggers in the schema ``bare``.

The same statements run on both sides: ``side("public")`` is the one with triggers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from common import run_sql
from django.db import connection, models
from django.db.models import Q

from embedsync.models import EmbeddedModel, Embedding

TRACED, BARE = "public", "bare"
SIDES = (BARE, TRACED)
INBOX = "public.embedsync_inbox"


class Text(EmbeddedModel):
    """Columns alone; its primary key is its only index."""

    title = models.CharField(max_length=300)
    body = models.TextField()
    note = models.CharField(max_length=300)
    published = models.BooleanField(default=True)

    class Meta:
        abstract = True
        app_label = "films"

    def __str__(self) -> str:
        return self.title


class Plain(Text):
    embedding = Embedding("title", "body")


class Conditional(Text):
    embedding = Embedding("title", "body", condition=Q(published=True))


class RowLevel(Text):
    embedding = Embedding("title", "body", capture="row")


class Named(models.Model):
    name = models.CharField(max_length=300)
    note = models.CharField(max_length=300)

    class Meta:
        abstract = True
        app_label = "films"

    def __str__(self) -> str:
        return self.name


class Director(Named):
    pass


class Style(Named):
    pass


class Related(Text):
    """A foreign key and a many-to-many relation, with the indexes that Django gives them."""

    director = models.ForeignKey(Director, models.CASCADE)
    styles = models.ManyToManyField(Style)

    embedding = Embedding("title", "director__name", "styles__name")


def tables(model: Any) -> list[str]:
    """The tables of a model, of what it refers to and of the relations; the referred ones first."""
    options: Any = model._meta
    related = [field.related_model for field in options.get_fields() if field.concrete]
    links = [field.remote_field.through for field in options.many_to_many]
    found = [*filter(None, related), model, *links]
    return list(dict.fromkeys(m._meta.db_table for m in found if m is not None))


def make(*sources: Any) -> None:
    """The tables of these sources with their triggers, and the twins."""
    with connection.schema_editor() as schema_editor:
        made: list[Any] = []
        for source in sources:
            referred = [Director, Style] if source is Related else []
            for model in [*referred, source, source.embedding.model]:
                if model not in made:
                    schema_editor.create_model(model)
                    made.append(model)
    run_sql(f"CREATE SCHEMA IF NOT EXISTS {BARE}")
    for source in sources:
        make_twins(tables(source))


def make_twins(names: Sequence[str]) -> None:
    """Copies in the schema ``bare`` with the same columns, indexes and foreign keys."""
    for name in names:
        run_sql(f"CREATE TABLE {BARE}.{name} (LIKE {TRACED}.{name} INCLUDING ALL)")
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE contype = 'f' AND conrelid = %s::regclass",
                [f"{TRACED}.{name}"],
            )
            for (foreign_key,) in cursor.fetchall():
                # It names the other table without a schema.
                with side(BARE):
                    cursor.execute(f"ALTER TABLE {name} ADD {foreign_key}")


@contextmanager
def side(schema: str) -> Iterator[None]:
    """Names of tables mean those of one side."""
    run_sql(f"SET search_path = {schema}")
    try:
        yield
    finally:
        run_sql("RESET search_path")


def settle(names: Sequence[str]) -> None:
    """No events, and nothing left for vacuum to do in these tables."""
    run_sql(f"TRUNCATE {INBOX}")
    run_sql(*(f"VACUUM ANALYZE {schema}.{name}" for schema in SIDES for name in names))
