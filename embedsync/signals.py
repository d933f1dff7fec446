"""What a worker tells the project it runs in, after the transaction that made it so.

Both are sent in the worker's process, with the source model as ``sender``. A receiver that raises
is logged and harms nothing; one that takes long holds up its worker.
"""

from django.dispatch import Signal

# Arguments: sidecar (model), using (database alias), pks (keys of rows that got a new vector, as
# the primary key's Python values).
embeddings_updated = Signal()

# Arguments: sidecar, using, pk (of the row that failed), error (one line), attempts (so far),
# parked (whether it is given up until it changes or is retried).
embedding_failed = Signal()
