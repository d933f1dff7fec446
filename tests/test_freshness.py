"""Rows whose vectors are older than they are: told at once, whatever made them so."""

import datetime
import pickle

import pytest
from django.db import connection, transaction
from django.db.models import OuterRef, Q, Subquery

from embedsync.models import Ledger, SidecarState, Stale
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, execute
from tests.library.models import (
    Book,
    Evening,
    Hall,
    Letter,
    Memo,
    Novel,
    Parcel,
    Play,
    Postscript,
    Seat,
    Thriller,
)

pytestmark = pytest.mark.django_db(transaction=True)


def stale(model=Book, **choices):
    return sorted(str(row) for row in model.objects.filter(Stale(**choices)))


def told(text="red"):
    """By title, whether what a search finds is stale."""
    return {row.title: row.stale for row in Book.objects.similar(text).annotate(stale=Stale())}


def fresh(text="red"):
    return sorted(str(row) for row in Book.objects.similar(text, fresh=True))


@pytest.fixture
def shelf(drain):
    for title in ("red apple", "blue sea", "red rose"):
        Book.objects.create(title=title)
    drain()


def test_all_are_fresh_after_the_worker(shelf):
    assert stale() == []
    assert fresh() == ["blue sea", "red apple", "red rose"]
    assert told() == {"red apple": False, "blue sea": False, "red rose": False}


def test_a_change_is_seen_at_once_and_until_the_worker_has_been(shelf, drain):
    with transaction.atomic():
        Book.objects.filter(title="red rose").update(title="red tulip")
        assert stale() == ["red tulip"]
        assert fresh() == ["blue sea", "red apple"]
    assert stale() == ["red tulip"]
    assert told() == {"blue sea": False, "red apple": False, "red tulip": True}
    drain()
    assert fresh() == ["blue sea", "red apple", "red tulip"]


def test_a_change_of_what_is_not_embedded_makes_nothing_stale(shelf):
    Book.objects.update(year=1999)
    assert stale() == []


def test_a_row_without_a_vector_is_stale(shelf):
    Book.objects.create(title="new")
    assert stale() == ["new"]
    assert fresh("new") == ["blue sea", "red apple", "red rose"]


def test_a_row_in_a_workers_hands_is_stale(shelf):
    worker = Worker()
    worker.start()
    Book.objects.filter(title="red rose").update(title="red tulip")
    worker.intake.take([], [KEY], 10)
    assert Ledger.objects.get().token is not None
    assert stale() == ["red tulip"]


def test_a_parked_row_is_stale(shelf, drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    Book.objects.filter(title="red rose").update(title="FAIL")
    drain()
    assert Ledger.objects.get().run_at is None
    assert stale() == ["FAIL"]


def test_a_related_row_makes_those_stale_that_it_belongs_to(drain):
    balcony, box = (Hall.objects.create(name=name) for name in ("Balcony", "Box"))
    for hall in (balcony, box):
        for number in ("1", "2"):
            Seat.objects.create(hall=hall, number=number, view=f"{hall.name} {number}")
    drain()
    assert stale(Seat) == []
    Hall.objects.filter(pk=box.pk).update(name="Lodge")
    assert stale(Seat) == ["Box 1", "Box 2"]
    assert Seat.objects.similar("view", fresh=True).count() == 2
    drain()
    assert stale(Seat) == []


def test_a_fill_in_hand(shelf):
    pks = sorted(Book.objects.values_list("pk", flat=True))
    state = SidecarState.objects.filter(key=KEY)
    state.update(backfilled_at=None, backfill_after=None)
    assert len(stale()) == 3
    state.update(backfill_after=str(pks[0]))
    assert len(stale()) == 2
    state.update(backfill_after=str(pks[2]))
    assert stale() == []


def test_after_a_trigger_has_failed_any_may_be_stale(shelf, drain):
    execute("SELECT nextval('embedsync_missed')")
    assert len(stale()) == 3
    drain()
    assert stale() == []


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "ISO"])
def test_keys_are_compared_as_what_they_are(drain, style):
    Evening.objects.create(day=datetime.date(2026, 2, 3), programme="Lear")
    Evening.objects.create(day=datetime.date(2026, 3, 2), programme="Hamlet")
    drain()
    execute(f"SET DateStyle = '{style}'")
    try:
        Evening.objects.filter(programme="Lear").update(programme="King Lear")
        assert stale(Evening) == ["King Lear"]
    finally:
        execute("RESET DateStyle")


def test_other_kinds_of_models(drain):
    parcel = Parcel.objects.create(label="a book")
    Thriller.objects.create(title="The butler", blurb="did it")
    drain()
    Parcel.objects.filter(pk=parcel.pk).update(label="a vase")
    Thriller.objects.update(blurb="did not")
    assert stale(Parcel) == [str(parcel.pk)]
    assert stale(Novel) == stale(Thriller) == ["The butler"]


def test_one_of_several_sidecars(drain):
    Play.objects.create(title="Hamlet", plot="revenge")
    drain()
    Play.objects.update(plot="delay")
    assert stale(Play) == stale(Play, embedding="by_title") == []
    assert stale(Play, embedding="by_plot") == ["Hamlet"]
    found = Play.objects.similar("x", embedding="by_plot", distance_name="near", fresh=True)
    assert found.count() == 0


def test_of_the_sidecars_own_rows(shelf):
    book = Book.objects.get(title="blue sea")
    Book.objects.filter(pk=book.pk).update(title="green sea")
    assert BookEmbedding.objects.get(Stale()).source_id == book.pk


def test_goes_with_the_rest_of_the_orm(shelf):
    Book.objects.filter(title="red rose").update(title="red tulip")
    assert Book.objects.exclude(Stale()).count() == 2
    assert Book.objects.filter(Q(title="blue sea") | Q(Stale())).count() == 2
    assert Book.objects.order_by(Stale().desc()).first().title == "red tulip"
    assert Book.objects.filter(pk__in=Book.objects.filter(Stale())).get().title == "red tulip"
    queryset = Book.objects.similar("red", fresh=True)
    copied = Book.objects.all()
    copied.query = pickle.loads(pickle.dumps(queryset.query))
    assert copied.count() == 2


def test_in_a_query_of_another_model(drain):
    for pk, text in enumerate(("red apple", "blue sea", "red rose"), start=1):
        Memo.objects.create(id=pk, text=text)
        Postscript.objects.create(letter=Letter.objects.create(id=pk, text=text))
    drain()
    Letter.objects.filter(text="red rose").update(text="red tulip")
    Memo.objects.filter(text="red apple").update(text="red pear")
    letters = Letter.objects.similar("red", fresh=True)[:1]
    found = Postscript.objects.filter(letter__in=letters)
    assert [row.letter.text for row in found] == ["red apple"]
    of_same_key = Letter.objects.filter(pk=OuterRef("pk")).annotate(old=Stale()).values("old")
    memos = Memo.objects.annotate(of_letter=Subquery(of_same_key), of_memo=Stale()).order_by("pk")
    assert list(memos.values_list("of_letter", "of_memo")) == [
        (False, True),
        (False, False),
        (True, False),
    ]


def test_the_queue_is_read_once_however_many_rows_there_are(shelf):
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = on")
        sql, parameters = Book.objects.exclude(Stale()).query.sql_with_params()
        cursor.execute(f"EXPLAIN {sql}", parameters)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "hashed SubPlan" in plan


def test_k_rows_though_the_nearest_are_stale(shelf):
    Book.objects.filter(title__contains="red").update(body="changed")
    assert [book.title for book in Book.objects.similar("red", fresh=True)[:1]] == ["blue sea"]
