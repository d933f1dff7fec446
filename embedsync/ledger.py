"""What people do to rows of the ledger: try them again, forget them."""

from collections.abc import Sequence

from embedsync.database import worker_transaction
from embedsync.sql import statement


def retry(
    using: str, keys: Sequence[str], pks: Sequence[str] | None = None, error: str | None = None
) -> int:
    """Make parked rows of sidecars due: those of ``pks``, those whose error has ``error`` in it.

    Returns how many.
    """
    with worker_transaction(using) as cursor:
        cursor.execute(statement("retry"), {"keys": list(keys), "pks": pks, "error": error})
        return int(cursor.rowcount)


def discard(using: str, pairs: Sequence[tuple[str, str]]) -> int:
    """Forget what is owed for rows, given as pairs of sidecar and key; what is leased stays.

    Their vectors stay as they are, or missing, until the rows change or a sweep finds them. Returns
    how many.
    """
    keys, pks = [key for key, _ in pairs], [pk for _, pk in pairs]
    with worker_transaction(using) as cursor:
        cursor.execute(statement("discard"), {"keys": keys, "pks": pks})
        return int(cursor.rowcount)
