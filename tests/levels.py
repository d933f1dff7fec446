"""What the tests of the kinds of triggers share: ``capture="statement"``, "row" and "always"."""

from contextlib import contextmanager
from dataclasses import replace

from embedsync.declaration import relation_of
from embedsync.models import Inbox
from embedsync.triggers import renew_triggers
from tests.hints import constraint_of
from tests.workers import until


@contextmanager
def captured(level, *sidecars):
    """Sidecars that are declared with ``capture=level``, and migrated so; as before afterwards."""
    before = [relation_of(sidecar).declaration for sidecar in sidecars]
    declare(dict.fromkeys(sidecars, level))
    try:
        yield
    finally:
        declare({sidecar: was.capture for sidecar, was in zip(sidecars, before, strict=True)})


def declare(levels):
    for sidecar, level in levels.items():
        relation = relation_of(sidecar)
        relation.declaration = replace(relation.declaration, capture=level)
        constraint_of(sidecar).level = level
    renew_triggers(using="default")


def events(key):
    """The keys of one sidecar's events, each once, sorted; a truncation is ``None``. They go."""
    found = Inbox.objects.filter(sidecar=key).values_list("source_pk", flat=True)
    keys = sorted(set(found), key=str)
    Inbox.objects.all().delete()
    return keys


def settle(project, code):
    """Drain until the comparison is made, too, that a failed trigger has asked for."""
    waiting = (
        "SELECT 1 FROM embedsync_sidecar, embedsync_missed WHERE backfilled_at IS NULL"
        " OR missed <> CASE WHEN is_called THEN last_value ELSE 0 END"
    )
    until(lambda: code.drain() or not project.sql(waiting))
