"""Events: the queries with which triggers list the keys that a change of their table owes.

``o`` and ``n`` are the rows before and after. Each query gives one column of text: the key of a
row of the source, or of what leads there; several columns of a key stand in a JSON array.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# Where the rows are: in a statement trigger's transition tables, or in a row trigger's one row.
STATEMENT = {"old": "old_rows", "new": "new_rows"}
ROW = {"old": "(SELECT ($4).*)", "new": "(SELECT ($5).*)"}

INSERTED = "SELECT {new_key} FROM {new} n"
DELETED = "SELECT {old_key} FROM {old} o"
# FULL JOIN: a changed primary key gives the old key and the new one.
# *<> compares the stored bytes, so it works for json and vector columns, which have no equality,
# and sees a change of case under a case-insensitive collation.
UPDATED = """\
SELECT CASE WHEN n.{row} IS NULL THEN {old_key} ELSE {new_key} END
FROM {old} o FULL JOIN {new} n ON {same}
WHERE n.{row} IS NULL OR o.{row} IS NULL
   OR ROW({old_values})::record OPERATOR(pg_catalog.*<>) ROW({new_values})::record"""

# Of a related table. Many of its rows may lead to one of the source, or to none.
RELATED = "SELECT DISTINCT key FROM ({events}) AS related(key) WHERE key IS NOT NULL"
RELATED_UPDATED = """\
SELECT key
FROM {old} o FULL JOIN {new} n ON {same}
CROSS JOIN LATERAL (VALUES ({old_key}), ({new_key})) AS pair(key)
WHERE n.{row} IS NULL OR o.{row} IS NULL
   OR ROW({old_values})::record OPERATOR(pg_catalog.*<>) ROW({new_values})::record"""


@dataclass(frozen=True)
class EventColumns:
    """The columns of one watched table that matter to its triggers, quoted.

    ``keys`` go into the inbox, ``identity`` tells rows apart, a change of ``values`` is an event.
    """

    keys: list[str]
    identity: list[str]
    values: list[str]
    related: bool

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.keys, *self.identity, *self.values]))


def event_sql(event: str, columns: EventColumns, rows: dict[str, str]) -> str:
    """The query of the trigger for ``event``; ``rows`` is ``STATEMENT`` or ``ROW``."""
    updated = RELATED_UPDATED if columns.related else UPDATED
    values = [*columns.values, *columns.keys] if columns.related else columns.values
    sql = {"INSERT": INSERTED, "DELETE": DELETED, "UPDATE": updated}[event].format(
        old_key=key_text(f"o.{column}" for column in columns.keys),
        new_key=key_text(f"n.{column}" for column in columns.keys),
        row=columns.identity[0],
        same=" AND ".join(f"n.{column} = o.{column}" for column in columns.identity),
        old_values=", ".join(f"o.{column}" for column in values),
        new_values=", ".join(f"n.{column}" for column in values),
        **rows,
    )
    return RELATED.format(events=sql) if columns.related else sql


def key_text(columns: Iterable[str]) -> str:
    """SQL for a key as the inbox has it: the text of its column, or a JSON array of texts."""
    texts = [f"{column}::text" for column in columns]
    return texts[0] if len(texts) == 1 else f"json_build_array({', '.join(texts)})::text"
