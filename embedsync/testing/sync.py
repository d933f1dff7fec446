"""A worker's work within a test, and the assertion that nothing is out of step."""

from collections.abc import Iterator, Sequence

from django.db import DEFAULT_DB_ALIAS, models

from embedsync.declaration import EmbeddingModel, key_of
from embedsync.models import Inbox, Ledger
from embedsync.status import chosen
from embedsync.sweep import Pace, sweep
from embedsync.swept import KINDS, Swept
from embedsync.words import plural
from embedsync.worker import Worker

SHOWN = 10  # rows of a kind in a message


def embed_now(using: str = DEFAULT_DB_ALIAS) -> None:
    """Embed all that is owed, in this process, and in the test's transaction where there is one.

    Within a transaction no index is built: searches are exact. Raises ``AssertionError`` where
    something could not be embedded, and says why; ``LookupError`` where nothing is to be embedded
    in this database, ever.
    """
    sidecars_in_use([], using)
    worker = Worker(using)
    worker.run(drain=True)
    faults = [f"{key}: {error}" for key, error in sorted(worker.errors.items())]
    faults += ledger_faults(using, list(worker.served))
    if faults:
        raise AssertionError("\n".join(["embed_now() could not embed everything:", *faults]))


def assert_in_sync(*sources: type[models.Model], using: str = DEFAULT_DB_ALIAS) -> None:
    """Assert that each row has the vectors of its text as it is now, and that nothing is owed.

    Of these models, sources or sidecars; without any, of all in the database. Vectors are compared
    by their digest, which no embedding is made for. Raises ``AssertionError`` with what is out of
    step, and ``LookupError`` where a model, or all, have no embedding in this database.
    """
    faults: list[str] = []
    for sidecar in sidecars_in_use(sources, using):
        swept = sweep(sidecar, using, restart=True, pace=Pace(rate=0))
        faults += sweep_faults(swept)
        faults += inbox_faults(using, sidecar)
        faults += ledger_faults(using, [key_of(sidecar)])
    if faults:
        raise AssertionError(
            "\n".join(["Not in sync. Is an embed_now() missing after the last change?", *faults])
        )


def sidecars_in_use(
    sources: Sequence[type[models.Model]], using: str
) -> list[type[EmbeddingModel]]:
    """The sidecars of these models, or all. Raises ``LookupError`` where there are none."""
    if found := chosen([model._meta.label for model in sources], using):
        return found
    raise LookupError(f"No model has an embedding in database {using!r}.")


def sweep_faults(swept: Swept) -> Iterator[str]:
    """What the comparison of a sidecar has found, a line for each kind."""
    if swept.error:
        yield f"{swept.sidecar}: {swept.error}"
    for kind in KINDS:
        if count := getattr(swept, kind):
            yield f"{swept.sidecar}: {count} {kind} (keys: {listed(swept.examples[kind], count)})"


def inbox_faults(using: str, sidecar: type[EmbeddingModel]) -> Iterator[str]:
    """A line for the changes that no worker has seen yet."""
    if count := Inbox.objects.using(using).filter(sidecar=key_of(sidecar)).count():
        yield f"{sidecar._meta.label}: {plural(count, 'change')} that no worker has seen"


def ledger_faults(using: str, keys: Sequence[str]) -> list[str]:
    """A line for each row that waits for another attempt, or for somebody to see to it."""
    rows = Ledger.objects.using(using).filter(sidecar__in=keys).order_by("sidecar", "source_pk")
    lines = [
        f"{row.sidecar} {row.source_pk} {'is parked' if row.run_at is None else 'waits'},"
        f" {row.attempts} attempts so far: {row.last_error or 'no error'}"
        for row in rows[:SHOWN]
    ]
    left = rows.count() - len(lines)
    return [*lines, f"and {plural(left)} more"] if left > 0 else lines


def listed(keys: Sequence[str], count: int) -> str:
    shown = ", ".join(keys[:SHOWN])
    return shown if count <= len(keys) else f"{shown}, ..."
