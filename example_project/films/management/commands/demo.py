"""``manage.py demo``: a few searches of the film site, printed with the time each took."""

import time
from textwrap import shorten
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet

from embedsync.embedders import get_embedder
from example_project import minilm
from example_project.blog.markdown import as_words
from example_project.blog.models import Post
from example_project.films.models import Movie

SHOWN = 5
WIDTH = 50
TEXTS = [
    "a rat who wants to cook",
    "strangers meet on a train and fall in love",
    "a detective who is afraid of heights",
    "a weatherman is caught in a time loop",
    "a killer hunted by a man without memory",
]
QUESTIONS = ["why old films catch fire", "how does one make the sound of footsteps"]
SHOWN_POSTS = 2
LIKED = [("Alien", 1979), ("Seven Samurai", 1954)]


class Command(BaseCommand):
    help = "Shows what the film site can do: searches by text, and films like another."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            minilm.verify()
        except (OSError, ValueError) as error:
            raise CommandError(f"The model is not fit to be used: {error}") from None
        if not searchable().exists():
            raise CommandError(
                "No film has a vector yet. Load films and embed them: manage.py load_films, then"
                " manage.py embed_worker --drain."
            )
        started = time.perf_counter()
        get_embedder(Movie.embedding.declaration.embedder).checked_query("load the model")
        seconds = time.perf_counter() - started
        self.stdout.write(
            f"{searchable().count()} films can be searched. The model was checked, and loaded in"
            f" {seconds:.1f} s.\nThe times below are those of embedding the text and searching."
        )
        for text in TEXTS:
            self.show(f"“{text}”", Movie.objects.similar(text))
        for movie in liked():
            self.show(f"More like {movie}", movie.similar())
        for text in QUESTIONS:
            self.show_posts(text)
        self.stdout.write(
            "\nSearch for yourself: start the site with\n"
            "    .venv/bin/python manage.py runserver\n"
            "and open http://127.0.0.1:8000/"
        )

    def show(self, heading: str, found: "QuerySet[Movie]") -> None:
        """Run one search and print its nearest films."""
        started = time.perf_counter()
        movies = list(found[:SHOWN])
        milliseconds = (time.perf_counter() - started) * 1000
        self.stdout.write(f"\n{heading}  ({milliseconds:.0f} ms)")
        self.stdout.write(f"    {'title':{WIDTH}}  year  distance")
        for movie in movies:
            title = movie.title if len(movie.title) <= WIDTH else f"{movie.title[: WIDTH - 1]}…"
            self.stdout.write(f"    {title:{WIDTH}}  {movie.year}      {movie.distance:.2f}")

    def show_posts(self, text: str) -> None:
        """Search the blog, and print the passages that were found."""
        if not Post.embedding.model.objects.exists():
            return
        started = time.perf_counter()
        posts = list(Post.objects.similar(text)[:SHOWN_POSTS])
        milliseconds = (time.perf_counter() - started) * 1000
        self.stdout.write(f"\nIn the blog: “{text}”  ({milliseconds:.0f} ms)")
        for post in posts:
            self.stdout.write(f"    {post.distance:.2f}  {post.title}")
            self.stdout.write(f"          {shorten(as_words(post.passage), 84, placeholder=' …')}")


def searchable() -> "QuerySet[Movie]":
    """The films that a search can find."""
    return Movie.objects.filter(published=True, movieembedding__ordinal=0)


def liked() -> list[Movie]:
    """Two films to find others like: well-known ones, or any where those are not loaded."""
    found = [searchable().filter(title=title, year=year).first() for title, year in LIKED]
    chosen = [movie for movie in found if movie is not None]
    others = searchable().exclude(pk__in=[movie.pk for movie in chosen])
    return [*chosen, *others[: len(LIKED) - len(chosen)]]
