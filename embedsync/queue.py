"""The queue: inbox, ledger and the moves of a worker.

Triggers and sweeps insert into the inbox; ``ledger.py`` makes parked rows due and forgets them; and
what has been dropped is forgotten (``forget.sql``). All the rest is done here.

Why it is right: an event is in the inbox, or is a ledger row, or marks one dirty, until a write
that began after it was read. The token is checked under the row's lock, so a late worker cannot
overwrite newer work. Locks are taken in key order or skipped, so workers cannot deadlock.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from django.db import DataError, OperationalError, ProgrammingError, transaction
from pgvector import HalfVector, Vector

from embedsync import state
from embedsync.claim import Claim, Written, claims, tell_too_long
from embedsync.conf import settings
from embedsync.database import (
    BY_ANY_PLAN,
    BY_INDEX,
    asked,
    binary_cursor,
    names_of,
    related_sql,
    text_array,
    worker_transaction,
)
from embedsync.declaration import EmbeddingModel, key_of
from embedsync.passages import Rewritten
from embedsync.passages import write as write_passages
from embedsync.sql import statement

# A look at the whole inbox, or at all that may be due, may take this share of a worker's time, and
# comes every 2 s at least.
FULL_LOOK_SHARE = 0.02
FULL_LOOK_SECONDS = 2.0
# Events of related rows that are looked at together; each may belong to many rows, all of which are
# found again for each page of it.
HOPS_AT_ONCE = 50
ROWS_OF_A_HOP = 10_000
# A fold takes so many times its share of events at most: rows need not go on as they have begun.
EVENTS_PER_ROW = 8.0


@dataclass
class Queue:
    """The moves of one worker on one database. ``worker`` is its name, for people to read."""

    using: str
    worker: str
    low: int = 0
    parked: list[tuple[str, str, int]] = field(default_factory=list)  # by the last ``due``
    _next_full_look: float = 0.0
    _events_per_row: float = 1.0  # of late
    _share: int = 1  # of the related rows that are looked for at a time
    # Since when, in the server's time; of rows that were tried before, or without them.
    _not_due: dict[tuple[str, bool], float] = field(default_factory=dict)
    _next_due_look: float = 0.0

    def transaction(self, plan: str = "") -> AbstractContextManager[Any]:
        return worker_transaction(self.using, plan)

    def fold(self, served: Sequence[str], limit: int) -> tuple[int, list[Claim]]:
        """Move the oldest events into the ledger and lease the rows of the sidecars ``served``.

        Those of about ``limit`` rows: where rows change again and again, it takes more events.
        Returns the number of events moved and the claims.
        """
        full_look, low, started = self._look()
        limit = round(limit * self._events_per_row)
        sql = statement("fold").replace("{claimed}", statement("claim"))
        token = uuid4()
        with self.transaction(BY_INDEX) as cursor:
            cursor.execute(
                sql, {"low": low, "limit": limit, **self._lease(token), "served": list(served)}
            )
            rows = cursor.fetchall()
        too_long, picked, owed, last = rows[0][:4]
        tell_too_long(too_long)
        self._events_per_row = min(picked / owed, EVENTS_PER_ROW) if owed else 1.0
        if last is not None:
            self.low = last
        if full_look:
            self._looked(started)
        return picked, claims(((key, pk, n) for *_, key, pk, n in rows if key is not None), token)

    def peek(
        self, served: Sequence[str], ready: Sequence[str], retried: Sequence[str] | None = None
    ) -> tuple[bool, bool, bool]:
        """Whether ``fold``, ``rare`` and ``due`` (of those ``ready``) would find anything.

        Rows that have been tried before count for the sidecars ``retried`` only, or else for all.
        """
        full_look, low, started = self._look()
        if look_at_all := started >= self._next_due_look:
            self._not_due.clear()
        asked_for = [(key, retried is None or key in retried) for key in ready]
        since = [self._not_due.get(each) for each in asked_for]
        more = {"retried": [again for _, again in asked_for], "since": since}
        parameters = {"low": low, "served": list(served), "ready": list(ready), **more}
        events, last, rare, due, now = asked(self.using, statement("peek"), parameters)
        if not events:
            self.low = max(self.low, last or 0)
            if full_look:  # otherwise a fold is going to look
                self._looked(started)
        if look_at_all:
            self._next_due_look = self._next_look(started)
        if due:
            self._not_due.clear()  # there may be more than the next batch takes
        else:
            self._not_due.update(dict.fromkeys(asked_for, now))
        return events, rare, due

    def look_everywhere(self) -> None:
        """Let the next question be about all there is, whatever was there before."""
        self.low = 0
        self._not_due.clear()

    def _look(self) -> tuple[bool, int, float]:
        """Whether to look at the whole inbox, from which seq on, and when this look began."""
        started = time.monotonic()
        full_look = self.low == 0 or started >= self._next_full_look
        return full_look, 0 if full_look else self.low, started

    def _looked(self, started: float) -> None:
        # Order of commit is not order of seq, so there may be events below the mark.
        self._next_full_look = self._next_look(started)

    def _next_look(self, started: float) -> float:
        took = time.monotonic() - started
        return started + min(took / FULL_LOOK_SHARE, FULL_LOOK_SECONDS)

    def due(self, served: Sequence[str], limit: int, *, retried: bool | None = None) -> list[Claim]:
        """Lease at most ``limit`` rows whose time has come; park those tried too often.

        Those that were tried before where ``retried``, those that were not where it is False.

        Each sidecar has a share; what one leaves goes to the others. What was parked is in
        ``parked`` afterwards: sidecar, key and attempts.
        """
        self.parked.clear()
        found: list[Claim] = []
        keys, left = list(served), limit
        while keys and left > 0:
            share = max(1, left // len(keys))
            try:
                taken = self._due(keys, share, retried)
            except OperationalError:
                if not found:
                    raise
                break  # what is leased by now is not to be lost
            found += taken
            left -= sum(len(claim.attempts) for claim in taken)
            keys = [claim.key for claim in taken if len(claim.attempts) >= share]
        return found

    def _due(self, served: Sequence[str], share: int, retried: bool | None) -> list[Claim]:
        token = uuid4()
        more = {"limit": share, "retried": retried, "max_attempts": settings.max_attempts}
        with self.transaction() as cursor:
            cursor.execute(statement("due"), {**more, **self._lease(token), "served": list(served)})
            rows = cursor.fetchall()
        self.parked += [(key, pk, n) for key, pk, n, held, _ in rows if held is None]
        hung = {(key, pk) for key, pk, *_, has_hung in rows if has_hung}
        return claims(((key, pk, n) for key, pk, n, held, _ in rows if held == token), token, hung)

    def fill(self, sidecar: type[EmbeddingModel], limit: int) -> tuple[int, list[Claim]]:
        """Lease the next page of a sidecar that has not been filled yet.

        Returns the number of keys in the page, 0 where there is nothing to fill, and the claim.
        """
        key, names, token = key_of(sidecar), names_of(sidecar, self.using), uuid4()
        with self.transaction() as cursor:
            unfilled, last_key = state.fill_in_hand(cursor, key)
            if not unfilled:
                return 0, []
            after = "" if last_key is None else f"> ({names.after_key})"
            sql = names.fill(
                "fill_page", claimed=statement("claim"), page_of_keys=names.page_of_keys(after)
            )
            parameters = {"after": last_key, "limit": limit, "key": key, **self._lease(token)}
            cursor.execute(sql, {**parameters, "served": [key]})
            rows = cursor.fetchall()
            too_long, picked, last = rows[0][:3]
            state.fill_reached(cursor, key, last, ended=picked < limit)
        tell_too_long(too_long)
        found = claims(((k, pk, n) for *_, k, pk, n in rows if k is not None), token)
        return picked, [replace(claim, filling=True) for claim in found]

    def rare(self, served: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Of the oldest events that are not of rows: truncated sidecars; sidecars and their hops.

        What was truncated is then to be compared with its sidecar from the start.
        """
        with self.transaction(BY_INDEX) as cursor:
            cursor.execute(statement("rare"), {"served": list(served), "limit": HOPS_AT_ONCE})
            found = cursor.fetchall()
            hops = [(key, hop) for key, hop in found if hop is not None]
            if len(hops) == len(found):
                return [], hops
            cursor.execute(
                "DELETE FROM embedsync_inbox WHERE seq IN (SELECT seq FROM embedsync_inbox"
                " WHERE kind = 'truncate' AND sidecar = ANY(%s)"
                " ORDER BY seq FOR UPDATE SKIP LOCKED)"
                " RETURNING sidecar",
                [list(served)],
            )
            keys = sorted({key for (key,) in cursor.fetchall()})
            for key in keys:
                state.refill(cursor, key)
        return keys, hops

    def expand(self, sidecar: type[EmbeddingModel], hop: str) -> int:
        """Turn events of related rows into work for the rows of the source that they belong to.

        At most ``ROWS_OF_A_HOP`` rows for each of ``HOPS_AT_ONCE`` events; what is left of an event
        stays one. Returns how many events and rows moved.
        """
        related = related_sql(sidecar, hop, self.using)
        if related is None:
            return self._compare_instead(key_of(sidecar), hop)
        key, names = key_of(sidecar), names_of(sidecar, self.using)
        sql = names.fill("expand", claimed=statement("claim"), related=related)
        events, limit = max(1, HOPS_AT_ONCE // self._share), max(1, ROWS_OF_A_HOP // self._share)
        parameters = {"key": key, "hop": hop, "events": events, "limit": limit}
        try:
            with self.transaction(BY_INDEX) as cursor:
                cursor.execute(statement("oldest_of_hop"), parameters)
                ctids = [ctid for (ctid,) in cursor.fetchall()]
                cursor.execute(BY_ANY_PLAN)  # what the rows belong to is the application's query
                parameters |= {"ctids": text_array(ctids), **self._lease(uuid4())}
                # Leased to nobody: they are due, for this worker and others.
                cursor.execute(sql, {**parameters, "served": []})
                too_long, events, rows = cursor.fetchone()
            tell_too_long(too_long)
            self._share = max(1, self._share // 2)
        except DataError:
            # Keys of another type than the column has now.
            return self._compare_instead(key, hop)
        return int(events) + int(rows)

    def hurry(self) -> None:
        """Look for fewer related rows at a time: a timeout of this role has ended a search."""
        self._share = min(self._share * 4, ROWS_OF_A_HOP)

    def _compare_instead(self, key: str, hop: str) -> int:
        """Where events of a hop can no longer be understood: what they meant is found anyhow."""
        with self.transaction() as cursor:
            state.refill(cursor, key)
            cursor.execute(
                "DELETE FROM embedsync_inbox WHERE sidecar = %s AND hop = %s", [key, hop]
            )
            return int(cursor.rowcount)

    def complete(
        self,
        sidecar: type[EmbeddingModel],
        claim: Claim,
        fingerprint: str,
        vectors: dict[str, tuple[bytes, HalfVector | Vector]],
        blank: Sequence[str] = (),
        gone: Sequence[str] = (),
        unchanged: Sequence[str] = (),
        passages: Mapping[str, Rewritten] | None = None,
        cut: Iterable[str] = (),
    ) -> Written:
        """Write ``vectors`` (digest and vector by key) and ``passages``, remove others, settle all.

        Those of rows that are ``blank``, and of rows that are ``gone`` or excluded. ``cut`` are the
        keys of vectors that are of the beginning of a text only.

        Only what is still leased to this worker. Raises ``SupersededError`` where the sidecar now
        belongs to workers with another ``fingerprint``; then nothing is written.
        """
        names = names_of(sidecar, self.using)
        several = dict(passages or {})
        pks = sorted({*vectors, *several, *blank, *gone, *unchanged})
        done = Written()
        with self.transaction() as cursor:
            mine = self._lock(cursor, claim, pks)
            found = state.fingerprints(cursor, [claim.key])
            if not state.is_current(claim.key, fingerprint, found.get(claim.key)):
                mine.clear()  # a migration has just reset it: whoever adopts it begins anew
            done.settled, done.lost = set(mine), len(pks) - len(mine)
            write = [pk for pk in sorted(vectors) if pk in mine]
            remove = [pk for pk in (*blank, *gone) if pk in mine]
            if write:
                with binary_cursor(self.using) as binary:
                    binary.execute(
                        names.fill("write"),
                        {
                            "pks": text_array(write),
                            "digests": [vectors[pk][0] for pk in write],
                            "vectors": [vectors[pk][1] for pk in write],
                            "cut": text_array(sorted(cut)),
                        },
                    )
                    done.written = [key for (key,) in binary.fetchall()]
            several = {pk: row for pk, row in several.items() if pk in mine}
            if several:
                written = write_passages(sidecar, self.using, names, several)
                done.written = list(dict.fromkeys([*done.written, *written]))
            if remove:
                cursor.execute(names.fill("remove"), {"pks": remove, "blank": list(blank)})
            for move, is_dirty in (("done", False), ("again", True)):
                moved = {pk: row for pk, row in mine.items() if row[1] == is_dirty}
                if moved:
                    cursor.execute(statement(move), {"ctids": ctids_of(moved)})
        return done

    def hand_back(
        self, claim: Claim, delays: dict[str, float | None], error: str = "", refund: bool = False
    ) -> None:
        """Return rows, due after ``delays`` seconds by key, or parked (None)."""
        with self.transaction() as cursor:
            mine = self._lock(cursor, claim, list(delays))
            more = {"delays": [delays[pk] for pk in mine], "refund": int(refund), "error": error}
            cursor.execute(statement("hand_back"), {"ctids": ctids_of(mine), **more})

    def count(self, claim: Claim, pks: list[str], attempts: int) -> None:
        """Count so many attempts more, or fewer, of rows that are leased to this worker."""
        if pks:
            with self.transaction() as cursor:
                mine = self._lock(cursor, claim, pks)
                cursor.execute(statement("count"), {"ctids": ctids_of(mine), "attempts": attempts})

    def extend(self, claim: Claim) -> None:
        """Lengthen the lease of rows that are still being embedded."""
        with self.transaction() as cursor:
            # What this worker is writing at the moment is locked, and nobody else's.
            mine = self._lock(cursor, claim, claim.pks, "SKIP LOCKED")
            more = {"ctids": ctids_of(mine), "lease": settings.lease}
            cursor.execute(statement("extend"), more)

    def _lock(
        self, cursor: Any, claim: Claim, pks: Sequence[str], otherwise: str = ""
    ) -> dict[str, tuple[str, bool]]:
        """Lock those of the rows that are still leased to this worker.

        By key where they are now (``ctid``), and whether they are dirty. ``otherwise`` is what to
        do with those that are locked, instead of waiting.
        """
        # At once what later statements need: a REINDEX that comes in between would wait for us,
        # and we for it.
        cursor.execute("LOCK TABLE embedsync_ledger IN ROW EXCLUSIVE MODE")
        sql = statement("mine").replace("{otherwise}", otherwise)
        more = {"key": claim.key, "token": claim.token}
        cursor.execute(sql, {"pks": text_array(sorted(pks)), **more})
        return {pk: (ctid, dirty) for pk, ctid, dirty in cursor.fetchall()}

    def _lease(self, token: UUID) -> dict[str, Any]:
        return {"token": token, "lease": settings.lease, "worker": self.worker}

    def pending(self, served: dict[str, type[EmbeddingModel]]) -> int:
        """Rows that are owed: the rest of each fill, and of filled sidecars events and due rows."""
        total = 0
        with self.transaction() as cursor:
            unfilled = dict(state.unfilled(cursor, list(served)))
            for key, after in unfilled.items():
                names = names_of(served[key], self.using)
                where = "" if after is None else f"WHERE ({names.pk}) > ({names.after_key})"
                sql = f"SELECT count(*) FROM {names.source} {where}"
                # One that may not be read, or is gone, holds up no other: its fill says why.
                with suppress(ProgrammingError), transaction.atomic(self.using):
                    cursor.execute(sql, {"after": after})
                    total += cursor.fetchone()[0]
            cursor.execute(
                "SELECT (SELECT count(DISTINCT (sidecar, source_pk)) FROM embedsync_inbox"
                " WHERE sidecar = ANY(%(filled)s) AND kind = 'row')"
                " + (SELECT count(*) FROM embedsync_ledger"
                " WHERE sidecar = ANY(%(filled)s) AND run_at <= statement_timestamp())",
                {"filled": list(served.keys() - unfilled.keys())},
            )
            owed: int = cursor.fetchone()[0]
        return total + owed

    def left(self, served: Sequence[str]) -> tuple[int, int]:
        """Rows that wait for a later attempt or under a lease, and rows that are parked."""
        with self.transaction() as cursor:
            cursor.execute(
                "SELECT count(run_at), count(*) - count(run_at) FROM embedsync_ledger"
                " WHERE sidecar = ANY(%s)",
                [list(served)],
            )
            waiting, parked = cursor.fetchone()
        return waiting, parked


def ctids_of(locked: Mapping[str, tuple[str, bool]]) -> str:
    """Where rows of the ledger are that are locked, and so stay there, for a statement.

    By their keys, all of a long ledger was read: the planner takes a token for that of one row.
    """
    return text_array([ctid for ctid, _ in locked.values()])
