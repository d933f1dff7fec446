from django.db import models
from django.db.models import Q
from django.urls import reverse

from embedsync.models import Chunks, EmbeddedModel, Embedding


class Post(EmbeddedModel):
    title = models.CharField(max_length=200)
    slug = models.SlugField(max_length=100, unique=True)
    body = models.TextField(help_text="Markdown.")
    published_time = models.DateTimeField(
        "published", null=True, blank=True, help_text="A post without it is a draft."
    )

    embedding = Embedding(
        "title",
        "body",
        template="# {title}\n\n{body}",
        condition=Q(published_time__isnull=False),
        chunks=Chunks(size=200, overlap=20),
    )

    class Meta:
        ordering = ["-published_time", "title"]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("post", args=[self.slug])
