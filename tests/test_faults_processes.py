"""Faults that older tests show inside one process: once more, with workers as processes."""

import pytest

from embedsync.models import Inbox, Ledger
from tests.application import Application, begin, is_settled
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.library.models import Book, Parcel
from tests.provider import running_provider
from tests.sync import assert_in_step, expected_vectors, stored_vectors
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = (
    "INSERT INTO library_book (id, title, body, year, published)"
    " SELECT n, 'Book ' || n, '', 2000, true FROM generate_series(1, %s) AS n"
)
SHORT = {"DJANGO_SETTINGS_MODULE": "tests.short_lease"}
MEGABYTE = 1_000_000


@pytest.fixture
def slow_rows(transactional_db):
    """Each vector takes longer to write than a worker's statement may take."""
    execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON library_bookembedding"
        " FOR EACH ROW EXECUTE FUNCTION slow();"
    )
    yield
    execute("DROP FUNCTION IF EXISTS slow() CASCADE")


def test_a_row_that_takes_too_long_whatever_is_done_is_not_parked(drain, worker_process, slow_rows):
    """Fault 14: batches are halved down to a single row, and that waits for better days."""
    drain()
    more = {"PGOPTIONS": "-c statement_timeout=200ms", "SHORT_PROBE": "0.3", **SHORT}
    more["SHORT_LEASE"] = "30"
    with Application(writers=1) as application:
        worker = begin(worker_process, **more)
        application.execute(INSERT, [4])
        for _ in range(6):  # twice as often as a row is tried
            worker.says(f"{KEY}: 1 rows took too long")
        returned = Ledger.objects.filter(token=None)
        assert not returned.exclude(attempts=0, run_at__isnull=False).exists()
        execute("DROP FUNCTION slow() CASCADE")
        application.work(5)
    until(lambda: make_due() or is_settled(), every=0.5)
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


def test_rows_without_a_text_have_no_vector(drain, worker_process):
    """Fault 24: nor an error; one that loses its text loses its vector."""
    drain()
    worker = begin(worker_process)
    with Application(writers=1) as application:
        application.work(5)
        Book.objects.create(title="", body=" \n\t ")
        Parcel.objects.bulk_create([Parcel(label=label) for label in (None, "", " ", "text")])
        until(Parcel.embedding.model.objects.exists)
        Parcel.objects.filter(label="text").update(label="\u00a0")
        application.work(5)
    until(is_settled)
    assert not Parcel.embedding.model.objects.exists()
    assert_in_step(BookEmbedding)
    assert worker.process.poll() is None


def test_what_nobody_serves_holds_up_nobody_and_stays_owed(drain, worker_process):
    """Fault 58: of a sidecar that this worker does not know, and of one that it leaves alone."""
    drain()
    Inbox.objects.bulk_create(
        [
            Inbox(sidecar=sidecar, kind="row", source_pk=str(n))
            for n in range(300)
            for sidecar in ("gone.elsewhere", "library.memoembedding")
        ]
    )
    others = {"sidecar__in": ["gone.elsewhere", "library.memoembedding"]}
    worker = worker_process("--only", "library.Book")
    worker.says("serving")
    with Application(writers=2) as application:
        application.work(20)
    # In this order, in which they go.
    queue = (Inbox, Ledger)
    until(lambda: not any(owed.objects.filter(sidecar=KEY).exists() for owed in queue))
    owed = Ledger.objects.filter(**others, token=None, attempts=0, run_at__isnull=False)
    assert owed.count() + Inbox.objects.filter(**others).count() == 600
    assert stored_vectors(BookEmbedding) == expected_vectors(BookEmbedding)


def test_texts_of_ten_megabytes_are_embedded_beside_others(drain, worker_process):
    """Fault 25: a few at a time, as many bytes as a worker may read, and one row at least."""
    drain()
    with running_provider() as provider:
        settings = {"DJANGO_SETTINGS_MODULE": "tests.provider_settings"}
        worker = begin(worker_process, PROVIDER_OF_TESTS=provider.url, **settings)
        with Application(writers=1) as application:
            for number in range(6):
                body = "\N{LATIN SMALL LETTER E WITH ACUTE}" * (5 * MEGABYTE)
                Book.objects.create(title=f"Huge {number}", body=body)
                application.work(3)
        until(is_settled, seconds=120)
        sizes = [sum(len(text.encode()) for text in call) for call in provider.calls]
    assert sum(sizes) > 60 * MEGABYTE
    assert max(sizes) < 11 * MEGABYTE
    assert worker.process.poll() is None
    assert_in_step(BookEmbedding)


def test_an_old_worker_with_a_claim_in_hand_writes_nothing_of_it(drain, stepping):
    """Fault 30: a newer one has adopted the sidecar meanwhile."""
    drain()
    newer = {"DJANGO_SETTINGS_MODULE": "tests.newer_settings", "HOLD_AT": "mid_embed"}
    old = stepping("--only", "library.Book", HOLD_AT="before_complete")
    with Application() as application:
        application.execute(INSERT, [3])
        old.says("holds before_complete")
        new = stepping("--only", "library.Book", **newer)
        old.goes_on()
        status, output = old.wait()
        assert status == 1, output
        assert "A worker with another declaration" in output
        new.says("holds mid_embed")
        assert not BookEmbedding.objects.exists()
        new.goes_on()
        until(is_settled)
    assert_in_step(BookEmbedding)
