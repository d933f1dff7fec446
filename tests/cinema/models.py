"""Sources whose text comes from related rows, over relations of every kind."""

from django.db import models
from django.db.models import Q

from embedsync.models import EmbeddedModel, Embedding


class Country(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self):
        return self.name


class Person(models.Model):
    name = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.SET_NULL, null=True)
    active = models.BooleanField(default=True)

    def __str__(self):
        return self.name


class Genre(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self):
        return self.name


class Film(EmbeddedModel):
    """Forward and reverse foreign keys, one-to-one, both kinds of many-to-many, several hops."""

    title = models.CharField(max_length=100)
    director = models.ForeignKey(Person, models.SET_NULL, null=True, related_name="directed")
    sequel_of = models.ForeignKey("self", models.SET_NULL, null=True)
    genres = models.ManyToManyField(Genre)
    cast = models.ManyToManyField(Person, through="Role")

    embedding = Embedding(
        "title",
        "director__name",
        "director__country__name",
        "sequel_of__title",
        "genres__name",
        "cast__name",
        "role__character",
        "poster__caption",
        "reviews__text",
        "reviews__author__name",
        embedder="hashing",
    )

    def __str__(self):
        return self.title


class Role(models.Model):
    film = models.ForeignKey(Film, models.CASCADE)
    person = models.ForeignKey(Person, models.CASCADE)
    character = models.CharField(max_length=100)

    def __str__(self):
        return self.character


class Poster(models.Model):
    film = models.OneToOneField(Film, models.CASCADE)
    caption = models.CharField(max_length=100)

    def __str__(self):
        return self.caption


class Portrait(EmbeddedModel):
    """A text that a method makes, and a condition on a related row."""

    person = models.ForeignKey(Person, models.CASCADE)
    style = models.CharField(max_length=100)

    embedding = Embedding(
        text="described",
        watch=["style", "person__name", "person__country__name", "person__directed__title"],
        condition=Q(person__active=True),
        embedder="hashing",
    )

    def __str__(self):
        return self.style

    def described(self):
        if self.style == "unspeakable":
            raise ValueError("words fail")
        if self.style == "silent":
            return "\n"
        titles = ", ".join(film.title for film in self.person.directed.all())
        return f"{self.style}: {self.person.name} of {self.person.country}. {titles}".strip()
