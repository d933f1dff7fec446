from django.db import models
from django.db.models import Q
from django.urls import reverse

from embedsync.models import EmbeddedModel, Embedding


class Genre(models.Model):
    name = models.CharField(max_length=50, unique=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Movie(EmbeddedModel):
    title = models.CharField(max_length=300)
    year = models.PositiveSmallIntegerField(db_index=True)
    director = models.CharField(max_length=300, blank=True)
    cast = models.CharField(max_length=1000, blank=True, help_text="Names, joined by commas.")
    plot_summary = models.TextField(blank=True)
    href = models.CharField(
        "Wikipedia article",
        max_length=500,
        blank=True,
        help_text="Where the text comes from, if it is Wikipedia's (CC BY-SA).",
    )
    published = models.BooleanField(default=True, help_text="Others are neither shown nor found.")
    genres = models.ManyToManyField(Genre, blank=True, related_name="movies")

    embedding = Embedding(
        "title",
        "plot_summary",
        template="{title}. {plot_summary}",
        condition=Q(published=True),
    )

    class Meta:
        ordering = ["-year", "title"]
        constraints = [
            models.UniqueConstraint(fields=["title", "year"], name="movie_title_and_year")
        ]

    def __str__(self) -> str:
        return f"{self.title} ({self.year})"

    def get_absolute_url(self) -> str:
        return reverse("movie", args=[self.pk])

    @property
    def source_url(self) -> str:
        """The Wikipedia article that the text comes from, or ""."""
        return f"https://en.wikipedia.org/wiki/{self.href}" if self.href else ""
