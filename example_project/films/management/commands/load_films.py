"""``manage.py load_films``: load films from a file of JSON Lines, as often as you like."""

import gzip
import json
import re
import zlib
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from example_project.films.models import Genre, Movie

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "films.jsonl"
YEARS = range(1870, 2101)
BATCH = 1000
FIELDS = ["director", "cast", "plot_summary", "href", "published"]
LONGEST_GENRE = Genre._meta.get_field("name").max_length
FORM = (
    'A line has to look like {"title": "Metropolis", "year": 1927, "plot_summary": "In a city…"},'
    ' with "director", "genres", "cast", "href" and "published" where they are known.'
)
# One title of the Wikipedia data carries the style sheet of a fraction in it.
SCRAPED_CSS = re.compile(r"\s*\.mw-parser-output.*}", re.DOTALL)


class Film(NamedTuple):
    """One line, found fit to be written. What it lacks stays what it is in the database."""

    number: int
    title: str
    year: int
    values: dict[str, Any]
    genres: list[str] | None

    @property
    def key(self) -> tuple[str, int]:
        return self.title, self.year


class LineError(Exception):
    """What is wrong with one line."""


class Command(BaseCommand):
    help = "Loads films from JSON Lines. A film is known by title and year; only changes write."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", nargs="?", type=Path, default=SHIPPED, help="*.jsonl or *.jsonl.gz"
        )
        parser.add_argument("--limit", type=positive, metavar="N", help="only the first N films")

    def handle(self, *args: Any, file: Path, limit: int | None, **options: Any) -> None:
        films = read(file, limit)
        counts: Counter[str] = Counter(new=0, changed=0, unchanged=0)
        with transaction.atomic():
            for start in range(0, len(films), BATCH):
                counts += store(films[start : start + BATCH])
        self.stdout.write(
            f"{len(films)} films read: {counts['new']} new, {counts['changed']} changed,"
            f" {counts['unchanged']} unchanged."
        )


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of films; give 1 or more.")
    return int(text)


def read(file: Path, limit: int | None) -> list[Film]:
    """The films of a file. Raises ``CommandError`` at the first line that cannot be used."""
    films: dict[tuple[str, int], Film] = {}
    for number, line in islice(lines(file), limit):
        try:
            film = parse(number, line)
            if film.key in films:
                raise LineError(
                    f"{film.title} ({film.year}) is on line {films[film.key].number} too. Remove"
                    " one of them: a film is known by its title and year."
                )
        except LineError as error:
            raise CommandError(f"{file}, line {number}: {error} Nothing was loaded.") from None
        films[film.key] = film
    if not films:
        raise CommandError(f"{file} has no films in it. {FORM}")
    return list(films.values())


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            for number, line in enumerate(content, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise CommandError(
            f"There is no file {file}. Without a file, load_films loads the films that come with"
            " the project."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CommandError(
            f"{file}, after line {number}: this is no whole gzip file ({error}). Fetch it again,"
            " or take the .gz off its name if it is not compressed. Nothing was loaded."
        ) from None
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from None


def parse(number: int, line: bytes) -> Film:
    """The film on one line. Raises ``LineError``."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise LineError("this is not UTF-8. Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise LineError(f"this is no JSON ({error}). {FORM}") from None
    if not isinstance(row, dict):
        raise LineError(f"this is no JSON object. {FORM}")
    title = SCRAPED_CSS.sub(" ", text(row, "title", needed=True))
    year = row.get("year")
    if type(year) is not int or year not in YEARS:
        raise LineError(
            f'"year" has to be a number from {YEARS[0]} to {YEARS[-1]}, not {shown(year)}.'
        )
    if "plot_summary" not in row and "extract" not in row:
        raise LineError(f'there is neither "plot_summary" nor "extract". {FORM}')
    values: dict[str, Any] = {
        "plot_summary": text(row, "plot_summary" if "plot_summary" in row else "extract", True),
        # It belongs to the text: another text without it is not Wikipedia's.
        "href": text(row, "href"),
    }
    if "director" in row:
        values["director"] = text(row, "director")
    if "cast" in row:
        values["cast"] = ", ".join(names(row, "cast"))
    if "published" in row:
        if not isinstance(row["published"], bool):
            raise LineError(f'"published" has to be true or false, not {shown(row["published"])}.')
        values["published"] = row["published"]
    for name, value in {"title": title, **values}.items():
        at_most = Movie._meta.get_field(name).max_length
        if at_most and len(value) > at_most:
            raise LineError(f'"{name}" has {len(value)} characters; shorten it to {at_most}.')
    genres = list(dict.fromkeys(names(row, "genres"))) if "genres" in row else None
    if any(len(name) > LONGEST_GENRE for name in genres or ()):
        raise LineError(f'"genres" has a name of more than {LONGEST_GENRE} characters; shorten it.')
    return Film(number, title, year, values, genres)


def text(row: dict[str, Any], name: str, needed: bool = False) -> str:
    """A text of the row that PostgreSQL can store, without blanks around it."""
    value = row.get(name, "")
    if not isinstance(value, str):
        raise LineError(f'"{name}" has to be a text, not {shown(value)}.')
    if "\0" in value or re.search("[\ud800-\udfff]", value):
        raise LineError(f'"{name}" has characters that cannot be stored. Remove them.')
    if needed and not value.strip():
        raise LineError(f'"{name}" is missing or blank. {FORM}')
    return value.strip()


def names(row: dict[str, Any], name: str) -> list[str]:
    """A list of names, blank ones left out."""
    if not isinstance(row[name], list):
        raise LineError(f'"{name}" has to be a list of texts, not {shown(row[name])}.')
    return list(filter(None, (text({name: value}, name) for value in row[name])))


def shown(value: Any) -> str:
    """A JSON value as it stands in the file, cut short."""
    found = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return found if len(found) <= 40 else f"{found[:40]}…"


def store(films: list[Film]) -> Counter[str]:
    """Write what is new or changed of these films; how many were which."""
    known = existing(films)
    genres = genres_of(known.values())
    counts: Counter[str] = Counter()
    written: list[Movie] = []
    regrouped: list[Film] = []
    for film in films:
        movie = known.get(film.key)
        before = {name: getattr(movie, name) for name in FIELDS} if movie else {}
        after = {**before, **film.values}
        if movie is None or after != before:
            # Without its key: title and year alone decide which row is updated.
            written.append(Movie(title=film.title, year=film.year, **after))
        had = genres.get(movie.pk, set()) if movie else set()
        if film.genres is not None and set(film.genres) != had:
            regrouped.append(film)
        if movie is None:
            counts["new"] += 1
        elif after != before or regrouped[-1:] == [film]:
            counts["changed"] += 1
        else:
            counts["unchanged"] += 1
    Movie.objects.bulk_create(
        written, update_conflicts=True, unique_fields=["title", "year"], update_fields=FIELDS
    )
    known.update(((movie.title, movie.year), movie) for movie in written)
    set_genres({known[film.key].pk: set(film.genres or ()) for film in regrouped})
    return counts


def existing(films: list[Film]) -> dict[tuple[str, int], Movie]:
    """The films in the database that have a title of these, by title and year."""
    found = Movie.objects.filter(title__in={film.title for film in films})
    return {(movie.title, movie.year): movie for movie in found}


def genres_of(movies: Iterable[Movie]) -> dict[int, set[str]]:
    """The names of the genres of each film that has any, by the film's key."""
    found: dict[int, set[str]] = {}
    links = Movie.genres.through.objects.filter(movie__in=[movie.pk for movie in movies])
    for pk, name in links.values_list("movie_id", "genre__name"):
        found.setdefault(pk, set()).add(name)
    return found


def set_genres(wanted: dict[int, set[str]]) -> None:
    """Give each film, by its key, exactly these genres."""
    Genre.objects.bulk_create(
        [Genre(name=name) for name in sorted(set().union(*wanted.values()))], ignore_conflicts=True
    )
    keys = dict(Genre.objects.values_list("name", "pk"))
    through = Movie.genres.through
    missing = {(movie, keys[name]) for movie, names in wanted.items() for name in names}
    there = through.objects.filter(movie__in=wanted).values_list("movie_id", "genre_id", "pk")
    stale = [pk for movie, genre, pk in there if (movie, genre) not in missing]
    missing.difference_update((movie, genre) for movie, genre, _ in there)
    through.objects.filter(pk__in=stale).delete()
    through.objects.bulk_create(
        [through(movie_id=movie, genre_id=genre) for movie, genre in sorted(missing)],
        ignore_conflicts=True,
    )
