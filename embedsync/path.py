"""The path from a source to a watched column: the tables on it, and which rows of the source each
of their rows belongs to.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db.models.constants import LOOKUP_SEP

EVENTS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True)
class Step:
    """One join of a path, from the rows before to those of ``options``, a model's ``_meta``.

    ``lookup`` is what leads from the source to the values in ``column``: ``filter(lookup=value)``
    finds the rows of the source that this step reaches by way of them. It is ``""`` where the
    values are the source's own primary key. ``before`` is the column that is joined to ``column``;
    ``direct`` says that it refers to ``column``, and not the other way round.
    """

    options: Any
    before: Any
    column: Any
    lookup: str
    direct: bool
    events: tuple[str, ...]


@dataclass(frozen=True)
class Path:
    """A name like ``"director__name"``, followed from a source to a column.

    ``relations`` is its part up to the last relation, ``"director"``. ``rest`` is what follows the
    column in a condition, a lookup like ``"gte"``. ``many`` says that several values may belong to
    one row of the source.
    """

    steps: tuple[Step, ...]
    column: Any
    relations: str
    rest: tuple[str, ...]
    many: bool


@dataclass
class Watched:
    """A table that makes events for a sidecar, and the columns whose change is one.

    ``keys`` are the columns whose values the event carries: see ``Step.lookup``.
    """

    options: Any
    lookup: str
    keys: tuple[Any, ...]
    events: tuple[str, ...] = EVENTS
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def is_source(self) -> bool:
        return not self.lookup and self.keys == tuple(self.options.pk_fields)

    def watch(self, column: Any) -> None:
        if column not in self.keys:
            self.columns[column.column] = column


def follow(options: Any, name: str) -> Path:
    """Follow ``name`` from the model with these ``_meta``.

    Raises ``FieldError`` where it leads nowhere, or over a relation that triggers cannot follow.
    """
    steps: list[Step] = []
    names: list[str] = []
    place, rest, many = options, name.split(LOOKUP_SEP), False
    relations, column = "", None
    while rest:
        try:
            found = place.get_field(place.pk.name if rest[0] == "pk" else rest[0])
        except FieldDoesNotExist:
            if column is None:
                raise FieldError(f"{options.label} has no field {rest[0]!r}.") from None
            break  # a lookup or a transform
        if found.is_relation and not found.related_model:
            raise FieldError(f"{name!r} goes over a generic relation.")
        # A field of a multi-table parent stands in the parent's table.
        owner = found.model._meta.concrete_model
        for info in place.get_path_to_parent(owner) if owner is not place.model else ():
            steps.append(step(options, steps, info, [*names, info.join_field.name]))
        names.append(rest.pop(0))
        if not found.is_relation:
            column = found
            break
        relations = LOOKUP_SEP.join(names)
        for info in found.path_infos:
            steps.append(step(options, steps, info, names))
            many = many or info.m2m
        place, column = found.path_infos[-1].to_opts, found.path_infos[-1].target_fields[0]
    # Where the column repeats the one that joins its table, the table before has it too, and its
    # row says whether there is one to be joined.
    while steps and steps[-1].direct and steps[-1].column == column:
        column = steps.pop().before
    if getattr(column, "column", None) is None:
        raise FieldError(f"{name!r} is no column.")
    return Path(tuple(steps), column, relations, tuple(rest), many)


def step(options: Any, steps: list[Step], info: Any, names: list[str]) -> Step:
    """The step of one of Django's ``PathInfo``, which is the last or only one of ``names``."""
    relation = info.join_field
    if hasattr(getattr(relation, "field", relation), "content_type_field_name"):
        raise FieldError("Generic relations cannot be followed.")
    ((before, column), *others) = relation.get_joining_fields()
    if others:
        raise FieldError("Relations of several columns cannot be followed.")
    if steps and steps[-1].column == before:
        lookup = steps[-1].lookup
    elif not steps and (before,) == tuple(options.pk_fields):
        lookup = ""
    elif info.direct:
        lookup = LOOKUP_SEP.join(names)
    else:
        lookup = LOOKUP_SEP.join([*names[:-1], before.name])
    # A row that a foreign key refers to is there when a transaction that makes the reference ends,
    # which is an event of its own. Only one that is deleted and made anew may be another.
    referred = info.direct and getattr(relation, "db_constraint", False)
    events = ("UPDATE", "DELETE") if referred and relation.model._meta.managed else EVENTS
    return Step(info.to_opts, before, column, lookup, info.direct, events)


def watched_tables(options: Any, names: Iterable[str]) -> list[Watched]:
    """The tables that these names of a source's columns lead over, the source's own first."""
    source = Watched(options, "", tuple(options.pk_fields))
    found = {("", options.db_table, source.keys): source}
    for name in names:
        path = follow(options, name)
        place = source
        for hop in path.steps:
            place.watch(hop.before)
            key = (hop.lookup, hop.options.db_table, (hop.column,))
            place = found.setdefault(key, Watched(hop.options, hop.lookup, (hop.column,), ()))
            place.events = tuple(e for e in EVENTS if e in {*place.events, *hop.events})
        place.watch(path.column)
    return list(found.values())
