"""The tables of embedsync, and the names a project imports.

Who writes to inbox and ledger, and why that is right, stands in ``queue.py``.
"""

from django.db import models
from django.db.models.functions import Now

from embedsync.chunks import Chunks
from embedsync.declaration import Embedding, EmbeddingModel
from embedsync.expressions import TextEmbedding
from embedsync.freshness import Stale
from embedsync.index import HNSW, IVFFlat
from embedsync.managers import EmbeddedModel, EmbeddingManager, EmbeddingQuerySet
from embedsync.source import EmbeddingSource, MigrationDependency

__all__ = [
    "HNSW",
    "Chunks",
    "EmbeddedModel",
    "EmbedderMinute",
    "Embedding",
    "EmbeddingManager",
    "EmbeddingModel",
    "EmbeddingQuerySet",
    "EmbeddingSource",
    "IVFFlat",
    "Inbox",
    "Ledger",
    "LedgerRow",
    "MigrationDependency",
    "Minute",
    "SidecarState",
    "Stale",
    "TextEmbedding",
    "WorkerState",
]


class Inbox(models.Model):
    """An event: a row changed. The application's transactions only ever insert here.

    ``source_pk`` is the key of a source's row; or of a related row, if ``hop`` says which rows of
    the source it belongs to: those with ``filter(**{hop: source_pk})``. A worker that finds more of
    them than it wants at once leaves in ``reached`` how far it has come.
    """

    class Kind(models.TextChoices):
        ROW = "row"
        HOP = "hop"
        TRUNCATE = "truncate"

    seq = models.BigAutoField(primary_key=True)
    sidecar = models.TextField()
    kind = models.TextField(choices=Kind.choices)
    hop = models.TextField(null=True)  # noqa: DJ001  (NULL costs a row nothing)
    source_pk = models.TextField(null=True)  # noqa: DJ001  (TRUNCATE names no row)
    reached = models.TextField(null=True)  # noqa: DJ001  (as hop)
    queued_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "embedsync_inbox"
        indexes = [
            # Tells a worker at once whether there is any of the rare kinds for it.
            models.Index(
                fields=["sidecar", "seq"],
                condition=~models.Q(kind="row"),
                name="embedsync_inbox_not_row",
            )
        ]

    def __str__(self) -> str:
        return f"{self.sidecar} {self.source_pk or self.kind}"


class Ledger(models.Model):
    """Work owed for one row: waiting, leased to a worker, or parked.

    ``run_at`` is when it is due; under a lease (``token``) when the lease ends; NULL when parked.
    ``dirty`` says that the row changed again after the lease began.
    """

    pk = models.CompositePrimaryKey("sidecar", "source_pk")
    sidecar = models.TextField()
    source_pk = models.TextField(db_collation="C")
    token = models.UUIDField(null=True)
    dirty = models.BooleanField(db_default=False)
    run_at = models.DateTimeField(null=True)
    attempts = models.IntegerField(db_default=0)
    queued_at = models.DateTimeField()
    worker = models.TextField(db_default="")
    last_error = models.TextField(db_default="")

    class Meta:
        db_table = "embedsync_ledger"
        indexes = [
            models.Index(
                fields=["sidecar", "run_at"],
                condition=models.Q(run_at__isnull=False),
                name="embedsync_ledger_due",
            )
        ]

    def __str__(self) -> str:
        return f"{self.sidecar} {self.source_pk}"


class LedgerRow(models.Model):
    """A ``Ledger`` row with a key of one column, which Django's admin wants: a view."""

    key = models.TextField(primary_key=True)
    sidecar = models.TextField()
    source_pk = models.TextField("row")
    token = models.UUIDField(null=True)
    dirty = models.BooleanField("changed since")
    run_at = models.DateTimeField("due", null=True)
    attempts = models.IntegerField()
    queued_at = models.DateTimeField("queued")
    worker = models.TextField()
    last_error = models.TextField("error")

    class Meta:
        managed = False
        db_table = "embedsync_ledger_row"

    def __str__(self) -> str:
        return f"{self.sidecar} {self.source_pk}"


class WorkerState(models.Model):
    """A worker, as it said of itself at ``seen_at``: what it is doing, and rows settled so far.

    When it was last heard of is in its session, too: see ``heard.sql``.

    ``serves`` has the fingerprint of each sidecar that it serves, ``errors`` why it does not serve
    others, or is refused by their provider. It says so when that changes, and now and then; one
    that has ended in order is not here.
    """

    name = models.TextField(primary_key=True)
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    doing = models.TextField(db_default="")
    settled = models.BigIntegerField(db_default=0)
    serves = models.JSONField(default=dict)
    errors = models.JSONField(default=dict)

    class Meta:
        db_table = "embedsync_worker"

    def __str__(self) -> str:
        return self.name


class Minute(models.Model):
    """What workers did for a sidecar in a minute, and the most rows that waited in it.

    ``embedded`` got a new vector, ``unchanged`` had it already or have no text, ``failed`` are
    attempts. A minute in which nothing was done is not here; workers keep two days of them.
    """

    pk = models.CompositePrimaryKey("sidecar", "minute")
    sidecar = models.TextField()
    minute = models.DateTimeField()
    embedded = models.BigIntegerField(db_default=0)
    unchanged = models.BigIntegerField(db_default=0)
    failed = models.BigIntegerField(db_default=0)
    waiting = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "embedsync_minute"

    def __str__(self) -> str:
        return f"{self.sidecar} {self.minute:%Y-%m-%d %H:%M}"


class EmbedderMinute(models.Model):
    """What all workers asked of an embedder in a minute: calls, and the tokens these took.

    ``granted_rows`` and ``granted_tokens`` (about) are what they were allowed of its budget, if it
    has one. Workers keep two days of them.
    """

    pk = models.CompositePrimaryKey("embedder", "minute")
    embedder = models.TextField()
    minute = models.DateTimeField()
    calls = models.BigIntegerField(db_default=0)
    tokens = models.BigIntegerField(db_default=0)
    granted_rows = models.BigIntegerField(db_default=0)
    granted_tokens = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "embedsync_embedder_minute"

    def __str__(self) -> str:
        return f"{self.embedder} {self.minute:%Y-%m-%d %H:%M}"


class SidecarState(models.Model):
    """How far one sidecar is: what filled it, and how far its fill has come.

    ``fingerprint`` is the declaration that workers serve, ``former`` those that they served before,
    ``served_at`` when a scheduler's worker last did, ``embedder`` what made the vectors,
    ``refused`` why the last worker could not embed any row when it ended.
    ``backfill_after`` is the last key of the fill in hand. ``missed`` is the value of the sequence
    that counts failures of the triggers, as of the last fill; ``missed_seen`` the one that the next
    fill is for, which waits until the transactions before ``missed_until`` have ended.
    ``index_until`` is how long one worker is left alone to begin building the index;
    ``index_built`` is what the server had counted of the table when it had been built (wear.py).
    ``swept_after`` is the last key of the sweep in hand, ``swept_found`` what it, or else the last
    one, has found; ``swept_at`` is when the last one came to its end.
    """

    key = models.TextField(primary_key=True)
    fingerprint = models.TextField(db_default="")
    embedder = models.TextField(db_default="")
    former = models.JSONField(default=list, db_default=[])
    served_at = models.DateTimeField(null=True)
    refused = models.TextField(db_default="")
    backfill_after = models.TextField(null=True)  # noqa: DJ001  (NULL: from the start)
    backfilled_at = models.DateTimeField(null=True)
    missed = models.BigIntegerField(db_default=0)
    missed_seen = models.BigIntegerField(db_default=0)
    missed_until = models.BigIntegerField(db_default=0)
    index_until = models.DateTimeField(null=True)
    index_built = models.JSONField(null=True)
    swept_after = models.TextField(null=True)  # noqa: DJ001  (NULL: from the start)
    swept_found = models.JSONField(null=True)
    swept_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "embedsync_sidecar"

    def __str__(self) -> str:
        return self.key
