"""Keys of every kind, and multi-table inheritance: captured, embedded, filled and found alike."""

import datetime
import uuid

import pytest
from django.db import connection

from embedsync.database import text_array
from embedsync.models import Inbox, SidecarState
from tests.books import execute
from tests.library.models import Evening, Hall, Novel, Parcel, Seat, Thriller, Ticket, Work
from tests.sync import assert_in_step

pytestmark = pytest.mark.django_db(transaction=True)

SIDECARS = {model: model.embedding.model for model in (Seat, Evening, Novel, Parcel, Ticket)}


def seats(hall, *numbers):
    return [Seat(hall=hall, number=number, view=f"From {number}") for number in numbers]


def evenings():
    first = datetime.date(2024, 2, 1)
    return [
        Evening(day=first + datetime.timedelta(days=n), programme=f"Evening {n}") for n in range(20)
    ]


@pytest.fixture
def rows(transactional_db):
    halls = [Hall.objects.create(name=name) for name in ("Great", "Small")]
    for hall in halls:
        Seat.objects.bulk_create(seats(hall, "1", "10", "2", 'A, "B"', "[3]", "null", "ü"))
    Evening.objects.bulk_create(evenings())
    Parcel.objects.bulk_create(Parcel(label=f"Parcel {n}", id=uuid.UUID(int=n)) for n in range(20))
    Ticket.objects.bulk_create(
        Ticket(code=code, text=f"Ticket {code}")
        for code in ("a", "B", "b", "ä", "10", "9", " ", "")
    )
    for n in range(10):
        Novel.objects.create(title=f"Novel {n}", blurb=f"Blurb {n}", public=n != 3)
    Thriller.objects.create(title="Thriller", blurb="Who was it?")


@pytest.mark.parametrize("model", SIDECARS, ids=lambda model: model.__name__)
class TestAnyKey:
    def test_rows_are_embedded_and_found(self, rows, drain, model):
        drain()
        assert_in_step(SIDECARS[model])
        found = model.objects.similar("one of them", exact=True)
        assert len(found) == SIDECARS[model].objects.count()
        nearest = found[0]
        assert nearest.embedding.pk[:-1] == (
            nearest.pk if isinstance(nearest.pk, tuple) else (nearest.pk,)
        )
        assert nearest not in nearest.similar()
        assert len(nearest.similar()[:3]) == 3
        assert set(model.objects.similar("one")[:3]) <= set(model.objects.all())

    def test_a_fill_in_pages_finds_what_is_missing_wrong_and_left_over(
        self, rows, drain, settings, model
    ):
        settings.EMBEDSYNC_BATCH_SIZE = 3
        drain()
        made = dict(SIDECARS[model].objects.values_list("pk", "embedded_at"))
        execute("SET session_replication_role = replica")
        table = connection.ops.quote_name(SIDECARS[model]._meta.db_table)
        Evening.objects.filter(day="2024-02-05").delete()
        Parcel.objects.filter(pk=uuid.UUID(int=5)).delete()
        Seat.objects.filter(number="2").delete()
        execute(f"DELETE FROM {table} WHERE embedded_at = (SELECT min(embedded_at) FROM {table})")
        execute("SET session_replication_role = origin")
        SidecarState.objects.update(backfilled_at=None, backfill_after=None)
        drain()
        assert_in_step(SIDECARS[model])
        again = dict(SIDECARS[model].objects.values_list("pk", "embedded_at"))
        assert any(made[key] == at for key, at in again.items())

    def test_every_row_follows_its_changes(self, rows, drain, model):
        drain()
        field = model.embedding.declaration.fields[-1]
        if "__" in field:
            field = model.embedding.declaration.fields[0]
        for row in model.objects.all():
            setattr(row, field, "Anew")
            row.save()
        drain()
        assert_in_step(SIDECARS[model])
        for row in list(model.objects.all())[::2]:
            row.delete()
        drain()
        assert_in_step(SIDECARS[model])
        execute(f"TRUNCATE {connection.ops.quote_name(model._meta.db_table)} CASCADE")
        drain()
        assert not SIDECARS[model].objects.exists()


def test_a_composite_key_that_changes_moves_its_vector(rows, drain):
    drain()
    Inbox.objects.all().delete()
    hall = Hall.objects.get(name="Small")
    execute("UPDATE library_seat SET number = '11' WHERE hall_id = %s AND number = '10'", [hall.pk])
    keys = Inbox.objects.values_list("source_pk", flat=True)
    assert sorted(keys) == [f'["{hall.pk}", "10"]', f'["{hall.pk}", "11"]']
    drain()
    assert_in_step(SIDECARS[Seat])


def test_a_related_row_of_a_composite_key_is_followed(rows, drain):
    drain()
    Hall.objects.filter(name="Great").update(name="Greatest")
    assert list(Inbox.objects.values_list("hop", flat=True)) == ["hall"]
    drain()
    assert_in_step(SIDECARS[Seat])


@pytest.mark.parametrize("style", ["ISO, MDY", "SQL, DMY", "German", "Postgres, MDY"])
def test_a_date_is_the_same_key_whatever_the_date_style(rows, drain, style):
    drain()
    execute(f"SET datestyle = '{style}'")
    execute("UPDATE library_evening SET programme = 'Changed' WHERE day = DATE '2024-02-03'")
    execute("RESET datestyle")
    assert [event.source_pk for event in Inbox.objects.all()] == ["2024-02-03"]
    drain()
    assert_in_step(SIDECARS[Evening])


def test_what_the_parents_table_says_is_followed(rows, drain):
    drain()
    Work.objects.filter(title="Novel 1").update(title="Renamed")
    Work.objects.filter(title="Novel 2").update(public=False)
    Work.objects.filter(title="Novel 3").update(public=True)
    Work.objects.filter(title="Thriller").update(title="Chiller")
    drain()
    assert_in_step(SIDECARS[Novel])
    assert not Novel.objects.similar("x", exact=True).filter(title="Novel 2").exists()


def test_a_parents_rows_of_another_kind_cost_nothing_when_they_are_made(rows, drain):
    drain()
    Work.objects.bulk_create([Work(title="Sonata")])
    assert not Inbox.objects.exists()
    Work.objects.filter(title="Sonata").update(title="Fugue")
    drain()
    assert_in_step(SIDECARS[Novel])


def test_a_child_that_goes_and_leaves_its_parent_has_no_vector(rows, drain):
    drain()
    Novel.objects.get(title="Novel 1").delete(keep_parents=True)
    drain()
    assert Work.objects.filter(title="Novel 1").exists()
    assert_in_step(SIDECARS[Novel])


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [""],
        ["1", "2"],
        ["1,2", "3"],
        ["NULL", "null"],
        ["6f9619ff-8b86-d011-b42d-00c04fc964ff"],
        ["a\\b", 'c"d', "{e}", " f ", "g\n\th", "ä😀", "%s", "'"],
        ["-1", "a,", ",b"],
    ],
)
def test_keys_reach_the_server_as_they_are(db, keys):
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::text[]", [text_array(keys)])
        assert cursor.fetchone() == (keys,)
