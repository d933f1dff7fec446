"""What another app says about films: it knows them, and they do not know it."""

from django.db import models

from tests.cinema.models import Film


class Author(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self):
        return self.name


class Review(models.Model):
    film = models.ForeignKey(Film, models.CASCADE, related_name="reviews")
    author = models.ForeignKey(Author, models.SET_NULL, null=True, db_constraint=False)
    text = models.TextField()

    def __str__(self):
        return self.text
