"""Tables that are legal and unusual: each is what once broke capture or a worker's SQL."""

from django.db import models
from django.db.models import Q
from pgvector.django import VectorField

from embedsync.models import EmbeddedModel, Embedding, EmbeddingManager


class Kind(models.Model):
    """A column that is called as the queries of the triggers call theirs."""

    key = models.CharField(max_length=100)

    def __str__(self):
        return self.key


class Present(EmbeddedModel):
    """Tables that are called as the queries of the worker might call theirs."""

    name = models.CharField(max_length=100)
    kind = models.ForeignKey(Kind, models.CASCADE)

    embedding = Embedding("name", "kind__key", embedder="hashing")

    class Meta:
        db_table = "given"

    def __str__(self):
        return self.name


class Flower(EmbeddedModel):
    name = models.CharField(max_length=100)
    kind = models.ForeignKey(Kind, models.CASCADE)

    embedding = Embedding("name", "kind__key", embedder="hashing")

    class Meta:
        db_table = "picked"

    def __str__(self):
        return self.name


class Rose(Flower):
    """A child whose key is not its parent's."""

    number = models.BigAutoField(primary_key=True)
    flower = models.OneToOneField(Flower, models.CASCADE, parent_link=True)


class Place(EmbeddedModel):
    """Whether there is a row beside it decides, and no column of that row is looked at."""

    name = models.CharField(max_length=100)

    embedding = Embedding("name", condition=Q(guide__isnull=False), embedder="hashing")

    def __str__(self):
        return self.name


class Guide(models.Model):
    place = models.OneToOneField(Place, models.CASCADE, primary_key=True)

    def __str__(self):
        return f"Guide to {self.place_id}"


class Number(models.Field):
    """Of any precision, as written: 1.5 and 1.50 are equal, and not the same text."""

    def db_type(self, connection):
        return "numeric"


class Lap(EmbeddedModel):
    """A key whose text depends on two settings of the session, and another that has two texts."""

    pk = models.CompositePrimaryKey("time", "share", "price")
    time = models.DurationField()
    share = models.FloatField()
    price = Number()
    note = models.TextField()

    embedding = Embedding("note", embedder="hashing")

    def __str__(self):
        return self.note


class Spot(EmbeddedModel):
    """A key of a type that comes from an extension, and whose operators are where that is."""

    at = VectorField(dimensions=2, primary_key=True)
    note = models.TextField()

    embedding = Embedding("note", embedder="hashing")

    def __str__(self):
        return self.note


class Living(models.Manager):
    def get_queryset(self):
        return super().get_queryset().filter(dead=False)


class Pet(EmbeddedModel):
    """A base manager that hides rows."""

    name = models.CharField(max_length=100)
    dead = models.BooleanField(default=False)

    objects = EmbeddingManager()
    living = Living()
    embedding = Embedding("name", embedder="hashing")

    class Meta:
        base_manager_name = "living"

    def __str__(self):
        return self.name


class გრძელისახელიცხრ(EmbeddedModel):  # noqa: N801
    """15 letters, which are 45 bytes: those of a trigger would be more than PostgreSQL takes."""

    name = models.CharField(max_length=100)

    embedding = Embedding("name", embedder="hashing")

    def __str__(self):
        return self.name
