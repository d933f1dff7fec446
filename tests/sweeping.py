"""What the tests of the sweep share: drift made behind the triggers' back, and sweeps."""

from contextlib import contextmanager
from datetime import date, timedelta

from django.contrib.flatpages.models import FlatPage
from django.db import connection, connections

from embedsync.models import Inbox
from embedsync.sweep import Pace, sweep
from tests.books import BookEmbedding, execute
from tests.cinema.models import Film, Genre, Person, Portrait
from tests.library.models import (
    Book,
    Evening,
    FlatPageEmbedding,
    Hall,
    Letter,
    Memo,
    Novel,
    Parcel,
    Seat,
    Ticket,
)

SOURCES = [Book, Parcel, Ticket, Memo, Letter, Seat, Evening, Novel, Film, Portrait]
SIDECARS = [*(source.embedding.model for source in SOURCES), FlatPageEmbedding]
ROADS = ["session_replication_role = replica", "embedsync.capture = off"]


@contextmanager
def behind_the_triggers(road=ROADS[0]):
    """Nothing that this connection does in here is captured."""
    name = road.split(" = ")[0]
    execute(f"SET {road}")
    try:
        yield
    finally:
        execute(f"RESET {name}")


def write_library():
    """Some rows of every kind of key and text; how many of each."""
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    hall = Hall.objects.create(name="Great")
    Book.objects.bulk_create([Book(id=n, title=word) for n, word in enumerate(words, 1)])
    # Whose order as numbers is not that of their text.
    Memo.objects.bulk_create([Memo(id=n, text=word) for n, word in enumerate(words, 7)])
    codes = ["", "a b", "A", "ä", "10", "9", 'it\'s "a" 50 % {key}\\\n']
    for n, (word, code) in enumerate(zip(words, codes, strict=True)):
        Parcel.objects.create(label=word)
        Ticket.objects.create(code=code, text=word)
        Letter.objects.create(text=word)
        Seat.objects.create(hall=hall, number=f"{code[:9]}", view=word)
        Evening.objects.create(day=date(2024, 1, 28) + timedelta(days=n), programme=word)
        Novel.objects.create(title=word, blurb="b")
        person = Person.objects.create(name=word)
        film = Film.objects.create(title=word, director=person)
        film.genres.add(Genre.objects.get_or_create(name="Drama")[0])
        Portrait.objects.create(person=person, style=word)
        FlatPage.objects.create(url=f"/{word}/", title=word)
    return len(words)


def swept(sidecar=BookEmbedding, **options):
    """Sweep without a pause; whatever the sweep finds, it is no error."""
    options.setdefault("pace", Pace(rate=0))
    found = sweep(sidecar, **options)
    assert found.error == ""
    return found


def counts(found):
    """The kinds that were found, and how many of each."""
    kinds = ("missing", "stale", "orphaned", "waiting", "parked")
    return {kind: getattr(found, kind) for kind in kinds if getattr(found, kind)}


def events():
    """The inbox, as (kind, key) in order."""
    return list(Inbox.objects.order_by("seq").values_list("kind", "source_pk"))


def in_a_thread(move, *arguments, **options):
    try:
        return move(*arguments, **options)
    finally:
        connections["default"].close()


def is_waited_for():
    """Whether another connection waits for a lock of this one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE NOT granted"
            " AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
        return cursor.rowcount > 0
