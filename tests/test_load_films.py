"""``manage.py load_films``: what it writes, what it leaves alone, and what it refuses."""

import gzip
import json

import pytest
from django.core.management import CommandError, call_command
from django.db.models.expressions import RawSQL

from example_project.films.management.commands import load_films
from example_project.films.models import Genre, Movie

FILM = {
    "title": "The Last Lighthouse",
    "year": 1931,
    "director": "Ida Brook",
    "genres": ["Drama", "Mystery"],
    "cast": ["Tom Reed", "Ann Vale"],
    "plot_summary": "A keeper hears voices in the fog.",
}
OTHER = {"title": "Snow Clouds", "year": 1931, "plot_summary": "Two sledges race to a mine."}


@pytest.fixture
def load(tmp_path, capsys):
    """Load these rows, or this text, from a file; returns what the command printed."""

    def run(*rows, name="films.jsonl", **options):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        file = tmp_path / name
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        call_command("load_films", str(file), **options)
        return capsys.readouterr().out

    return run


def said(new, changed, unchanged):
    total = new + changed + unchanged
    return f"{total} films read: {new} new, {changed} changed, {unchanged} unchanged.\n"


@pytest.mark.django_db
def test_the_shipped_films_load(capsys):
    call_command("load_films")
    count = Movie.objects.count()
    assert count > 300
    assert capsys.readouterr().out == said(count, 0, 0)
    assert not Movie.objects.filter(plot_summary="").exists()
    call_command("load_films")
    assert capsys.readouterr().out == said(0, 0, count)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["films.jsonl", "films.jsonl.gz"])
def test_every_field_arrives(load, name):
    assert load({**FILM, "published": False, "id": 7}, "", OTHER, name=name) == said(2, 0, 0)
    movie = Movie.objects.get(title="The Last Lighthouse")
    assert (movie.year, movie.director, movie.cast) == (1931, "Ida Brook", "Tom Reed, Ann Vale")
    assert movie.plot_summary == FILM["plot_summary"]
    assert [genre.name for genre in movie.genres.all()] == ["Drama", "Mystery"]
    assert movie.published is False
    assert Movie.objects.get(title="Snow Clouds").published is True


@pytest.mark.django_db
def test_wikipedia_rows_keep_their_article(load):
    row = {"title": "Fog", "year": 1950, "extract": "A ship is lost.", "href": "Fog_(film)"}
    load(row)
    movie = Movie.objects.get()
    assert (movie.plot_summary, movie.href) == ("A ship is lost.", "Fog_(film)")
    load({"title": "Fog", "year": 1950, "plot_summary": "A ship comes home."})
    movie.refresh_from_db()
    assert (movie.plot_summary, movie.href) == ("A ship comes home.", "")


@pytest.mark.django_db
def test_a_scraped_style_sheet_is_cut_out_of_a_title(load):
    css = ".mw-parser-output .frac{white-space:nowrap}.mw-parser-output .sr{border:0}"
    load({**OTHER, "title": f"Seven {css}½ Sledges"})
    assert Movie.objects.get().title == "Seven ½ Sledges"


@pytest.mark.django_db
def test_only_changes_are_written(load, monkeypatch):
    monkeypatch.setattr(load_films, "BATCH", 2)
    third = {**OTHER, "year": 1932}
    load(FILM, OTHER, third)
    keys = dict(Movie.objects.values_list("year", "pk"))
    Movie.objects.filter(title=FILM["title"]).update(published=False)
    versions = row_versions()

    assert load(FILM, OTHER, third) == said(0, 0, 3)
    assert row_versions() == versions

    changed = {**third, "plot_summary": "Three sledges race."}
    assert load({**FILM, "genres": ["Mystery", "Noir"]}, OTHER, changed) == said(0, 2, 1)
    assert dict(Movie.objects.values_list("year", "pk")) == keys
    assert Movie.objects.get(year=1932).plot_summary == "Three sledges race."
    movie = Movie.objects.get(title=FILM["title"])
    assert [genre.name for genre in movie.genres.all()] == ["Mystery", "Noir"]
    assert movie.published is False  # the file says nothing about it
    assert [pk for pk, place in row_versions() if (pk, place) not in versions] == [keys[1932]]


def row_versions():
    """Tells which rows were written: PostgreSQL puts a new version in another place."""
    place = RawSQL("films_movie.ctid::text", [])
    return list(Movie.objects.order_by("pk").values_list("pk", place))


@pytest.mark.django_db
def test_limit_takes_the_first_films_and_reads_no_further(load):
    assert load(FILM, OTHER, "not JSON", limit=2) == said(2, 0, 0)
    with pytest.raises(CommandError, match="give 1 or more"):
        call_command("load_films", "--limit", "0")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not JSON", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "no JSON object"),
        ("caf\udce9", "Save the file as UTF-8"),
        ({**OTHER, "title": " "}, '"title" is missing'),
        ({"year": 1931, "plot_summary": "Words."}, '"title" is missing'),
        ({**OTHER, "title": 12}, '"title" has to be a text, not 12'),
        ({**OTHER, "title": "t" * 301}, "shorten it to 300"),
        ({**OTHER, "title": "a\0b"}, "cannot be stored"),
        ({**OTHER, "title": "a\ud800b"}, "cannot be stored"),
        ({"title": "Snow", "plot_summary": "Words."}, '"year" has to be a number'),
        ({**OTHER, "year": "1931"}, '"year" has to be a number'),
        ({**OTHER, "year": True}, '"year" has to be a number'),
        ({**OTHER, "year": 99999}, '"year" has to be a number'),
        ({"title": "Snow", "year": 1931}, 'neither "plot_summary" nor "extract"'),
        ({**OTHER, "plot_summary": ""}, '"plot_summary" is missing or blank'),
        ({**OTHER, "plot_summary": None}, '"plot_summary" has to be a text'),
        ({**OTHER, "genres": "Drama"}, '"genres" has to be a list'),
        ({**OTHER, "genres": ["g" * 51]}, "more than 50 characters"),
        ({**OTHER, "cast": [1]}, '"cast" has to be a text'),
        ({**OTHER, "director": ["Ida Brook"]}, '"director" has to be a text'),
        ({**OTHER, "href": 5}, '"href" has to be a text'),
        ({**OTHER, "published": "no"}, '"published" has to be true or false'),
        (FILM, "is on line 1 too"),
    ],
    ids=str,
)
def test_a_bad_line_is_named_and_nothing_written(load, line, problem):
    with pytest.raises(CommandError, match=r"films\.jsonl, line 3: ") as caught:
        load(FILM, "", line)
    assert problem in str(caught.value)
    assert not Movie.objects.exists()
    assert not Genre.objects.exists()


@pytest.mark.django_db
def test_files_that_cannot_be_read(tmp_path):
    def refusal(name):
        with pytest.raises(CommandError) as caught:
            call_command("load_films", str(tmp_path / name))
        return str(caught.value)

    assert "There is no file" in refusal("missing.jsonl")
    assert "cannot be read" in refusal("")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "has no films in it" in refusal("empty.jsonl")
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(FILM))
    assert "no whole gzip file" in refusal("plain.jsonl.gz")
    whole = gzip.compress("".join(f"{json.dumps(FILM)}\n" for _ in range(9)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    assert "no whole gzip file" in refusal("cut.jsonl.gz")
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:30] + b"\xff" * 20 + whole[50:])
    assert "no whole gzip file" in refusal("broken.jsonl.gz")
    assert not Movie.objects.exists()
