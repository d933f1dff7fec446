"""Tables that are legal and unusual are captured, embedded and compared like any other."""

import datetime
from decimal import Decimal

import pytest
from django.db import connection, transaction

from embedsync.capture import shortened
from embedsync.declaration import sidecars
from embedsync.models import Inbox, SidecarState
from embedsync.triggers import trigger_states
from tests.books import execute, renamed
from tests.library.models import Letter
from tests.oddities.models import Flower, Guide, Kind, Lap, Pet, Place, Present, Rose, Spot
from tests.sync import assert_in_step, stored_vectors

pytestmark = pytest.mark.django_db(transaction=True)

ODDITIES = [sidecar for sidecar in sidecars() if sidecar._meta.app_label == "oddities"]
LONG = next(s._meta.get_field("source").source for s in ODDITIES if not s.__name__.isascii())
HOUR = datetime.timedelta(days=1, hours=2)


@pytest.fixture
def kinds(drain):
    kind = Kind.objects.create(key="useful")
    Present.objects.create(name="A hat", kind=kind)
    Flower.objects.create(name="A rose", kind=kind)
    drain()
    assert_in_step(*ODDITIES)
    return kind


def test_of_rows_like_a_child_it_is_the_child_that_is_left_out(kinds, drain):
    """Its key is another than its parent's, and may be that of another row."""
    roses = [Rose.objects.create(name=f"Rose {n}", kind=kinds) for n in range(3)]
    drain()
    assert {rose.pk for rose in roses} & {rose.flower_id for rose in roses}
    names = {"A rose", *(rose.name for rose in roses)}
    for rose in roses:
        found = list(Flower.objects.similar(rose, exact=True)[:10])
        assert {other.name for other in found} == names - {rose.name}
        assert rose not in Rose.objects.similar(rose, exact=True)[:10]


def test_all_their_triggers_are_there(transactional_db):
    states = {s.state for s in trigger_states("default") if s.key.startswith("oddities.")}
    assert states == {"installed"}


def test_a_related_column_called_key_and_sources_called_as_our_aliases(kinds, drain):
    Kind.objects.update(key="useless")
    assert Inbox.objects.filter(kind="hop").count() == 2
    drain()
    assert_in_step(*ODDITIES)
    Present.objects.update(name="Gloves")
    Flower.objects.all().delete()
    drain()
    assert_in_step(*ODDITIES)


@pytest.mark.parametrize("model", [Present, Flower], ids=["given", "picked"])
def test_a_referred_row_that_is_made_anew_in_one_transaction_is_followed(kinds, drain, model):
    with transaction.atomic():
        execute("DELETE FROM oddities_kind WHERE id = %s", [kinds.pk])
        execute("INSERT INTO oddities_kind (id, key) VALUES (%s, 'another')", [kinds.pk])
    drain()
    assert_in_step(model.embedding.model)


def test_whether_there_is_a_row_beside_it_is_followed(drain):
    place = Place.objects.create(name="Here")
    drain()
    assert stored_vectors(Place.embedding.model) == {}
    Guide.objects.create(place=place)
    drain()
    assert_in_step(Place.embedding.model)
    assert len(stored_vectors(Place.embedding.model)) == 1
    Guide.objects.all().delete()
    drain()
    assert stored_vectors(Place.embedding.model) == {}


def test_a_key_reads_the_same_whatever_the_session_says(drain):
    third = 0.1 + 0.2  # 0.30000000000000004
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("SET LOCAL intervalstyle = iso_8601")
        cursor.execute("SET LOCAL extra_float_digits = 0")
        Lap.objects.create(time=HOUR, share=third, price=Decimal("1"), note="first")
    drain()
    assert_in_step(Lap.embedding.model)
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("SET LOCAL intervalstyle = sql_standard")
        cursor.execute("SET LOCAL extra_float_digits = -3")
        Lap.objects.update(note="second")
    drain()
    assert_in_step(Lap.embedding.model)
    assert len(stored_vectors(Lap.embedding.model)) == 1


@pytest.mark.parametrize("together", [True, False])
def test_a_key_that_is_written_otherwise_keeps_its_vector(drain, together):
    Lap.objects.create(time=HOUR, share=1.0, price=Decimal("1.5"), note="once")
    drain()
    execute("DELETE FROM oddities_lap")
    Lap.objects.create(time=HOUR, share=1.0, price=Decimal("1.50"), note="again")
    if not together:
        # Only what the first way of writing it was owed.
        execute("DELETE FROM embedsync_inbox WHERE seq = (SELECT max(seq) FROM embedsync_inbox)")
        SidecarState.objects.all().update(backfilled_at=None)
    drain()
    assert_in_step(Lap.embedding.model)


def test_a_key_whose_operators_are_in_another_schema(drain):
    Spot.objects.create(at=[1, 2], note="a tree")
    Spot.objects.update(note="a house")
    execute("UPDATE oddities_spot SET at = '[3,4]'")
    events = Inbox.objects.filter(kind="row").order_by("seq")
    keys = [event.source_pk for event in events]
    assert keys[:2] == ["[1,2]", "[1,2]"]
    assert sorted(keys[2:]) == ["[1,2]", "[3,4]"]


def test_a_base_manager_hides_no_row(drain):
    pet = Pet.objects.create(name="Rex", dead=True)
    drain()
    assert len(stored_vectors(Pet.embedding.model)) == 1
    Pet.objects.filter(pk=pet.pk).update(dead=False)
    assert not Inbox.objects.filter(kind="row").exists()


def test_a_name_of_more_bytes_than_postgresql_takes(drain):
    row = LONG.objects.create(name="one")
    LONG.objects.update(name="two")
    assert Inbox.objects.filter(kind="row").count() == 2
    drain()
    assert_in_step(LONG.embedding.model)
    row.delete()
    drain()
    assert stored_vectors(LONG.embedding.model) == {}


def test_events_that_can_no_longer_be_understood_harm_nobody(kinds, drain):
    """As after the key of a related row has become of another type."""
    key = "oddities.presentembedding"
    SidecarState.objects.filter(key=key).update(backfilled_at="2020-01-01T00:00:00Z")
    Inbox.objects.create(sidecar=key, kind="hop", hop="kind", source_pk="no number")
    Letter.objects.create(text="Meanwhile")
    drain()
    assert_in_step(Letter.embedding.model, *ODDITIES)
    # What they meant is found by comparing all rows.
    assert SidecarState.objects.get(key=key).backfilled_at.year > 2020


def test_a_source_that_has_lost_a_column_holds_up_nobody_else(kinds, drain):
    Inbox.objects.create(
        sidecar="oddities.presentembedding", kind="hop", hop="kind", source_pk=str(kinds.pk)
    )
    Letter.objects.create(text="Meanwhile")
    with renamed("given", column="kind_id"):
        worker = drain()
        assert "kind_id" in worker.errors["oddities.presentembedding"]
        assert len(stored_vectors(Letter.embedding.model)) == 1
    # The same worker serves it again when it looks the next time.
    Present.objects.update(name="Gloves")
    worker._mended_at = 0.0
    worker.run(drain=True)
    assert worker.errors == {}
    assert_in_step(Present.embedding.model)


@pytest.mark.parametrize("name", ["short", "a" * 80, "ß" * 40, "გ" * 30])
def test_names_are_cut_by_bytes(name):
    short = shortened(name, 51)
    assert len(short.encode()) <= 51
    assert short == name or len(name.encode()) > 51
    assert short != shortened(name + "x", 51)
