"""What the tests of the database's checks share."""

import re

from embedsync.capture import SyncTrigger
from embedsync.checks import databases
from tests.books import execute


def found(alias="default"):
    """What the checks find in the database; every message has a cure."""
    messages = databases.check_databases(databases=[alias])
    assert all(message.hint for message in messages)
    return messages


def ids():
    return [message.id.removeprefix("embedsync.") for message in found()]


def run_hint(message):
    """Run the SQL that a message advises."""
    for sql in re.findall(r"(?:ALTER TABLE|DROP TRIGGER) [^;]+;", message.hint):
        execute(sql)


def constraint_of(sidecar):
    [found] = [c for c in sidecar._meta.constraints if isinstance(c, SyncTrigger)]
    return found
