"""Fault 11: a failover to a standby that has lost the end of the write-ahead log."""

import shutil
from io import StringIO

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection

from embedsync.models import Inbox, Ledger
from embedsync.queue import Queue
from embedsync.worker import Worker
from example_project.postgres import Cluster
from tests.books import KEY, BookEmbedding, make_due
from tests.embedded import VERSION
from tests.library.models import Book
from tests.sync import assert_in_step
from tests.test_faults_server import cluster, connected, transactional_db  # noqa: F401
from tests.workers import until, work


@pytest.fixture
def standby(cluster):  # noqa: F811
    """It follows the primary."""
    data, programs = cluster.data.with_name("standby"), cluster._programs
    host, port = cluster.socket()
    data.mkdir(0o700)
    programs.give(data)
    made = programs.run(
        *("pg_basebackup", "-D", str(data), "-R", "-c", "fast"),
        *("-h", host, "-p", port, "-U", "postgres"),
    )
    assert made.returncode == 0, made
    standby = Cluster(data, VERSION)
    standby.start()
    yield standby
    standby.stop()
    shutil.rmtree(data)


def has_followed(primary, standby):
    with psycopg.connect(primary.url()) as here, psycopg.connect(standby.url()) as there:
        (written,) = here.execute("SELECT pg_current_wal_lsn()").fetchone()
        [[followed]] = there.execute(
            "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]
        ).fetchall()
    return followed


def promote(standby):
    standby.start()
    with psycopg.connect(standby.url(), autocommit=True) as server:
        server.execute("SELECT pg_promote()")


def test_what_a_promoted_standby_has_of_rows_it_owes(
    cluster,  # noqa: F811
    drain,
    standby,
    django_db_blocker,
):
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 41)])
    drain()
    # Of the next some are events, some leased, and one is being changed while it is.
    Book.objects.filter(id__lte=10).update(title="changed")
    Queue("default", "dead").fold([KEY], 10)
    Book.objects.filter(id=1).update(title="changed again")
    Book.objects.filter(id=40).delete()
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(41, 61)])
    until(lambda: has_followed(cluster, standby))
    standby.stop()
    # What comes now is lost with the primary, and a worker has read events that will come anew.
    worker = Worker()
    worker.start()
    make_due()
    work(worker)
    assert_in_step(BookEmbedding)
    Book.objects.bulk_create([Book(id=n, title=f"Lost {n}") for n in range(61, 91)])
    work(worker)
    name = connection.settings_dict["NAME"]
    connection.close()
    cluster.stop()
    promote(standby)
    try:
        with connected(standby, name, django_db_blocker):
            assert Book.objects.count() == 59
            assert BookEmbedding.objects.count() == 40
            assert (Inbox.objects.count(), Ledger.objects.count()) == (22, 10)
            Book.objects.create(id=61, title="in its place")
            make_due()
            worker.run(drain=True)
            assert_in_step(BookEmbedding)
            call_command("embed_sweep", stdout=StringIO())  # exits 1 where anything differs
    finally:
        cluster.start()
