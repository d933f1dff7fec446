"""Sources of every kind of key, of abstract bases and of third parties."""

import uuid

from django.db import models
from django.db.models import Q

from embedsync.models import EmbeddedModel, Embedding, EmbeddingModel, EmbeddingSource


class Book(EmbeddedModel):
    """The plain case, with a condition. Its embedder fails, waits and dies on demand."""

    title = models.CharField(max_length=200)
    body = models.TextField(blank=True)
    year = models.IntegerField(default=2000)
    published = models.BooleanField(default=True)

    embedding = Embedding(
        "title",
        "body",
        template="{title}. {body}",
        condition=Q(published=True),
        embedder="scripted",
    )

    def __str__(self):
        return self.title


class Parcel(EmbeddedModel):
    """A uuid key, and text that may be NULL."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    label = models.TextField(null=True)  # noqa: DJ001

    embedding = Embedding("label", embedder="hashing")

    def __str__(self):
        return str(self.id)


class Ticket(EmbeddedModel):
    """A text key with a column name of its own."""

    code = models.CharField(max_length=40, primary_key=True, db_column="Ticket Code")
    text = models.TextField(db_column="the text")

    embedding = Embedding("text", embedder="hashing")

    class Meta:
        db_table = "library tickets"

    def __str__(self):
        return self.code


class Note(EmbeddedModel):
    """An abstract base: each child has a sidecar of its own."""

    text = models.TextField()

    embedding = Embedding("text", embedder="hashing")

    class Meta:
        abstract = True

    def __str__(self):
        return self.text


class Memo(Note):
    id = models.AutoField(primary_key=True)


class Letter(Note):
    pass


class Postscript(models.Model):
    """Looks at a letter as an application would: with a cascade."""

    letter = models.ForeignKey(Letter, on_delete=models.CASCADE)

    def __str__(self):
        return f"P.S. {self.letter_id}"


class Hall(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self):
        return self.name


class Seat(EmbeddedModel):
    """A key of two columns, one of them a relation."""

    pk = models.CompositePrimaryKey("hall_id", "number")
    hall = models.ForeignKey(Hall, models.CASCADE)
    number = models.CharField(max_length=10)
    view = models.TextField()
    free = models.BooleanField(default=True)

    embedding = Embedding("view", "hall__name", condition=Q(free=True), embedder="hashing")

    def __str__(self):
        return self.view


class Evening(EmbeddedModel):
    """A date for a key."""

    day = models.DateField(primary_key=True)
    programme = models.TextField()

    embedding = Embedding("programme", embedder="hashing")

    def __str__(self):
        return self.programme


class Work(models.Model):
    title = models.CharField(max_length=100)
    public = models.BooleanField(default=True)

    def __str__(self):
        return self.title


class Novel(EmbeddedModel, Work):
    """A child of a multi-table parent, where some of its fields and its condition are."""

    blurb = models.TextField()

    embedding = Embedding("title", "blurb", condition=Q(public=True), embedder="hashing")


class Thriller(Novel):
    """A child of a source: its rows are rows of the source."""

    deaths = models.IntegerField(default=1)


class FlatPageEmbedding(EmbeddingModel):
    """A third-party source, which stays as it is."""

    source = EmbeddingSource("flatpages.FlatPage", "title", "content", embedder="hashing")


class Play(EmbeddedModel):
    """Two sidecars, each with a model of its own; and a field that is called distance."""

    title = models.CharField(max_length=100)
    plot = models.TextField()
    distance = models.IntegerField(default=0)

    by_title = Embedding("title", embedder="hashing", default=True)
    by_plot = Embedding("plot", embedder="scripted")

    def __str__(self):
        return self.title
