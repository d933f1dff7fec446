"""Text from related rows: whatever changes on the way to it, and by whatever road, is followed."""

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from embedsync import queue
from embedsync.models import Inbox, Ledger
from embedsync.text import read
from tests.books import execute
from tests.cinema.models import Country, Film, Genre, Person, Portrait, Poster, Role
from tests.press.models import Author, Review
from tests.sync import assert_in_step

pytestmark = pytest.mark.django_db(transaction=True)

FilmEmbedding = Film.embedding.model
PortraitEmbedding = Portrait.embedding.model
KEY = "cinema.filmembedding"


@pytest.fixture
def world(drain):
    """Two films with all that can be said about them, in step."""
    here, there = (Country.objects.create(name=name) for name in ("Here", "There"))
    ann = Person.objects.create(name="Ann", country=here)
    bob = Person.objects.create(name="Bob", country=there)
    genres = [Genre.objects.create(name=name) for name in ("Drama", "Farce", "Noir")]
    films = [Film.objects.create(title=f"Film {n}", director=ann) for n in range(3)]
    films[1].sequel_of = films[0]
    films[1].save()
    critic = Author.objects.create(name="Critic")
    for film in films[:2]:
        film.genres.set(genres[:2])
        Role.objects.create(film=film, person=bob, character="A thief")
        Poster.objects.create(film=film, caption=f"The {film.title}")
        Review.objects.create(film=film, author=critic, text=f"Seen {film.title}")
    Portrait.objects.create(person=ann, style="Oil")
    Portrait.objects.create(person=bob, style="Ink")
    drain()
    assert_in_step(FilmEmbedding, PortraitEmbedding)


def events(key=KEY):
    """The inbox in order, as (hop, key), and emptied."""
    found = Inbox.objects.filter(sidecar=key).order_by("seq")
    rows = [(event.hop or "", int(event.source_pk)) for event in found]
    Inbox.objects.all().delete()
    return rows


def pk(model, **values):
    return model.objects.get(**values).pk


CHANGES = {
    "a director is renamed": lambda: Person.objects.filter(name="Ann").update(name="Anna"),
    "a director moves": lambda: Person.objects.filter(name="Ann").update(country=None),
    "a country is renamed": lambda: Country.objects.filter(name="Here").update(name="Hither"),
    "another director": lambda: Film.objects.update(director=pk(Person, name="Bob")),
    "no director": lambda: Person.objects.get(name="Ann").delete(),
    "a genre is renamed": lambda: Genre.objects.filter(name="Farce").update(name="Comedy"),
    "a genre more": lambda: Film.objects.get(title="Film 2").genres.add(pk(Genre, name="Noir")),
    "a genre less": lambda: Film.objects.get(title="Film 0").genres.clear(),
    "a genre is deleted": lambda: Genre.objects.get(name="Drama").delete(),
    "an actor is renamed": lambda: Person.objects.filter(name="Bob").update(name="Bert"),
    "a role changes hands": lambda: Role.objects.update(person=pk(Person, name="Ann")),
    "a role changes its film": lambda: Role.objects.update(film=pk(Film, title="Film 2")),
    "a role is renamed": lambda: Role.objects.update(character="A judge"),
    "roles go": lambda: Role.objects.all().delete(),
    "the first film is renamed": lambda: Film.objects.filter(title="Film 0").update(title="One"),
    "the first film goes": lambda: Film.objects.get(title="Film 0").delete(),
    "a caption": lambda: Poster.objects.update(caption="?"),
    "posters go": lambda: Poster.objects.all().delete(),
    "roles swap films": lambda: execute(
        "UPDATE cinema_role SET film_id ="
        " (SELECT min(film_id) + max(film_id) FROM cinema_role) - film_id"
    ),
    "a review": lambda: Review.objects.create(film_id=pk(Film, title="Film 2"), text="Good"),
    "a review is rewritten": lambda: Review.objects.update(text="Better"),
    "a review changes its film": lambda: Review.objects.update(film=pk(Film, title="Film 2")),
    "reviews go": lambda: Review.objects.all().delete(),
    "a critic is renamed": lambda: Author.objects.update(name="Anonymous"),
    "a critic goes": lambda: Author.objects.all().delete(),
    "a critic vanishes behind an unconstrained key": lambda: execute("DELETE FROM press_author"),
    "a critic comes back": lambda: execute(
        "DELETE FROM press_author; INSERT INTO press_author SELECT author_id, 'Back'"
        " FROM press_review GROUP BY author_id"
    ),
    "all roles are truncated": lambda: execute("TRUNCATE cinema_role"),
    "everything is truncated": lambda: execute("TRUNCATE cinema_country CASCADE"),
    "a genre gets another key": lambda: execute(
        "INSERT INTO cinema_genre VALUES (99, 'Other');"
        "UPDATE cinema_film_genres SET genre_id = 99"
        " WHERE genre_id = (SELECT id FROM cinema_genre WHERE name = 'Farce')"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_what_a_text_is_made_of_is_followed(world, drain, change):
    with transaction.atomic():
        change()
    drain()
    assert_in_step(FilmEmbedding, PortraitEmbedding)


def test_what_no_text_is_made_of_makes_no_event(world):
    Review.objects.update(author=F("author"))
    Country.objects.create(name="Nowhere")
    Genre.objects.create(name="New")
    Person.objects.create(name="Newcomer")
    assert Inbox.objects.count() == 0


def test_a_referred_row_that_goes_costs_its_writer_one_event(world, drain):
    """Because it may come back as another before the transaction ends."""
    genre = pk(Genre, name="Noir")
    Genre.objects.filter(pk=genre).delete()
    assert events() == [("genres", genre)]


def test_a_renamed_genre_costs_its_writer_one_event(drain):
    genre = Genre.objects.create(name="Drama")
    films = Film.objects.bulk_create(Film(title=f"Film {n}") for n in range(1000))
    genre.film_set.set(films)
    drain()
    Genre.objects.update(name="Tragedy")
    assert events() == [("genres", genre.pk)]
    Genre.objects.update(name="Comedy")
    drain()
    assert_in_step(FilmEmbedding)


def test_an_event_of_more_rows_than_a_page_is_expanded_in_pages(drain, monkeypatch):
    monkeypatch.setattr(queue, "ROWS_OF_A_HOP", 7)
    genres = [Genre.objects.create(name=name) for name in ("Drama", "Farce")]
    films = Film.objects.bulk_create(Film(title=f"Film {n}") for n in range(50))
    for genre in genres:
        genre.film_set.set(films)
    drain()
    Genre.objects.update(name="Tragedy")
    Genre.objects.filter(pk=genres[0].pk).update(name="Comedy")
    drain()
    assert_in_step(FilmEmbedding)


def test_many_links_of_one_row_make_one_event(world):
    film = Film.objects.get(title="Film 2")
    film.genres.set(Genre.objects.all())
    assert events() == [("", film.pk)]


def test_the_order_of_links_does_not_change_the_text(world, drain):
    before = dict(FilmEmbedding.objects.values_list("source_id", "embedded_at"))
    film = Film.objects.get(title="Film 0")
    genres = list(film.genres.all())
    film.genres.clear()
    for genre in reversed(genres):
        film.genres.add(genre)
    drain()
    assert dict(FilmEmbedding.objects.values_list("source_id", "embedded_at")) == before


def test_a_method_makes_the_text_with_a_constant_number_of_queries(drain):
    country = Country.objects.create(name="Here")
    counts = []
    for number in (2, 20):
        for n in range(number):
            person = Person.objects.create(name=f"P{n}", country=country)
            Film.objects.create(title=f"F{n}", director=person)
            Portrait.objects.create(person=person, style="Oil")
        pks = [str(key) for key in Portrait.objects.values_list("pk", flat=True)]
        with CaptureQueriesContext(connection) as queries:
            read(PortraitEmbedding, pks, "default")
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_a_method_that_says_nothing_makes_no_vector(world, drain):
    Portrait.objects.filter(style="Oil").update(style="silent")
    drain()
    assert PortraitEmbedding.objects.count() == Portrait.objects.count() - 1
    assert_in_step(PortraitEmbedding)


def test_a_method_that_fails_harms_its_row_alone(world, drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    bad = Portrait.objects.create(person=Person.objects.get(name="Ann"), style="unspeakable")
    Portrait.objects.create(person=Person.objects.get(name="Ann"), style="Chalk")
    drain()
    ledger = Ledger.objects.get()
    assert ledger.source_pk == str(bad.pk)
    assert "words fail" in ledger.last_error
    assert PortraitEmbedding.objects.count() == 3


def test_a_condition_on_a_related_row_is_followed(world, drain):
    Person.objects.filter(name="Ann").update(active=False)
    assert Portrait.objects.similar("oil").count() == 1
    drain()
    assert_in_step(PortraitEmbedding)
    assert PortraitEmbedding.objects.count() == 1


def test_a_hop_that_no_declaration_has_compares_all_rows(world, drain):
    execute("SET embedsync.capture = 'off'")
    Film.objects.update(title="Unseen")
    execute("SET embedsync.capture = 'on'")
    Inbox.objects.create(sidecar=KEY, kind="hop", hop="long_gone", source_pk="1")
    drain()
    assert_in_step(FilmEmbedding)
