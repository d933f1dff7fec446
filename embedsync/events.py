"""Events: the SQL with which triggers list the keys that a change of their table owes.

``o`` and ``n`` are the rows before and after, in row-level triggers ``OLD`` and ``NEW``. Each query
gives one column of text: the key of a row of the source, or of what leads there; several columns of
a key stand in a JSON array.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from embedsync.sql import statement

# *<> compares the stored bytes, so it works for json and vector columns, which have no equality,
# and sees a change of case under a case-insensitive collation.
DIFFERS = "ROW({old_values})::record OPERATOR(pg_catalog.*<>) ROW({new_values})::record"

INSERTED = "SELECT {new_key} FROM new_rows n"
DELETED = "SELECT {old_key} FROM old_rows o"
# FULL JOIN: a changed primary key gives the old key and the new one.
UPDATED = f"""\
SELECT CASE WHEN n.{{row}} IS NULL THEN {{old_key}} ELSE {{new_key}} END
FROM old_rows o FULL JOIN new_rows n ON {{same}}
WHERE n.{{row}} IS NULL OR o.{{row}} IS NULL
   OR {DIFFERS}"""

# Of a related table. Many of its rows may lead to one of the source, or to none.
RELATED = (
    "SELECT DISTINCT related.key FROM ({events}) AS related(key) WHERE related.key IS NOT NULL"
)
RELATED_UPDATED = f"""\
SELECT pair.key
FROM old_rows o FULL JOIN new_rows n ON {{same}}
CROSS JOIN LATERAL (VALUES ({{old_key}}), ({{new_key}})) AS pair(key)
WHERE n.{{row}} IS NULL OR o.{{row}} IS NULL
   OR {DIFFERS}"""

# Of one row: its key before and after, where they differ both.
ROW_KEYS = {
    "INSERT": "VALUES ({new_key})",
    "DELETE": "VALUES ({old_key})",
    "UPDATE": "VALUES ({old_key}) UNION VALUES ({new_key})",
}
# A long text that an UPDATE leaves alone stays where it is stored: no need to read it.
STAYS = "pg_column_toast_chunk_id(OLD.{0}) = pg_column_toast_chunk_id(NEW.{0})"
STAYS_SINCE = 170000

# Types whose text is the same whatever a session's settings are, as a key's text has to be.
FIXED_TYPES = {"smallint", "integer", "bigint", "uuid", "char", "varchar", "text"}
# For keys of other types. Not for all: it is a fifth of what a single-row statement pays.
FIXED_SETTINGS = """\
SET "DateStyle" = 'ISO, YMD'
SET "TimeZone" = 'UTC'
SET "IntervalStyle" = 'postgres'
SET extra_float_digits = 1
SET bytea_output = 'hex'
"""


@dataclass(frozen=True)
class EventColumns:
    """The columns of one watched table that matter to its triggers, quoted.

    ``keys`` go into the inbox, ``identity`` tells rows apart, a change of ``values`` is an event.
    ``related`` says that the rows are not the source's own. ``sidecar`` and ``hop`` are what the
    inbox has beside the keys, quoted; ``hop`` is None where the keys are those of the source.
    """

    keys: list[str]
    identity: list[str]
    identity_types: list[str]
    values: list[str]
    related: bool
    sidecar: str
    hop: str | None

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.keys, *self.identity, *self.values]))

    def insert(self, keys: str, schema: str) -> str:
        """PL/pgSQL that puts what the query ``keys`` finds into the inbox."""
        # Constants rather than the trigger's arguments, which PL/pgSQL takes longer to look up.
        kind, hop = ("'row'", "NULL") if self.hop is None else ("'hop'", self.hop)
        origin = f"{self.sidecar}, {kind}, {hop}"
        return statement("events").format(keys=keys, schema=schema, origin=origin)

    def truncate(self, schema: str) -> str:
        return statement("event_of_truncate").format(schema=schema, sidecar=self.sidecar)


def is_fixed(column_type: str) -> bool:
    return column_type.split("(")[0] in FIXED_TYPES


def settings_for(key_types: Iterable[str]) -> str:
    """What the function of a trigger sets, given the types of the keys that it writes."""
    return "" if all(map(is_fixed, key_types)) else FIXED_SETTINGS


def same_sql(column: str, column_type: str) -> str:
    """SQL for: it is the same row, by this column of its key."""
    # The operators of an extension's type may be in any schema, and the search_path is pinned.
    return (
        f"n.{column} = o.{column}"
        if is_fixed(column_type)
        else f"n.{column}::text = o.{column}::text"
    )


def event_sql(event: str, columns: EventColumns, schema: str, server: int) -> str:
    """What the statement trigger for ``event`` does, in PL/pgSQL."""
    if event == "TRUNCATE":
        return columns.truncate(schema)
    updated = RELATED_UPDATED if columns.related else UPDATED
    values = [*columns.values, *columns.keys] if columns.related else columns.values
    sql = {"INSERT": INSERTED, "DELETE": DELETED, "UPDATE": updated}[event].format(
        old_key=key_text(f"o.{column}" for column in columns.keys),
        new_key=key_text(f"n.{column}" for column in columns.keys),
        row=columns.identity[0],
        same=" AND ".join(map(same_sql, columns.identity, columns.identity_types)),
        old_values=", ".join(f"o.{column}" for column in values),
        new_values=", ".join(f"n.{column}" for column in values),
    )
    keys = RELATED.format(events=sql) if columns.related else sql
    return columns.insert(keys, schema)


def row_event_sql(event: str, columns: EventColumns, schema: str, server: int) -> str:
    """What the row-level trigger for ``event`` does; ``server`` is PostgreSQL's version.

    It refers to columns by name and in a function's body alone, so that they may be altered and
    dropped: PostgreSQL would refuse that where UPDATE OF or WHEN names them. And it sees what
    other triggers have changed, to which UPDATE OF is blind.
    """
    if event == "TRUNCATE":
        return event_sql(event, columns, schema, server)
    keys = ROW_KEYS[event].format(
        old_key=key_text(f"OLD.{column}" for column in columns.keys),
        new_key=key_text(f"NEW.{column}" for column in columns.keys),
    )
    if columns.related:
        keys = RELATED.format(events=keys)
    changed = "TRUE" if event != "UPDATE" else row_differs(columns.all, server)
    insert = columns.insert(keys, schema)
    return statement("events_of_row").format(changed=changed, insert=insert)


def row_differs(columns: list[str], server: int) -> str:
    """SQL that tells whether a row-level UPDATE has changed one of these columns."""
    parts = []
    for column in columns:
        differs = DIFFERS.format(old_values=f"OLD.{column}", new_values=f"NEW.{column}")
        if server >= STAYS_SINCE:
            differs = f"({STAYS.format(column)}) IS NOT TRUE AND {differs}"
        parts.append(differs)
    return "\n        OR ".join(parts)


def key_text(columns: Iterable[str]) -> str:
    """SQL for a key as the inbox has it: the text of its column, or a JSON array of texts."""
    texts = [f"{column}::text" for column in columns]
    return texts[0] if len(texts) == 1 else f"json_build_array({', '.join(texts)})::text"
