"""Statements that reach many rows at once: truncations, cascades, keys that change."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections, models, transaction
from django.test.utils import isolate_apps

from embedsync.models import Inbox
from embedsync.worker import Worker
from tests.application import Application, begin, connect, is_settled, is_waited_for
from tests.books import KEY, BookEmbedding, execute
from tests.library.models import Book, Parcel
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

ParcelEmbedding = Parcel.embedding.model
TRUNCATIONS = [
    "TRUNCATE library_book",
    "TRUNCATE library_book RESTART IDENTITY",
    "TRUNCATE shelf CASCADE",
    "TRUNCATE shelf RESTART IDENTITY CASCADE",
]


def events():
    """The inbox, as (kind, key)."""
    return sorted(Inbox.objects.values_list("kind", "source_pk"))


def rows(keys):
    return sorted(("row", str(key)) for key in keys)


@pytest.fixture
def shelved(drain):
    """Books on shelves 0 to 2, their keys by shelf. The database deletes them with their shelf."""
    execute("CREATE TABLE shelf (id int PRIMARY KEY)")
    execute("INSERT INTO shelf VALUES (0), (1), (2)")
    execute("ALTER TABLE library_book ADD COLUMN shelf_id int REFERENCES shelf ON DELETE CASCADE")
    execute("TRUNCATE library_book RESTART IDENTITY")
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(30)])
    execute("UPDATE library_book SET shelf_id = id % 3")
    drain()
    yield {shelf: [n for n in range(1, 31) if n % 3 == shelf] for shelf in range(3)}
    execute("ALTER TABLE library_book DROP COLUMN shelf_id")
    execute("DROP TABLE shelf")


@pytest.mark.parametrize("truncate", TRUNCATIONS)
def test_a_truncation_takes_all_vectors_along(drain, shelved, truncate):
    """Fault 38: one event, and after it nothing of the old rows is left."""
    with Application() as application:
        application.execute(truncate)
    assert events() == [("truncate", None)]
    drain()
    assert not BookEmbedding.objects.exists()
    Book.objects.bulk_create([Book(title=f"New {n}") for n in range(5)])
    drain()
    assert (1 in stored_vectors(BookEmbedding)) == ("RESTART" in truncate)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("truncate", TRUNCATIONS[1:3])
@pytest.mark.parametrize("reloaded", [False, True])
def test_a_truncation_during_embedding_leaves_no_old_vector(
    worker_process, shelved, truncate, reloaded
):
    """Fault 38: what was read before it is not written over what came after it."""
    worker = begin(worker_process, SCRIPTED_SLEEP="1")
    with Application() as application:
        application.execute("UPDATE library_book SET body = 'SLEEP' WHERE id = 1")
        worker.says("asleep")
        application.execute(truncate)
        if reloaded:
            application.execute(
                "INSERT INTO library_book (id, title, body, year, published)"
                " VALUES (1, 'New', '', 2000, true)"
            )
        until(is_settled)
    assert set(stored_vectors(BookEmbedding)) == ({1} if reloaded else set())
    assert_in_step(BookEmbedding)


def in_a_thread(move, *arguments):
    try:
        return move(*arguments)
    finally:
        connections["default"].close()


@pytest.fixture
def held(shelved):
    """A worker that has embedded a book, and what it is about to write: () -> what it did."""
    worker = Worker()
    worker.start()
    Book.objects.filter(pk=1).update(title="changed")
    _, [claim] = worker.queue.fold([KEY], 10)
    service = worker.services[KEY]
    [vector] = service.embedder.checked_documents(["changed. "])
    vectors = {"1": (b"x" * 16, vector)}
    return lambda: worker.queue.complete(
        BookEmbedding, claim, service.fingerprint, vectors, blank=[]
    )


def test_a_completion_that_waits_for_a_truncation_writes_nothing(drain, held):
    """Fault 38: the truncation has locked the source first."""
    with ThreadPoolExecutor(1) as pool, connect() as other:
        other.execute("BEGIN")
        other.execute("TRUNCATE library_book")
        completing = pool.submit(in_a_thread, held)
        until(lambda: is_waited_for("library_book"))
        other.execute("COMMIT")
        assert completing.result().written == []
    drain()
    assert not BookEmbedding.objects.exists()
    assert_in_step(BookEmbedding)


def test_a_truncation_that_waits_for_a_completion_removes_what_it_wrote(drain, held):
    """Fault 38: the completion has locked the source first."""
    with ThreadPoolExecutor(1) as pool, connect() as other:
        with transaction.atomic():
            assert len(held().written) == 1
            truncating = pool.submit(other.execute, "TRUNCATE library_book")
            until(lambda: is_waited_for("library_book"))
        truncating.result()
    assert BookEmbedding.objects.filter(source_id=1).exists()
    drain()
    assert not BookEmbedding.objects.exists()
    assert_in_step(BookEmbedding)


def test_truncations_while_all_are_at_work(drain, worker_process):
    """Fault 38: nobody waits for the worker, and what is left at the end is right."""
    drain()
    begin(worker_process)
    with Application(writers=3) as application:
        for _ in range(5):
            application.work(8)
            application.execute("TRUNCATE library_book")
        application.work(8)
    until(is_settled)
    assert_in_step(BookEmbedding)


def test_a_cascade_of_the_database_makes_an_event_a_child(drain, shelved):
    """Fault 39: ON DELETE CASCADE."""
    with Application() as application:
        application.execute("DELETE FROM shelf WHERE id IN (1, 2)")
    assert events() == rows([*shelved[1], *shelved[2]])
    drain()
    assert set(stored_vectors(BookEmbedding)) == set(shelved[0])
    assert_in_step(BookEmbedding)


@isolate_apps("tests.library")
def test_a_cascade_of_djangos_makes_an_event_a_child(drain, shelved):
    """Fault 39: CASCADE, which Django carries out itself."""

    class Shelf(models.Model):
        class Meta:
            app_label = "library"
            db_table = "shelf"

    class Shelved(models.Model):
        shelf = models.ForeignKey(Shelf, models.CASCADE)

        class Meta:
            app_label = "library"
            db_table = "library_book"

    execute("ALTER TABLE library_book DROP CONSTRAINT library_book_shelf_id_fkey")
    Shelf.objects.get(pk=1).delete()
    assert events() == rows(shelved[1])
    drain()
    assert set(stored_vectors(BookEmbedding)) == {*shelved[0], *shelved[2]}
    assert_in_step(BookEmbedding)


@pytest.fixture
def sent(drain):
    """Parcels whose label names a sender, by sender."""
    execute("CREATE TABLE sender (name text PRIMARY KEY)")
    execute("INSERT INTO sender VALUES ('Ann'), ('Bob')")
    parcels = {
        name: [Parcel.objects.create(label=name).pk for _ in range(5)] for name in ("Ann", "Bob")
    }
    execute(
        "ALTER TABLE library_parcel ADD CONSTRAINT sender FOREIGN KEY (label)"
        " REFERENCES sender ON DELETE SET NULL ON UPDATE CASCADE"
    )
    drain()
    yield parcels
    execute("ALTER TABLE library_parcel DROP CONSTRAINT IF EXISTS sender")
    execute("DROP TABLE sender")


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("DELETE FROM sender WHERE name = 'Ann'", ["Bob"]),
        ("UPDATE sender SET name = 'Anne' WHERE name = 'Ann'", ["Ann", "Bob"]),
    ],
    ids=["set null", "cascade"],
)
def test_an_embedded_column_that_the_database_changes_is_seen(drain, sent, statement, left):
    """Fault 39: ON DELETE SET NULL and ON UPDATE CASCADE of an embedded column."""
    with Application() as application:
        application.execute(statement)
    assert events() == rows(sent["Ann"])
    drain()
    assert set(stored_vectors(ParcelEmbedding)) == {pk for name in left for pk in sent[name]}
    assert_in_step(ParcelEmbedding)


@isolate_apps("tests.library")
def test_an_embedded_column_that_django_sets_to_null_is_seen(drain, sent):
    """Fault 39: SET_NULL, which Django carries out itself."""

    class Sender(models.Model):
        name = models.TextField(primary_key=True)

        class Meta:
            app_label = "library"
            db_table = "sender"

    class Sent(models.Model):
        id = models.UUIDField(primary_key=True)
        sender = models.ForeignKey(Sender, models.SET_NULL, null=True, db_column="label")

        class Meta:
            app_label = "library"
            db_table = "library_parcel"

    execute("ALTER TABLE library_parcel DROP CONSTRAINT sender")
    Sender.objects.get(pk="Ann").delete()
    assert events() == rows(sent["Ann"])
    drain()
    assert set(stored_vectors(ParcelEmbedding)) == set(sent["Bob"])
    assert_in_step(ParcelEmbedding)


@pytest.fixture
def deferrable_keys(drain):
    """Books 1 to 5, whose keys are looked at when a statement has ended."""
    alter = (
        "ALTER TABLE library_book DROP CONSTRAINT library_book_pkey,"
        " ADD CONSTRAINT library_book_pkey PRIMARY KEY (id)"
    )
    execute(f"{alter} DEFERRABLE")
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 6)])
    drain()
    yield
    execute(alter)


@pytest.mark.parametrize(
    ("update", "changed"),
    [
        ("id = 60 WHERE id = 3", [3, 60]),
        ("id = 3 - id WHERE id < 3", [1, 2]),
        ("id = id + 1", [1, 2, 3, 4, 5, 6]),
        ("id = 6 - id, title = title || ' turned'", [1, 2, 3, 4, 5]),
        ("id = CASE id WHEN 1 THEN 2 WHEN 2 THEN 70 ELSE id END", [1, 2, 70]),
    ],
    ids=["changed", "swapped", "moved up", "turned round", "pushed away"],
)
def test_vectors_follow_keys_that_change(drain, deferrable_keys, update, changed):
    """Fault 40: the old keys and the new are captured, and the vectors are those of the rows."""
    with Application() as application:
        application.execute(f"UPDATE library_book SET {update}")
    assert events() == rows(changed)
    drain()
    assert_in_step(BookEmbedding)


def test_keys_that_are_swapped_during_embedding_take_their_vectors_along(
    deferrable_keys, worker_process
):
    """Fault 40: what was read of the one is not left with the other."""
    first, second = (begin(worker_process, SCRIPTED_SLEEP="1") for _ in range(2))
    second.send(signal.SIGSTOP)
    with Application() as application:
        application.execute("UPDATE library_book SET body = 'SLEEP' WHERE id < 3")
        first.says("asleep")
        application.execute("UPDATE library_book SET id = 3 - id WHERE id < 3")
        second.send(signal.SIGCONT)
        until(lambda: not Inbox.objects.exists())
    until(is_settled)
    assert_in_step(BookEmbedding)
