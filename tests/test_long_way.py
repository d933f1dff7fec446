"""The long way round: random statements beside workers, which are struck while they hold rows."""

import os
import random
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedsync.models import Ledger
from tests.application import connect, is_settled
from tests.books import execute
from tests.library.models import Book, Parcel
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 15
FAULTS = ["kill", "stop", "cut", "trouble", None]
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
            ("UPDATE library_book SET year = year + 1 WHERE id < 20000", ()),
            ("UPDATE library_parcel SET label = NULL WHERE id = ANY(%s)", (parcels,)),
            (
                "UPDATE library_book AS b SET id = id + 10000 WHERE id = %s"
                " AND NOT EXISTS (SELECT FROM library_book WHERE id = b.id + 10000)",
                (keys[0],),
            ),
            (
                "UPDATE library_book AS b SET id = 5000 - id WHERE id BETWEEN 1 AND 4999"
                " AND NOT EXISTS (SELECT FROM library_book WHERE id = 5000 - b.id)",
                (),
            ),
            ("DELETE FROM library_book WHERE id = ANY(%s)", (keys[:8],)),
            ("DELETE FROM library_parcel WHERE id = ANY(%s)", (parcels[:8],)),
            ("TRUNCATE library_book", ()) if chance.random() < 0.15 else ("SELECT 1", ()),
        ]
    )


def write_at_random(chance, transactions):
    """Transactions of the application; of some all is rolled back, of others a part."""
    with connect() as application:
        for _ in range(transactions):
            application.execute("BEGIN")
            for _ in range(chance.randrange(1, 5)):
                taken_back = chance.random() < 0.2
                if taken_back:
                    application.execute("SAVEPOINT part")
                for sql, parameters in statements(chance):
                    application.execute(sql, parameters)
                if taken_back:
                    application.execute("ROLLBACK TO part")
            application.execute("ROLLBACK" if chance.random() < 0.2 else "COMMIT")
            # So that they come in between, and not all at once.
            time.sleep(chance.random() * 0.04)


class Fleet:
    """Worker processes, by the names of their connections."""

    def __init__(self, start, chance, trouble):
        self._start = start
        self._chance = chance
        self._trouble = trouble  # a file; as long as it is there no provider answers
        self.workers = {}
        for _ in range(2):
            self.add()

    def add(self):
        name = f"fleet {uuid.uuid4()}"
        # Many strikes must not park a row: what is looked for is a wrong vector.
        more = {"SHORT_LEASE_ATTEMPTS": "50", "DAWDLE": "0.001", "SCRIPTED_SLEEP": "0"}
        more |= {"DJANGO_SETTINGS_MODULE": "tests.short_lease", "PGAPPNAME": name}
        more |= {"TROUBLE": str(self._trouble)}
        concurrency = str(self._chance.choice([1, 1, 3]))
        self.workers[name] = self._start("--concurrency", concurrency, steps=True, **more)

    def strike(self, fault):
        """Do it to a worker that has rows in hand; returns what ends it."""
        name = self._holder()
        worker = self.workers[name]
        if fault == "kill":
            worker.send(signal.SIGKILL)
            del self.workers[name]
            self.add()
        elif fault == "stop":
            worker.send(signal.SIGSTOP)
            self._write()
            if self._chance.random() < 0.5:
                return lambda: worker.send(signal.SIGCONT)
            # It wakes while another has its rows in hand.
            leased = Ledger.objects.filter(token__isnull=False)
            until(lambda: leased.exclude(worker__contains=f":{worker.process.pid}:").exists())
            worker.send(signal.SIGCONT)
        elif fault == "cut":
            execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s",
                [name],
            )
        elif fault == "trouble":
            self._trouble.touch()
            told = Ledger.objects.filter(last_error__contains="out of order")
            until(lambda: (self._write(), told.exists())[1])
            self._trouble.unlink()
        return lambda: None

    def _holder(self):
        held = Ledger.objects.filter(token__isnull=False).order_by("source_pk")
        by_pid = {f":{worker.process.pid}:": name for name, worker in self.workers.items()}

        def look():
            found = held.values_list("worker", flat=True).first()
            return next((name for pid, name in by_pid.items() if found and pid in found), None)

        while True:
            self._write()
            # They may be done before anybody has looked.
            found = until(lambda: look() or (is_settled() and "nobody"), every=0.0005)
            if found != "nobody":
                return found

    def _write(self):
        """Rows that nobody else writes, because two that wrote them could wait in a circle."""
        execute(
            "INSERT INTO library_book (id, title, body, year, published)"
            " SELECT 20000 + n, %s || n, '', 2000, true FROM generate_series(1, 150) AS n"
            " ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            [f"{words(self._chance)} {self._chance.random()} "],
        )


def test_every_vector_is_that_of_its_row_now(worker_process, tmp_path):
    """Fault after fault, in short rounds, each with a comparison of all vectors at its end.

    ``EMBEDSYNC_TEST_SEED`` repeats what is written and where it strikes, though not the moment.
    """
    seed = int(os.environ.get("EMBEDSYNC_TEST_SEED", random.randrange(10**9)))
    print(f"EMBEDSYNC_TEST_SEED={seed}")
    chance = random.Random(seed)
    fleet = Fleet(worker_process, chance, tmp_path / "trouble")
    with ThreadPoolExecutor(1) as pool:
        for round_ in range(ROUNDS):
            fault = chance.choice(FAULTS)
            print(f"round {round_}: {fault}")
            writing = pool.submit(write_at_random, random.Random(seed + round_), 20)
            # Where it is not over yet, a worker is stopped in what follows.
            over = fleet.strike(fault) if fault else lambda: None
            writing.result()
            until(is_settled, seconds=60)
            assert_in_step(Book.embedding.model, Parcel.embedding.model)
            over()
    for worker in fleet.workers.values():
        worker.send(signal.SIGTERM)
        status, output = worker.wait()
        assert status == 0, output
        assert "Traceback" not in output
        assert "deadlock" not in output
    # One that was stopped in the last round has had its chance to write too late.
    assert_in_step(Book.embedding.model, Parcel.embedding.model)
