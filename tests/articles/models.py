"""Sources of long texts: with chunks, under keys of several kinds, and without."""

from django.db import models
from django.db.models import Q

from embedsync.models import Chunks, EmbeddedModel, Embedding


class Article(EmbeddedModel):
    """Passages of at most eight words, which do not overlap."""

    title = models.CharField(max_length=100, blank=True)
    body = models.TextField()
    published_time = models.DateTimeField(null=True)

    embedding = Embedding(
        "body",
        condition=Q(published_time__isnull=False),
        embedder="worded",
        chunks=Chunks(size=8),
    )

    def __str__(self):
        return self.title


class Leaf(EmbeddedModel):
    """A key of two columns, one of them a text; its passages overlap."""

    pk = models.CompositePrimaryKey("volume", "number")
    volume = models.CharField(max_length=10)
    number = models.IntegerField()
    text = models.TextField()

    embedding = Embedding("text", embedder="worded", chunks=Chunks(size=6, overlap=3))

    def __str__(self):
        return self.text


class Entry(EmbeddedModel):
    """A key that is a text; an embedder that has no tokenizer."""

    slug = models.CharField(max_length=40, primary_key=True)
    text = models.TextField()

    embedding = Embedding("text", embedder="scripted", chunks=Chunks(size=10, markdown=False))

    def __str__(self):
        return self.slug


class Remark(EmbeddedModel):
    """No chunks: what the model does not read is counted."""

    text = models.TextField()

    embedding = Embedding("text", embedder="worded")

    def __str__(self):
        return self.text
