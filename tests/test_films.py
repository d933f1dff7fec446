"""The example project's film site, and ``manage.py demo``."""

import re

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from example_project import minilm
from example_project.films.models import Genre, Movie

LICENCE = "https://creativecommons.org/licenses/by-sa/4.0/"


@pytest.fixture
def films(transactional_db):
    """Films without vectors: ``drain`` gives them some."""
    rows = [
        ("Deep Blue", 1990, "Sea", "A fisherman is dragged under by a giant squid."),
        ("Salt", 1995, "Sea", "Sailors drift on the ocean after their ship goes down."),
        ("Red Dust", 2001, "Space", "Astronauts land on Mars and find a buried door."),
        ("The Oven", 2010, "Food", "A baker opens a pastry shop in a mountain village."),
    ]
    made = []
    for title, year, genre, plot in rows:
        movie = Movie.objects.create(title=title, year=year, plot_summary=plot)
        movie.genres.add(Genre.objects.get_or_create(name=genre)[0])
        made.append(movie)
    return made


def titles(response):
    return [movie.title for movie in response.context["films"]]


def text_of(response):
    """What a reader sees of a page, on one line."""
    body = response.content.decode().split("<main", 1)[1]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_a_search_finds_by_meaning(client, films, drain):
    drain()
    response = client.get("/", {"q": "a tentacled beast attacks"})
    assert titles(response)[:2] == ["Deep Blue", "Salt"]
    distances = [movie.distance for movie in response.context["films"]]
    assert distances == sorted(distances)
    assert f"distance {distances[0]:.2f}" in text_of(response)
    assert "giant squid" in text_of(response)
    assert titles(client.get("/", {"q": "baking bread"}))[0] == "The Oven"


@pytest.mark.parametrize("query", [{}, {"q": ""}, {"q": "  \t "}])
def test_without_a_text_there_are_examples_and_films(client, films, query):
    response = client.get("/", query)
    assert titles(response) == ["The Oven", "Red Dust", "Salt", "Deep Blue"]
    assert "Describe a story in your own words" in text_of(response)
    for example in response.context["examples"]:
        assert example in text_of(response)
    assert 'href="/?q=' in response.content.decode()


def test_filters(client, films, drain):
    drain()
    sea = {"q": "a planet", "genre": "Sea"}
    assert sorted(titles(client.get("/", sea))) == ["Deep Blue", "Salt"]
    assert titles(client.get("/", {**sea, "year_from": "1991"})) == ["Salt"]
    assert titles(client.get("/", {**sea, "year_to": "1994"})) == ["Deep Blue"]
    years = {"year_from": "1995", "year_to": "2001"}
    assert titles(client.get("/", {"q": "a planet", **years})) == ["Red Dust", "Salt"]
    assert titles(client.get("/", years)) == ["Red Dust", "Salt"]
    none = client.get("/", {"q": "a planet", "genre": "Food", "year_to": "1950"})
    assert titles(none) == []
    assert "No film passes these filters" in text_of(none)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"genre": "Opera"}, "there is none named “Opera”"),
        ({"genre": "a\0b"}, "Genre: there is none"),
        ({"year_from": "abc"}, "From year: give a year such as 1995"),
        ({"year_to": "99999999999999999999"}, "To year: give a year"),
        ({"year_from": "9" * 5000}, "From year: give a year"),
        ({"year_from": "2001", "year_to": "1990"}, "1990 is before 2001"),
        ({"page": "x"}, "There is no such page"),
        ({"page": "0"}, "There is no such page"),
        ({"page": "1000"}, "There is no such page"),
    ],
)
def test_wrong_values_are_left_out_with_a_message(client, films, drain, wrong, message):
    drain()
    response = client.get("/", {"q": "the sea", **wrong})
    assert response.status_code == 200
    assert message in text_of(response)
    assert len(titles(response)) == 4


@pytest.mark.parametrize("query", ["a\0b", "x" * 301])
def test_a_text_that_cannot_be_searched_for(client, films, query):
    response = client.get("/", {"q": query})
    assert response.status_code == 200
    assert response.context["form"].errors["q"]
    assert len(titles(response)) == 4


def test_markup_in_a_text_is_shown_as_text(client, films, drain):
    drain()
    body = client.get("/", {"q": '"><script>alert(1)</script>'}).content.decode()
    assert "<script" not in body
    assert "&lt;script&gt;" in body


def test_unpublished_films_are_hidden(client, films, drain):
    drain()
    hidden = films[0]
    Movie.objects.filter(pk=hidden.pk).update(published=False)
    for response in (client.get("/"), client.get("/", {"q": "a giant squid"})):
        assert len(titles(response)) == 3
        assert hidden.title not in titles(response)
    assert client.get(hidden.get_absolute_url()).status_code == 404
    assert hidden.title not in text_of(client.get(films[1].get_absolute_url()))
    drain()
    assert hidden.title not in titles(client.get("/", {"q": "a giant squid"}))


def test_the_page_of_a_film(client, films, drain):
    drain()
    movie = films[0]
    Movie.objects.filter(pk=movie.pk).update(director="Ida Brook", cast="Tom Reed, Ann Vale")
    response = client.get(movie.get_absolute_url())
    page = text_of(response)
    for part in ("Deep Blue", "1990", "Sea", "Ida Brook", "Tom Reed", movie.plot_summary):
        assert part in page
    alike = [other.title for other in response.context["alike"]]
    assert alike[0] == "Salt"
    assert movie.title not in alike
    assert client.get("/films/999999999999999999999/").status_code == 404


def test_without_a_worker_the_pages_say_so(client, films, monkeypatch):
    monkeypatch.setattr("embedsync.expressions.get_embedder", None)  # no model is needed for this
    response = client.get("/", {"q": "a tentacled beast attacks"})
    assert titles(response) == []
    assert "manage.py embed_worker" in text_of(response)
    assert "manage.py embed_worker" in text_of(client.get("/"))
    page = client.get(films[0].get_absolute_url())
    assert page.status_code == 200
    assert "being indexed" in text_of(page)


@pytest.mark.django_db
def test_without_films_the_page_says_how_to_load_some(client):
    assert "manage.py load_films" in text_of(client.get("/"))


def test_wikipedia_texts_name_article_and_licence(client, films, drain):
    Movie.objects.filter(pk=films[0].pk).update(href="Deep_Blue_%28film%29")
    drain()
    article = "https://en.wikipedia.org/wiki/Deep_Blue_%28film%29"
    pages = [
        client.get("/"),
        client.get("/", {"q": "a giant squid"}),
        client.get(films[0].get_absolute_url()),
        client.get(films[1].get_absolute_url()),  # among those like it
    ]
    for page in pages:
        body = page.content.decode()
        assert body.count(f'href="{article}"') == 1
        assert body.count(f'href="{LICENCE}"') == 1
        assert "CC BY-SA 4.0" in text_of(page)
    Movie.objects.update(href="")
    assert LICENCE not in client.get("/", {"q": "a giant squid"}).content.decode()


def test_pages_are_stable_and_cost_the_same(client, transactional_db, drain):
    genres = [Genre.objects.create(name=name) for name in ("Sea", "Space")]
    for number in range(34):
        movie = Movie.objects.create(
            title=f"Voyage {number}", year=1950 + number, plot_summary=f"Ship {number} sets sail."
        )
        movie.genres.set(genres[: number % 3])
    drain()
    client.get("/", {"q": "a ship"})  # loads the model
    for query in ({"q": "a ship"}, {}):
        seen, costs = [], set()
        for page in (1, 2, 3):
            with CaptureQueriesContext(connection) as captured:
                response = client.get("/", {**query, "page": page})
            seen += titles(response)
            costs.add(len(captured))
            assert (response.context["previous"], response.context["next"]) == (
                page - 1 or None,
                page + 1,
            )
            assert f"page={page + 1}" in response.content.decode()
        assert len(costs) == 1
        assert costs.pop() <= 6  # one of them asks how many films to expect
        last = client.get("/", {**query, "page": 4})
        assert last.context["next"] is None
        assert len({*seen, *titles(last)}) == 34
        again = [client.get("/", {**query, "page": page}) for page in (1, 2, 3)]
        assert [title for response in again for title in titles(response)] == seen
        assert "no more films" in text_of(client.get("/", {**query, "page": 5}))


def test_only_reading_is_allowed(client):
    assert client.post("/").status_code == 405


def test_the_admin_edits_films_and_shows_no_vectors(client, films, drain):
    drain()
    client.force_login(User.objects.create_superuser("admin"))
    movie = films[0]
    pages = [
        reverse("admin:films_movie_changelist") + "?q=Deep&published__exact=1",
        reverse("admin:films_movie_add"),
        reverse("admin:films_movie_change", args=[movie.pk]),
        reverse("admin:films_movie_delete", args=[movie.pk]),
        reverse("admin:films_genre_changelist"),
    ]
    for page in pages:
        response = client.get(page)
        assert response.status_code == 200
        assert "embedding" not in response.content.decode().lower()
    client.post(pages[3], {"post": "yes"})
    assert not Movie.objects.filter(pk=movie.pk).exists()


def test_the_demo(films, drain, capsys):
    with pytest.raises(CommandError, match=r"load_films, then manage\.py embed_worker --drain"):
        call_command("demo")
    drain()
    call_command("demo")
    printed = capsys.readouterr().out
    assert printed.count(" ms)") >= 6
    assert printed.count("More like ") == 2
    assert re.search(r"^ {4}The Oven +2010 +\d\.\d\d$", printed, re.MULTILINE)
    assert "runserver" in printed
    assert "http://127.0.0.1:8000/" in printed


@pytest.mark.django_db
def test_the_demo_refuses_another_model(monkeypatch):
    monkeypatch.setattr(minilm, "SHA256", "0" * 64)
    with pytest.raises(CommandError, match="not fit to be used"):
        call_command("demo")
