"""``manage.py embed_sweep``: what it prints, how it exits, how it is stopped."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction

from embedsync.declaration import sidecars
from embedsync.models import SidecarState, WorkerState
from example_project.postgres import PROJECT
from tests.books import KEY, BookEmbedding, execute, renamed
from tests.library.models import Book, Ticket
from tests.sweeping import SIDECARS, behind_the_triggers, events, is_waited_for, write_library
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def library(drain):
    drain()
    rows = write_library()
    drain()
    return rows


@pytest.fixture
def drifted(library):
    """Seven books, all changed behind the triggers' back."""
    with behind_the_triggers():
        Book.objects.update(title="changed")


@pytest.fixture
def start(environment):
    """Start sweeps as processes of their own; whatever still runs is killed at the end."""
    started = []

    def start(*arguments, **more):
        process = subprocess.Popen(
            [sys.executable, "manage.py", "embed_sweep", *arguments],
            cwd=PROJECT,
            env=environment,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **more},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def run(*arguments, **options):
    """The exit status of a sweep in this process, and what it printed."""
    output, errors, status = StringIO(), StringIO(), 0
    try:
        call_command("embed_sweep", *arguments, stdout=output, stderr=errors, **options)
    except SystemExit as end:
        status = end.code
    return status, output.getvalue() + errors.getvalue()


def lines(output, label):
    """What is said of one sidecar, without the time it took."""
    _, _, rest = output.partition(f"{label}: ")
    first, *others = rest.splitlines()
    said = [first.partition(" in ")[0] + first.partition(" s:")[2]]
    for line in others:
        if not line.startswith(" "):
            break
        said.append(line.strip())
    return said


def test_all_in_step(library):
    status, output = run()
    assert status == 0
    assert lines(output, "library.BookEmbedding") == [
        "7 rows compared 0 missing, 0 stale, 0 orphaned, 0 waiting, 0 parked"
    ]
    assert output.count("7 rows compared") == len(SIDECARS)
    assert output.count(" 0 rows compared") == len(sidecars()) - len(SIDECARS)


def test_drift_is_reported_with_keys_and_the_cure(library):
    with behind_the_triggers():
        Book.objects.filter(id=1).delete()
        Book.objects.filter(id=2).update(title="a secret")
        Book.objects.bulk_create([Book(id=n, title="a secret") for n in range(100, 112)])
    Book.objects.filter(id=3).update(title="a secret")
    status, output = run("library.Book")
    assert status == 1
    assert lines(output, "library.BookEmbedding") == [
        "19 rows compared 12 missing, 1 stale, 1 orphaned, 1 waiting, 0 parked",
        f"missing: {', '.join(str(n) for n in range(100, 110))}, ...",
        "stale: 2",
        "orphaned: 1",
        "waiting: 3",
        "have them embedded anew with --repair",
    ]
    assert "secret" not in output
    assert [key for _, key in events()] == ["3"]


def test_a_repair_exits_well_when_all_has_been_enqueued(drifted, drain):
    status, output = run("--repair")
    assert status == 0
    assert lines(output, "library.BookEmbedding") == [
        "7 rows compared 0 missing, 7 stale, 0 orphaned, 0 waiting, 0 parked",
        "stale: 1, 2, 3, 4, 5, 6, 7",
        "7 enqueued; workers will see to them",
    ]
    drain()
    assert_in_step(BookEmbedding)
    assert run()[0] == 0


def test_it_tells_of_a_provider_that_refuses(drain):
    """Fault 20: rows that are owed are no drift, and nobody sees to them."""
    drain()
    refused = {KEY: "401: Incorrect API key"}
    WorkerState.objects.create(name="one", errors=refused)
    status, output = run("--json", verbosity=0)
    assert status == 1
    document, told = output.splitlines()
    assert json.loads(document)["errors"] == refused
    assert told == f"{KEY} is not embedded: 401: Incorrect API key"
    WorkerState.objects.all().delete()
    assert run()[0] == 0


def test_json(drifted):
    status, output = run("library.bookembedding", "library.Memo", "--json", verbosity=0)
    found = json.loads(output)
    assert status == 1
    assert (found["database"], found["ok"], found["finished"]) == ("default", False, True)
    assert (found["drift"], found["enqueued"], found["not_begun"]) == (7, 0, [])
    book, memo = sorted(found["sidecars"], key=lambda swept: swept["sidecar"])
    assert (book["sidecar"], book["source"]) == ("library.BookEmbedding", "library.Book")
    assert (book["compared"], book["stale"], book["ok"]) == (7, 7, False)
    assert book["examples"] == {"stale": ["1", "2", "3", "4", "5", "6", "7"]}
    assert (memo["sidecar"], memo["compared"], memo["ok"]) == ("library.MemoEmbedding", 7, True)


def test_silence(drifted):
    assert run(verbosity=0) == (1, "")
    assert run("--repair", verbosity=0) == (0, "")


def test_what_cannot_be_compared_is_said_and_the_others_go_on(drifted):
    SidecarState.objects.filter(key=KEY).update(fingerprint="newer")
    status, output = run("--repair")
    assert status == 1
    assert "library.BookEmbedding was not compared: Workers serve" in output
    assert output.count("7 rows compared") == len(SIDECARS) - 1


def test_a_source_that_is_gone(library):
    with renamed("library_memo"):
        status, output = run("library.Memo", "--repair")
        assert status == 1
        assert "its source library.Memo is gone; 7 vectors left" in output
        assert "--purge" in output
        status, output = run("library.Memo", "--purge")
        assert status == 0
        assert "7 vectors removed" in output


def test_a_key_that_cannot_be_printed_does_no_harm(library):
    Ticket.embedding.model.objects.all().delete()
    _, output = run("library.Ticket")
    assert r"""'it\'s "a" 50 % {key}\\\n'""" in output


def test_a_child_is_compared_with_its_parent(library):
    status, output = run("library.Thriller")
    assert status == 0
    assert output.startswith("library.NovelEmbedding")


def test_time_that_is_up(drifted):
    status, output = run("--max-seconds", "0")
    assert status == 0
    assert output.count("not begun, the time is up") == len(sidecars())


def test_a_database_that_fails_is_not_a_time_that_is_up(transactional_db, monkeypatch):
    def fails(*args, **options):
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr("embedsync.management.commands.embed_sweep.sweep_all", fails)
    output = StringIO()
    with pytest.raises(CommandError, match="Database 'default' failed: server closed"):
        call_command("embed_sweep", stdout=output)
    assert output.getvalue() == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["library.Nope"], "There is no model 'library.Nope': write app.Model"),
        (["library.Hall"], "library.Hall has no embedding in database 'default'"),
        (["--database", "nope"], "no database 'nope'"),
        (["--rate=-1"], "not a number from 0"),
        (["--rate=nan"], "not a number from 0"),
        (["--page", "0"], "not a whole number from 1"),
        (["--page", "ten"], "not a whole number from 1"),
    ],
)
def test_mistakes_are_named(library, arguments, complaint):
    with pytest.raises(CommandError, match=complaint):
        run(*arguments)


def test_a_database_that_fails_is_named_after_the_report(drifted, monkeypatch):
    def fail(*_):
        execute("SELECT pg_terminate_backend(pg_backend_pid())")
        execute("SELECT 1")  # where the first has still been answered

    monkeypatch.setattr("embedsync.sweep.read", fail)
    with pytest.raises(CommandError, match=r"'default' failed: .*\n.*goes on where"):
        run()
    connection.close()


def test_tables_that_are_missing_are_named(library):
    match = r'"embedsync_sidecar" does not exist\. Run make'
    with renamed("embedsync_sidecar"), pytest.raises(CommandError, match=match):
        run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_page_in_hand(drifted, start, number):
    process = start("library.Book", "--page", "1", "--rate", "2")
    until(lambda: SidecarState.objects.get(key=KEY).swept_after)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1, output  # there is drift
    assert "stopped before the end; the next sweep goes on there" in output
    reached = SidecarState.objects.get(key=KEY).swept_after
    _, output = run("library.Book")
    assert f"went on where an earlier sweep had stopped, after {reached} row" in output
    assert "7 rows compared" in output


def test_a_second_signal_ends_it_at_once(drifted, start):
    with transaction.atomic():
        SidecarState.objects.select_for_update().get(key=KEY)
        process = start("library.Book")
        until(is_waited_for)
        process.send_signal(signal.SIGTERM)
        until(lambda: (process.send_signal(signal.SIGTERM), process.poll())[1], every=0.3)
    assert process.returncode == 130


def test_a_sweep_that_was_killed_is_gone_on_with(drifted, start, drain):
    process = start("library.Book", "--page", "1", "--rate", "2", "--repair")
    until(lambda: SidecarState.objects.get(key=KEY).swept_after)
    process.kill()
    process.wait()
    status, output = run("library.Book", "--repair")
    assert status == 0
    assert "went on where" in output
    assert "7 enqueued" in output
    assert [key for _, key in events()] == ["1", "2", "3", "4", "5", "6", "7"]
    drain()
    assert_in_step(BookEmbedding)


def test_a_bar_on_a_terminal(drifted, start):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    execute("ANALYZE library_book")
    process = start("library.Book", stderr=follower)
    output, _ = process.communicate(timeout=60)
    os.close(follower)
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    assert "sweeping" in shown
    assert "7/7" in shown
    assert "rows compared" in output


def test_no_model_is_loaded(environment):
    """What makes the vectors is known without it."""
    code = (
        "import sys, django; django.setup()\n"
        "from django.core.management import call_command\n"
        "from example_project.films.models import Movie\n"
        "from embedsync.tasks import sweep\n"
        "Movie.objects.create(title='A', year=2000)\n"
        "call_command('embed_sweep')\n"
        "assert sweep()['ok']\n"
        "print(*{'torch', 'sentence_transformers', 'django_q'} & sys.modules.keys())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PROJECT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "films.MovieEmbedding: 1 row compared" in done.stdout
    assert done.stdout.splitlines()[-1] == ""
