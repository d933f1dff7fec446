"""What a worker tells the project it runs in, after the transaction that made it so.

Both are sent in the worker's process, with the source model as ``sender``. A receiver that raises
is logged and harms nothing; one that takes long holds up its worker.
"""

import json
import logging
from typing import TYPE_CHECKING, Any

from django.db.models import Model
from django.dispatch import Signal

from embedsync.declaration import EmbeddingModel, key_fields, source_of

if TYPE_CHECKING:
    from embedsync.part import Settled

logger = logging.getLogger("embedsync")

# Arguments: sidecar (model), using (database alias), pks (keys of rows that got a new vector, as
# the primary key's Python values).
embeddings_updated = Signal()

# Arguments: sidecar, using, pk (of the row that failed), error (one line), attempts (so far),
# parked (whether it is given up until it changes or is retried).
embedding_failed = Signal()


def tell(sidecar: type[EmbeddingModel], using: str, settled: "Settled") -> None:
    """Send what became of some rows to whoever listens."""
    source = source_of(sidecar)
    if settled.embedded and embeddings_updated.has_listeners(source):
        pks = [key_value(sidecar, pk) for pk in settled.embedded]
        send(embeddings_updated, source, sidecar=sidecar, using=using, pks=pks)
    for pk, (error, wait) in settled.failed.items():
        attempts = settled.part.claim.attempts[pk]
        tell_failed(sidecar, using, pk, error, attempts, parked=wait is None)


def tell_failed(
    sidecar: type[EmbeddingModel],
    using: str,
    pk: str,
    error: str,
    attempts: int,
    *,
    parked: bool = True,
) -> None:
    """Send that a row has failed to whoever listens."""
    source = source_of(sidecar)
    if embedding_failed.has_listeners(source):
        more = {"error": error, "attempts": attempts, "parked": parked}
        where = {"sidecar": sidecar, "using": using, "pk": key_value(sidecar, pk)}
        send(embedding_failed, source, **where, **more)


def send(signal: Signal, source: type[Model], **arguments: Any) -> None:
    for receiver, answer in signal.send_robust(source, **arguments):
        if isinstance(answer, Exception):
            logger.error("%r failed: %s: %s", receiver, type(answer).__name__, answer)


def key_value(sidecar: type[EmbeddingModel], pk: str) -> Any:
    """A key as the source's ``pk`` is in Python, from the text that it is in the queue."""
    fields = [theirs for _, theirs in key_fields(sidecar)]
    if len(fields) == 1:
        return fields[0].to_python(pk)
    return tuple(field.to_python(part) for field, part in zip(fields, json.loads(pk), strict=True))
