"""``embed_worker`` that can be held at a step, counted, mutilated, or given a wrong clock.

A test starts it as ``python -m tests.steps`` and acts at an exact place, without sleeps. The
environment says what is wanted:

* ``HOLD_AT``: steps, with commas between them. When it comes to one for the first time it says
  "holds <step>" and waits for a line on its standard input.
* ``CALLS``: a file that gets a line for each text that the embedder is asked for.
* ``TROUBLE``: a file; as long as it is there the embedder's provider does not answer.
* ``DAWDLE``: how many seconds the embedder takes for a text.
* ``MUTANT``: one of ``MUTANTS``.
* ``HUNG_SECONDS``: after how many seconds a call is given up.
* ``CLOCK_OFF``: by how many seconds the clock of its host is wrong.
"""

import contextlib
import datetime
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

STEPS = [
    "mid_fold",
    "after_fold",
    "after_read",
    "mid_embed",
    "before_complete",
    "mid_complete",
    "after_commit",
]

# What is taken out of the mechanism: statement, text, what stands there instead.
MUTANTS = {
    "completion ignores dirty": [
        ("mine", "SELECT ctid, dirty FROM", "SELECT ctid, false AS dirty FROM"),
    ],
    "completion ignores the token": [
        ("mine", "AND token = %(token)s", "AND %(token)s::uuid IS NOT NULL"),
    ],
    "a fold steals live leases": [
        ("claim", "l.run_at > statement_timestamp()", "false"),
    ],
    "a fold never marks dirty": [
        (
            "claim",
            "dirty = l.token IS NOT NULL AND l.run_at > statement_timestamp()",
            "dirty = false",
        ),
    ],
    "run-out leases are never reclaimed": [
        ("due", "AND run_at <= statement_timestamp()", "AND token IS NULL AND run_at <= now()"),
    ],
}

_to_hold_at = set(filter(None, os.environ.get("HOLD_AT", "").split(",")))
_of_thread = threading.local()

assert _to_hold_at <= set(STEPS), f"HOLD_AT has to be of {STEPS}"


def hold(step):
    if step in _to_hold_at:
        _to_hold_at.remove(step)
        print(f"holds {step}", flush=True)
        sys.stdin.readline()


def hook():
    """Wrap the steps of this process's workers."""
    from embedsync import pipeline
    from embedsync.queue import Queue

    fold, complete, transaction = Queue.fold, Queue.complete, Queue.transaction
    read = pipeline.read

    def held_fold(queue, *arguments, **more):
        _of_thread.move = "mid_fold"
        try:
            picked, claims = fold(queue, *arguments, **more)
        finally:
            _of_thread.move = None
        if claims:
            hold("after_fold")
        return picked, claims

    def held_read(*arguments, **more):
        found = read(*arguments, **more)
        hold("after_read")
        return found

    def held_complete(queue, *arguments, **more):
        hold("before_complete")
        _of_thread.move = "mid_complete"
        try:
            done = complete(queue, *arguments, **more)
        finally:
            _of_thread.move = None
        hold("after_commit")
        return done

    @contextlib.contextmanager
    def held_transaction(queue, *arguments):
        with transaction(queue, *arguments) as cursor:
            yield cursor
            move = getattr(_of_thread, "move", None)
            # A fold of nothing is of no interest.
            if move == "mid_complete" or (move and leases(cursor)):
                hold(move)

    Queue.fold, Queue.complete = held_fold, held_complete
    Queue.transaction, pipeline.read = held_transaction, held_read


def leases(cursor):
    cursor.execute("SELECT EXISTS (SELECT FROM embedsync_ledger WHERE token IS NOT NULL)")
    return cursor.fetchone()[0]


def count_calls(path, replace=setattr):
    """Note each text that the scripted embedder of this process is asked for."""
    from embedsync.embedders import UnavailableError
    from tests.embedders import ScriptedEmbedder

    embed = ScriptedEmbedder.embed_documents

    @functools.wraps(embed)
    def counted(embedder, texts):
        with Path(path).open("a") as file:
            file.write("".join(f"{json.dumps(text)}\n" for text in texts))
        hold("mid_embed")
        trouble = os.environ.get("TROUBLE")
        if trouble and Path(trouble).exists():
            raise UnavailableError("out of order")
        time.sleep(len(texts) * float(os.environ.get("DAWDLE", "0")))
        return embed(embedder, texts)

    replace(ScriptedEmbedder, "embed_documents", counted)


def calls_in(path):
    """The texts that were asked for, one call after the other."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mutate(name, replace=setattr):
    """Take a part of the mechanism out of the SQL of this process."""
    import embedsync.sql

    original = embedsync.sql.statement
    changes = MUTANTS[name]

    def statement(asked):
        text = original(asked)
        for changed, old, new in changes:
            if changed == asked:
                assert old in text, f"{asked}.sql has changed: {old!r} is not in it"
                text = text.replace(old, new)
        return text

    for module in list(sys.modules.values()):
        if getattr(module, "statement", None) is original:
            replace(module, "statement", statement)


def shift_clock(seconds):
    """Let Python's clock be wrong, before anybody has imported it. The monotonic one stays."""
    off = datetime.timedelta(seconds=seconds)
    real, real_time, real_time_ns = datetime.datetime, time.time, time.time_ns

    class OfAnyDatetime(type):
        def __instancecheck__(cls, other):
            return isinstance(other, real)

    class Shifted(real, metaclass=OfAnyDatetime):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + off

    datetime.datetime = Shifted
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + seconds * 10**9


def main():
    wanted = os.environ.get
    if wanted("CLOCK_OFF"):
        shift_clock(int(wanted("CLOCK_OFF")))
    import django
    from django.core.management import execute_from_command_line

    django.setup()
    import embedsync.worker  # so that all that is to be wrapped is there

    if wanted("HUNG_SECONDS"):
        embedsync.pipeline.HUNG_SECONDS = float(wanted("HUNG_SECONDS"))
    if wanted("MUTANT"):
        mutate(wanted("MUTANT"))
    count_calls(wanted("CALLS", os.devnull))
    hook()
    if wanted("CLOCK_OFF"):
        print(f"its clock says {django.utils.timezone.now():%Y-%m-%d}", flush=True)
    execute_from_command_line(["steps", "embed_worker", *sys.argv[1:]])


if __name__ == "__main__":
    main()
