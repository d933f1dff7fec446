"""The film site: a search by meaning, and a page for each film."""

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from example_project.films.forms import PAGES, SearchForm
from example_project.films.models import Movie

PAGE_SIZE = 10
ALIKE = 6
EXAMPLES = [
    "a rat who wants to cook",
    "strangers meet on a train and fall in love",
    "a detective who is afraid of heights",
    "a weatherman is caught in a time loop",
    "a killer hunted by a man without memory",
    "a poor man whose bicycle is stolen",
]


@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """The films nearest to a text, or the newest ones without a text."""
    form = SearchForm(request.GET, label_suffix="")
    form.is_valid()
    wanted = form.cleaned_data
    query = wanted.get("q", "")
    number = wanted.get("page") or 1
    embedded = Movie.embedding.model.objects.exists()
    found = filtered(wanted)
    if query:
        # Without vectors nothing can be found: no need to load a model for that.
        found = found.similar(query) if embedded else found.none()
    start = (number - 1) * PAGE_SIZE
    # One more than is shown tells whether there is a next page, without counting.
    films = list(found.prefetch_related("genres")[start : start + PAGE_SIZE + 1])
    more = len(films) > PAGE_SIZE
    context = {
        "form": form,
        "filters": [form["genre"], form["year_from"], form["year_to"]],
        "query": query,
        "filtered": any(wanted.get(name) for name in ("genre", "year_from", "year_to")),
        "films": films[:PAGE_SIZE],
        "first": start + 1,
        "embedded": embedded,
        "page": number,
        "next": number + 1 if more and number < PAGES else None,
        "previous": number - 1 if number > 1 else None,
        "capped": more and number == PAGES,
        "examples": EXAMPLES,
    }
    return render(request, "films/search.html", context)


def filtered(wanted: dict[str, Any]) -> "QuerySet[Movie]":
    """The published films that pass the filters, newest first."""
    films = Movie.objects.filter(published=True).order_by("-year", "title", "pk")
    lookups = {"genre": "genres__name", "year_from": "year__gte", "year_to": "year__lte"}
    for name, lookup in lookups.items():
        if wanted.get(name):
            films = films.filter(**{lookup: wanted[name]})
    return films


@require_safe
def movie(request: HttpRequest, pk: int) -> HttpResponse:
    """One film, and the films whose texts mean the most similar things."""
    film = get_object_or_404(Movie.objects.prefetch_related("genres"), pk=pk, published=True)
    try:
        alike = list(film.similar().prefetch_related("genres")[:ALIKE])
    except ValueError:
        alike = None  # its text has no vector yet
    return render(request, "films/movie.html", {"film": film, "alike": alike})
