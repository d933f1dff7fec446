"""The long way round: random statements beside workers, one of them killed in the middle."""

import os
import random
import signal
import uuid

import psycopg
import pytest
from django.db import connection

from embedsync.models import Ledger
from tests.application import is_settled
from tests.library.models import Book, Parcel
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

BATCHES = 120
WORDS = ["robot", "earth", "love", "war", "sea", "train", "chess", "ghost", "king", "garden"]


def words(chance):
    # A pinch of blanks, which must have no vector.
    return " ".join(chance.choices(WORDS, k=chance.randrange(6)))


def statements(chance):
    """A handful of statements, as (SQL, parameters)."""
    keys = [chance.randrange(1, 400) for _ in range(20)]
    parcels = [uuid.UUID(int=key) for key in keys]
    yield chance.choice(
        [
            (
                "INSERT INTO library_book (id, title, body, year, published)"
                " SELECT k, %s, %s, 2000, k %% 5 > 0 FROM unnest(%s::int[]) k"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (words(chance), words(chance), sorted(set(keys))),
            ),
            (
                "INSERT INTO library_parcel (id, label) SELECT k, %s FROM unnest(%s::uuid[]) k"
                " ON CONFLICT (id) DO UPDATE SET label = excluded.label",
                (words(chance), sorted(set(parcels))),
            ),
            ("UPDATE library_book SET title = %s WHERE id = ANY(%s)", (words(chance), keys)),
            ("UPDATE library_book SET published = NOT published WHERE id = ANY(%s)", (keys,)),
            ("UPDATE library_book SET year = year + 1", ()),
            ("UPDATE library_parcel SET label = NULL WHERE id = ANY(%s)", (parcels,)),
            ("UPDATE library_book SET id = id + 10000 WHERE id = %s", (keys[0],)),
            ("DELETE FROM library_book WHERE id = ANY(%s)", (keys[:8],)),
            ("DELETE FROM library_parcel WHERE id = ANY(%s)", (parcels[:8],)),
            ("TRUNCATE library_book", ()) if chance.random() < 0.15 else ("SELECT 1", ()),
        ]
    )


def write_at_random(chance, batches):
    """Transactions of the application, over a connection of its own; some are rolled back."""
    values = connection.settings_dict
    application = psycopg.connect(
        dbname=values["NAME"],
        user=values["USER"],
        password=values["PASSWORD"] or None,
        host=values["HOST"] or None,
        port=values["PORT"] or None,
    )
    with application:
        for _ in range(batches):
            for _ in range(chance.randrange(1, 5)):
                for sql, parameters in statements(chance):
                    application.execute(sql, parameters)
            if chance.random() < 0.2:
                application.rollback()
            else:
                application.commit()


@pytest.mark.parametrize("round_", range(3))
def test_every_vector_is_that_of_its_row_now(worker_process, round_):
    seed = int(os.environ.get("EMBEDSYNC_TEST_SEED", random.randrange(10**9)))
    print(f"EMBEDSYNC_TEST_SEED={seed}")
    chance = random.Random(seed)
    short = {"DJANGO_SETTINGS_MODULE": "tests.short_lease", "SCRIPTED_SLEEP": "0"}
    victim, other = worker_process(**short), worker_process(**short)

    write_at_random(chance, BATCHES // 3)
    until(lambda: Book.embedding.model.objects.exists() or Parcel.embedding.model.objects.exists())
    # In the middle of something: with rows leased to it.
    name = f":{victim.process.pid}:"
    Book.objects.bulk_create(
        [Book(id=20000 + n, title=f"{words(chance)} {n}") for n in range(3000)]
    )
    until(lambda: Ledger.objects.filter(token__isnull=False, worker__contains=name).exists())
    victim.send(signal.SIGKILL)
    third = worker_process(**short)
    write_at_random(chance, BATCHES * 2 // 3)

    until(is_settled, seconds=60)
    assert_in_step(Book.embedding.model, Parcel.embedding.model)
    for worker in (other, third):
        worker.send(signal.SIGTERM)
        status, output = worker.wait()
        assert status == 0, output
        assert "Traceback" not in output
        assert "deadlock" not in output
