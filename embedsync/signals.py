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
    from embedsync.lane import Settled

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
    more = {"sidecar": sidecar, "using": using}
    if settled.embedded and embeddings_updated.has_listeners(source):
        pks = [key_value(sidecar, pk) for pk in settled.embedded]
        send(embeddings_updated, source, **more, pks=pks)
    if embedding_failed.has_listeners(source):
        for pk, (error, wait) in settled.failed.items():
            attempts, parked = settled.part.claim.attempts[pk], wait is None
            found = {"pk": key_value(sidecar, pk), "error": error, "attempts": attempts}
            send(embedding_failed, source, **more, **found, parked=parked)


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
