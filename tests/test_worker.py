"""The worker: from changed rows to vectors."""

import datetime
import uuid

import pytest
from django.contrib.flatpages.models import FlatPage
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from embedsync import state
from embedsync.database import worker_transaction
from embedsync.declaration import sidecars
from embedsync.models import Inbox, Ledger, SidecarState
from embedsync.queue import Queue
from embedsync.worker import Worker
from tests.application import uncommitted
from tests.books import KEY, BookEmbedding, execute, make_due, renamed
from tests.library.models import Book, FlatPageEmbedding, Letter, Memo, Parcel, Ticket
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until, work_off

pytestmark = pytest.mark.django_db(transaction=True)

LIBRARY = [sidecar for sidecar in sidecars() if sidecar._meta.app_label == "library"]


def test_all_kinds_of_sources(drain):
    Book.objects.create(title="A", body="Text")
    Parcel.objects.create(label="one")
    Ticket.objects.create(code='it\'s % "q" {0} ü', text="two")
    Memo.objects.create(text="three")
    Letter.objects.create(text="four")
    FlatPage.objects.create(url="/a/", title="About us", content="five")
    worker = drain()
    assert worker.errors == {}
    assert_in_step(*LIBRARY)
    assert FlatPageEmbedding.objects.count() == 1


def test_updates_deletes_key_changes_and_truncate(drain):
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 8)])
    drain()
    Book.objects.filter(pk=1).update(title="Changed")
    Book.objects.filter(pk=2).delete()
    Book.objects.filter(pk=3).update(published=False)
    execute("UPDATE library_book SET id = 40 WHERE id = 4")
    drain()
    assert_in_step(BookEmbedding)
    assert set(stored_vectors(BookEmbedding)) == {1, 40, 5, 6, 7}
    Book.objects.filter(pk=3).update(published=True)
    drain()
    assert_in_step(BookEmbedding)
    execute("TRUNCATE library_book")
    Book.objects.create(id=5, title="After")
    drain()
    assert set(stored_vectors(BookEmbedding)) == {5}
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize(
    "body",
    [
        "x" * 200_000,
        "\U0001f916 \U0001f30d",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
        "e\u0301 \u200d",
        "'; DROP TABLE {} %s \\",
    ],
    ids=["200 kB", "emoji", "right to left", "combining", "hostile"],
)
def test_odd_texts_are_rows_like_others(drain, body):
    Book.objects.create(title="T", body=body)
    drain()
    assert_in_step(BookEmbedding)


def test_blank_rows_have_no_vector_and_are_not_retried(drain):
    """Fault 24."""
    Book.objects.create(title="", body="  \n ")
    Parcel.objects.create(label=None)
    parcel = Parcel.objects.create(label="text")
    drain()
    assert BookEmbedding.objects.count() == 0
    assert_in_step(*LIBRARY)
    Parcel.objects.filter(pk=parcel.pk).update(label=" ")
    drain()
    assert Parcel.embedding.model.objects.count() == 0
    assert_in_step(*LIBRARY)


def test_rows_from_before_the_declaration_are_embedded_in_pages(drain, settings):
    settings.EMBEDSYNC_BATCH_SIZE = 7
    execute("SET embedsync.capture = 'off'")
    Book.objects.bulk_create([Book(title=f"Book {n}", published=n % 3 > 0) for n in range(50)])
    Parcel.objects.bulk_create([Parcel(id=uuid.uuid4(), label=f"P {n}") for n in range(50)])
    Ticket.objects.bulk_create([Ticket(code=f"T {n}", text=f"T {n}") for n in range(50)])
    execute("RESET embedsync.capture")
    SidecarState.objects.all().delete()
    assert Inbox.objects.filter(kind="row").count() == 0
    drain()
    assert_in_step(*LIBRARY)
    assert SidecarState.objects.filter(backfilled_at=None).count() == 0


def test_a_fill_finds_vectors_without_a_row_and_wrong_ones(drain):
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 6)])
    drain()
    made = dict(BookEmbedding.objects.values_list("source_id", "embedded_at"))
    execute("SET embedsync.capture = 'off'")
    Book.objects.filter(pk=1).delete()
    Book.objects.filter(pk=2).update(title="Changed")
    Book.objects.filter(pk=3).update(published=False)
    BookEmbedding.objects.filter(source=4).delete()
    execute("RESET embedsync.capture")
    SidecarState.objects.all().update(backfilled_at=None, backfill_after=None)
    drain()
    assert_in_step(BookEmbedding)
    # What was right is not embedded again.
    assert BookEmbedding.objects.get(source=5).embedded_at == made[5]


def test_a_change_that_leaves_the_text_is_not_embedded_again(drain):
    book = Book.objects.create(title="A")
    drain()
    before = book.embedding.embedded_at
    Book.objects.update(title="B")
    Book.objects.update(title="A")
    drain()
    assert book.embedding.embedded_at == before
    assert_in_step(BookEmbedding)


def test_a_trigger_that_failed_leads_to_a_comparison_of_all_rows(drain):
    drain()
    with renamed("embedsync_inbox"):
        Book.objects.create(title="Written all the same")
    assert Inbox.objects.filter(kind="row").count() == 0
    # Again, because a transaction in any database of the server may have been in between.
    until(lambda: drain() and BookEmbedding.objects.exists())
    assert_in_step(BookEmbedding)


def test_an_exception_leaves_the_row_owed_with_backoff(drain, caplog, monkeypatch):
    # The longest wait, because the shortest would let the same drain try again.
    monkeypatch.setattr("embedsync.part.jitter", lambda longest: longest)
    Book.objects.bulk_create(
        [Book(title="good 1"), Book(title="FAIL secret"), Book(title="good 2")]
    )
    drain()
    # The good ones are in, the bad one waits.
    assert BookEmbedding.objects.count() == 2
    owed = Ledger.objects.get()
    assert (owed.attempts, owed.token) == (1, None)
    assert "the provider is unwell" in owed.last_error
    make_due()
    drain()
    assert Ledger.objects.get().attempts == 2
    assert "secret" not in caplog.text
    Book.objects.filter(title__contains="FAIL").update(title="mended")
    drain()
    assert_in_step(BookEmbedding)


def test_a_row_that_always_fails_is_parked_and_a_change_frees_it(drain, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 3
    book = Book.objects.create(title="FAIL")
    for _ in range(4):
        drain()
        make_due()
    owed = Ledger.objects.get()
    assert owed.run_at is None
    assert owed.attempts == 3
    book.title = "good"
    book.save()
    drain()
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("fault", ["NAN", "ZERO", "MISSING"])
def test_bad_vectors_are_never_written(drain, fault):
    Book.objects.create(title=fault)
    drain()
    assert BookEmbedding.objects.count() == 0
    assert "EmbedderError" in Ledger.objects.get().last_error


def test_wrong_dimensions_stop_the_sidecar_and_blame_no_row(drain):
    Book.objects.create(title="SHORT")
    Memo.objects.create(text="others go on")
    worker = drain()
    assert "63 dimensions" in worker.errors[KEY]
    assert "DIMENSIONS to 63" in worker.errors[KEY]
    owed = Ledger.objects.get()
    assert (owed.attempts, owed.token) == (0, None)
    assert BookEmbedding.objects.count() == 0
    assert Memo.embedding.model.objects.count() == 1


def test_the_command_says_what_is_not_served(transactional_db):
    Book.objects.create(title="SHORT")
    with pytest.raises(CommandError, match=r"bookembedding is not served: .*DIMENSIONS to 63"):
        call_command("embed_worker", "--drain", verbosity=0)
    with pytest.raises(CommandError, match="no database 'nowhere'"):
        call_command("embed_worker", "--drain", "--database", "nowhere")


def test_other_vectors_than_the_settings_say_are_refused(drain, settings):
    Book.objects.create(title="A")
    drain()
    embedders = dict(settings.EMBEDSYNC_EMBEDDERS)
    embedders["scripted"] = {**embedders["hashing"]}
    settings.EMBEDSYNC_EMBEDDERS = embedders
    Book.objects.create(title="B")
    worker = drain()
    assert "declare a second Embedding" in worker.errors[KEY]
    assert BookEmbedding.objects.count() == 1
    BookEmbedding.objects.all().delete()
    assert drain().errors == {}
    assert_in_step(BookEmbedding)


def test_a_worker_with_an_old_declaration_writes_nothing(drain):
    worker = Worker()
    worker.start()
    Book.objects.create(title="A")
    SidecarState.objects.filter(key=KEY).update(fingerprint="a newer one")
    worker.run(drain=True)
    assert "has started since" in worker.errors[KEY]
    assert BookEmbedding.objects.count() == 0
    drain()
    assert_in_step(BookEmbedding)


def test_a_late_worker_cannot_overwrite_newer_work(drain):
    """Taken over in the middle of embedding: what comes late is dropped."""
    book = Book.objects.create(title="old")
    late = Worker()
    late.start()
    _, [claim] = late.queue.fold([KEY], 10)
    service = late.services[KEY]
    late._keep_house()
    Ledger.objects.update(run_at=timezone.now() - datetime.timedelta(seconds=1))
    Book.objects.update(title="new")
    drain()
    vector = service.embedder.checked_documents(["old. "])[0]
    done = late.queue.complete(
        BookEmbedding, claim, service.fingerprint, {str(book.pk): (b"x" * 16, vector)}, blank=[]
    )
    assert (done.written, done.lost) == ([], 1)
    assert_in_step(BookEmbedding)


def test_a_change_during_embedding_is_embedded_next(drain):
    book = Book.objects.create(title="first")
    worker = Worker()
    worker.start()
    _, [claim] = worker.queue.fold([KEY], 10)
    book.title = "second"
    book.save()
    assert worker.queue.fold([KEY], 10)[1] == []  # leased: only marked
    assert Ledger.objects.get().dirty
    work_off(worker, claim)
    assert Ledger.objects.get().token is None
    drain()
    assert_in_step(BookEmbedding)


def test_a_row_deleted_during_embedding_leaves_no_vector(drain):
    book = Book.objects.create(title="first")
    worker = Worker()
    worker.start()
    _, [claim] = worker.queue.fold([KEY], 10)
    service = worker.services[KEY]
    vector = service.embedder.checked_documents(["first. "])[0]
    pk = str(book.pk)
    book.delete()
    done = worker.queue.complete(
        BookEmbedding, claim, service.fingerprint, {pk: (b"x" * 16, vector)}, blank=[]
    )
    assert done.written == []
    drain()
    assert_in_step(BookEmbedding)


def test_no_transaction_is_open_while_texts_are_embedded(drain, monkeypatch):
    seen = []

    def is_closed():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state LIKE 'idle in transaction%%'"
            )
            return cursor.fetchone()[0] == 0

    def look(self, texts):
        # Meanwhile the worker looks for more, in short transactions of its own.
        seen.append(until(is_closed, seconds=10))
        connection.close()  # of the thread that embeds
        return original(self, texts)

    embedder = Worker.start.__globals__["get_embedder"]("scripted")
    original = type(embedder).embed_documents
    monkeypatch.setattr(type(embedder), "embed_documents", look)
    Book.objects.create(title="A")
    drain()
    assert seen == [True]


def test_moves_are_read_committed_whatever_the_default(drain):
    execute("SET default_transaction_isolation = 'serializable'")
    with worker_transaction("default") as cursor:
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("read committed",)
    execute("RESET default_transaction_isolation")


def test_an_unserved_sidecar_at_the_head_holds_up_nobody(drain):
    """Fault 58."""
    Inbox.objects.bulk_create(
        [Inbox(sidecar="gone.elsewhere", kind="row", source_pk=str(n)) for n in range(600)]
    )
    Book.objects.create(title="A")
    drain()
    assert BookEmbedding.objects.count() == 1
    assert Ledger.objects.filter(sidecar="gone.elsewhere", token=None).count() == 600


def test_an_event_below_the_low_water_mark_is_found(drain):
    """Order of commit is not order of seq."""
    queue = Queue("default", "me")
    Book.objects.create(title="A")
    queue.fold([KEY], 10)
    queue.low += 1000
    Book.objects.create(title="B")
    until(lambda: queue.fold([KEY], 10)[0], seconds=5)


def test_folding_does_not_walk_over_what_was_folded_before(drain):
    """With xmin held elsewhere dead entries stay, and the low-water mark steps over them."""
    with transaction.atomic():
        execute(
            "INSERT INTO library_book (title, body, year, published)"
            " SELECT 'x', '', 1, true FROM generate_series(1, 20000)"
        )
    queue = Queue("default", "me")
    for _ in range(20):
        queue.fold([KEY], 900)
    with transaction.atomic():
        execute("SET LOCAL enable_seqscan = off")
        with connection.cursor() as cursor:
            cursor.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT seq FROM embedsync_inbox"
                " WHERE seq > %s AND kind = 'row' ORDER BY seq LIMIT 900",
                [queue.low],
            )
            plan = cursor.fetchone()[0][0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 40


def test_a_schema_change_under_a_worker_blames_no_row(drain, caplog):
    Book.objects.create(title="A")
    execute("ALTER TABLE library_book RENAME COLUMN body TO text")
    drain()
    owed = Ledger.objects.get()
    assert (owed.attempts, owed.token) == (0, None)
    assert owed.run_at is not None
    assert "body does not exist" in owed.last_error
    execute("ALTER TABLE library_book RENAME COLUMN text TO body")
    make_due()
    drain()
    assert_in_step(BookEmbedding)


def test_a_sidecar_whose_table_is_gone_stops_no_other(drain):
    execute("ALTER TABLE library_memoembedding RENAME TO elsewhere")
    SidecarState.objects.all().delete()
    Book.objects.create(title="A")
    worker = drain()
    assert "does not exist" in worker.errors["library.memoembedding"]
    assert BookEmbedding.objects.count() == 1
    execute("ALTER TABLE elsewhere RENAME TO library_memoembedding")


def test_the_command_reports_what_waits(drain, caplog, monkeypatch):
    # The longest wait, because the shortest would let the same drain try again.
    monkeypatch.setattr("embedsync.part.jitter", lambda longest: longest)
    Book.objects.bulk_create([Book(title="good"), Book(title="FAIL")])
    call_command("embed_worker", "--drain", verbosity=0)
    assert "1 row to wait for a later attempt or another worker, 0 rows parked" in caplog.text


def test_an_embedder_is_not_changed_under_a_write_of_the_former(drain):
    """Whose vectors nobody sees yet, and which would be taken for the new one's."""
    drain()
    locked = pytest.raises(OperationalError, match="lock timeout")
    with uncommitted("LOCK TABLE embedsync_ledger IN ROW EXCLUSIVE MODE"), locked:
        adopt_another()
    adopt_another()


def adopt_another():
    with worker_transaction("default") as cursor:
        state.adopt(cursor, BookEmbedding, "another")
