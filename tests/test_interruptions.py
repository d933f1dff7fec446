"""What comes between: late commits, broken sidecars, unreadable rows, odd conditions."""

import subprocess
import sys

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, models
from django.db.models import Q
from django.test.utils import isolate_apps

from embedsync import state
from embedsync.database import eligible_sql, names_of, worker_transaction
from embedsync.declaration import Declaration, sidecars
from embedsync.models import EmbeddedModel, Embedding, Inbox, Ledger, SidecarState
from embedsync.worker import Worker
from example_project.postgres import PROJECT
from tests.books import KEY, BookEmbedding, attach, execute, renamed
from tests.library.models import Book, Parcel
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until, work_off

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def application(transactional_db):
    """A connection of the application's own."""
    values = connection.settings_dict
    with psycopg.connect(
        dbname=values["NAME"],
        user=values["USER"],
        password=values["PASSWORD"] or None,
        host=values["HOST"] or None,
        port=values["PORT"] or None,
    ) as opened:
        yield opened


def insert(where, title):
    where.execute(
        "INSERT INTO library_book (title, body, year, published) VALUES (%s, '', 1, true)", [title]
    )


def test_a_change_that_was_not_captured_and_commits_late_is_found(drain, application):
    """The mark can be seen before the transaction that left it has committed."""
    drain()
    with renamed("embedsync_inbox"):
        insert(application, "late")
    drain()
    assert BookEmbedding.objects.count() == 0
    application.commit()
    # Again, because a transaction in any database of the server may have been in between.
    until(lambda: drain() and BookEmbedding.objects.count() == 1)
    assert_in_step(BookEmbedding)


def test_marks_that_keep_coming_do_not_restart_a_fill(drain):
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(30)])
    drain()
    SidecarState.objects.filter(key=KEY).update(backfilled_at=None, backfill_after="5")
    for n in range(2, 6):
        execute(f"SELECT setval('embedsync_missed', {n})")
        with worker_transaction("default") as cursor:
            state.heed_missed(cursor, [KEY])
        assert SidecarState.objects.get(key=KEY).backfill_after == "5"
    until(lambda: drain() and SidecarState.objects.get(key=KEY).missed == 5)
    assert_in_step(BookEmbedding)


def test_a_truncated_table_that_is_loaded_again_keeps_its_new_vectors(drain):
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in (1, 2, 3)])
    drain()
    execute("TRUNCATE library_book")
    Book.objects.create(id=2, title="New")
    worker = Worker()
    worker.start()
    _, [claim] = worker.queue.fold([KEY], 10)
    work_off(worker, claim)
    drain()
    assert set(stored_vectors(BookEmbedding)) == {2}
    assert_in_step(BookEmbedding)


def test_one_broken_sidecar_leaves_the_others_rows_alone(drain, caplog):
    drain()
    with renamed("library_memo"):
        SidecarState.objects.filter(key="library.memoembedding").update(backfilled_at=None)
        Parcel.objects.create(label="healthy")
        worker = drain()
    assert "library.memoembedding" in worker.errors
    assert Parcel.embedding.model.objects.count() == 1
    assert_in_step(Parcel.embedding.model)


@pytest.mark.parametrize("step", ["_begin", "_write"])
def test_rows_in_hand_are_given_back_when_a_round_fails(drain, monkeypatch, step):
    drain()
    Book.objects.create(title="A")
    worker = Worker()
    worker.start()

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.pipeline, step, fail)
    with pytest.raises(KeyboardInterrupt):
        worker.run()
    owed = Ledger.objects.get()
    assert (owed.token, owed.attempts) == (None, 0)


def test_a_row_that_cannot_be_read_harms_itself_alone(drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in (1, 2, 3)])
    execute("ALTER TABLE library_book ADD COLUMN shown date")
    execute("UPDATE library_book SET shown = 'infinity' WHERE id = 2")
    models.DateField(null=True).contribute_to_class(Book, "shown")
    declaration = Declaration(("title", "shown"), embedder="scripted")
    relation = BookEmbedding._meta.get_field("source")
    kept, relation.declaration = relation.declaration, declaration
    try:
        drain()
        assert set(stored_vectors(BookEmbedding)) == {1, 3}
        owed = Ledger.objects.get()
        assert (owed.source_pk, owed.run_at) == ("2", None)
        assert owed.last_error
    finally:
        relation.declaration = kept
        field = Book._meta.get_field("shown")
        Book._meta.local_fields.remove(field)
        Book._meta._expire_cache()
        del Book.shown
        execute("ALTER TABLE library_book DROP COLUMN shown")


def test_an_event_without_a_key_holds_up_nobody(drain):
    Inbox.objects.create(sidecar=KEY, kind="row", source_pk=None)
    Book.objects.create(title="A")
    drain()
    assert_in_step(BookEmbedding)


def test_a_drain_finds_what_was_committed_below_the_mark(drain):
    worker = Worker()
    worker.start()
    worker.run(drain=True)
    worker.queue.low = 10**9
    worker.queue._next_full_look = 1e12
    Book.objects.create(title="A")
    worker.run(drain=True)
    assert_in_step(BookEmbedding)


def test_a_failed_vector_write_is_the_databases_error(drain):
    """Not psycopg's own, which nobody up the road would catch."""
    Book.objects.create(title="A")
    worker = Worker()
    worker.start()
    with renamed("library_bookembedding", column="vector"):
        worker.run(drain=True)
    assert "vector" in Ledger.objects.get().last_error
    Ledger.objects.update(run_at="2000-01-01T00:00Z")
    drain()
    assert_in_step(BookEmbedding)


def test_a_column_that_is_not_as_declared_blames_no_row(drain):
    Book.objects.create(title="A")
    execute("DROP INDEX library_bookembedding_hnsw")
    execute("ALTER TABLE library_bookembedding ALTER COLUMN vector TYPE halfvec(3)")
    try:
        worker = drain()
    finally:
        execute("ALTER TABLE library_bookembedding ALTER COLUMN vector TYPE halfvec(64)")
        with connection.schema_editor() as editor:
            editor.add_index(BookEmbedding, BookEmbedding._meta.indexes[0])
    assert "run makemigrations and migrate" in worker.errors[KEY]
    drain()
    assert_in_step(BookEmbedding)


def test_the_moves_of_many_workers_do_not_deadlock(worker_process, drain):
    """Leases are extended while others fold the same rows."""
    drain()
    Book.objects.bulk_create([Book(id=n, title=f"SLEEP {n}") for n in range(1, 301)])
    more = {"SCRIPTED_SLEEP": "0.004", "DJANGO_SETTINGS_MODULE": "tests.short_lease"}
    workers = [worker_process("--drain", **more) for _ in range(3)]
    n = 0
    while any(worker.process.poll() is None for worker in workers) and n < 300:
        n += 1
        Book.objects.filter(pk__gt=n % 100).update(body=f"{n}")
    for worker in workers:
        status, output = worker.wait()
        assert status == 0, output
        assert "deadlock" not in output
    drain()
    assert_in_step(BookEmbedding)


@isolate_apps("tests.library")
def test_conditions_that_nothing_or_everything_meets():
    class Story(EmbeddedModel):
        title = models.TextField()
        none = Embedding("title", condition=Q(title__in=[]), embedder="hashing")
        all = Embedding("title", condition=~Q(title__in=[]), embedder="hashing")

        class Meta:
            app_label = "library"

    assert eligible_sql(Story.none.model, "default") == "FALSE"
    assert eligible_sql(Story.all.model, "default") == "TRUE"


def test_the_fingerprint_is_the_same_in_every_process():
    code = (
        "from django.conf import settings; settings.configure()\n"
        "import django; django.setup()\n"
        "from django.db.models import Q\n"
        "from embedsync.declaration import Declaration\n"
        "print(Declaration(('a',), condition=Q(b__in={'x', 'y', 'z'})).fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_migrate_forgets_nobody_who_is_served(drain):
    Book.objects.create(title="A")
    before = set(SidecarState.objects.values_list("key", flat=True))
    Inbox.objects.create(sidecar="gone.elsewhere", kind="row", source_pk="1")
    call_command("migrate", verbosity=0)
    assert set(SidecarState.objects.values_list("key", flat=True)) == before
    assert not Inbox.objects.filter(sidecar="gone.elsewhere").exists()
    assert Inbox.objects.filter(sidecar=KEY).exists()


def test_keys_in_any_letters_are_known_by_their_triggers(transactional_db):
    """PostgreSQL keeps a trigger's arguments as bytes."""
    key = "library.películaembedding"
    attach("odd", "library_memo", key)
    SidecarState.objects.create(key=key)
    call_command("migrate", verbosity=0)
    assert SidecarState.objects.filter(key=key).exists()
    execute("DROP TRIGGER odd ON library_memo")


def test_all_sidecars_have_their_own_queue_names(drain):
    drain()
    names = {names_of(sidecar, "default").sidecar for sidecar in sidecars()}
    assert len(names) == len(sidecars())
