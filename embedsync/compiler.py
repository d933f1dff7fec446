"""The query of a search: made exact where few rows match, or where the index has given too few."""

import math
import operator
from collections.abc import Iterable
from typing import Any, cast

from django.core.exceptions import EmptyResultSet
from django.db import DataError, connections, models
from django.db.backends.postgresql.compiler import SQLCompiler
from django.db.models.expressions import RawSQL
from django.db.models.lookups import LessThan, LessThanOrEqual
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI

from embedsync.embedders import MismatchError
from embedsync.expressions import ExactDistance, NearestPassage, SearchDistance
from embedsync.rescoring import RescoredDistance, is_rescored, rescored_sql
from embedsync.sql import statement

INDEX_MAY_BE_FIRST_PART_OF_SORT = 170000

# Up to so many rows that pass the filters are all compared: that finds all of the nearest, and
# costs about as much as a walk through the index until enough are met, or far less
# (docs/benchmarks.md). Of larger tables more, by the square root: comparing takes as long as there
# are rows that pass, and the walk as there are others for each of them.
FEW_ROWS, FEW_ROWS_OF = 3000, 34_000

BOUNDS = {LessThan: operator.lt, LessThanOrEqual: operator.le}


class SimilarCompiler(SQLCompiler):
    """Runs a search exactly where the index would be slower, or has returned too few rows.

    strict_order skips rows that it meets too late to be in order, and VACUUM can lag behind deleted
    rows: so a short answer may be short of rows that exist.
    """

    query: "SimilarQuery"

    def execute_sql(
        self,
        result_type: Any = MULTI,
        chunked_fetch: bool = False,
        chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
    ) -> Any:
        query = self.query
        try:
            if result_type != MULTI or query.explain_info is not None or not query.uses_index:
                return super().execute_sql(result_type, chunked_fetch, chunk_size)
            assert query.high_mark is not None
            if query.is_part or not (query.is_filtered and self.few_match()):
                if query.can_be_ended:
                    page = query.ended(self.connection.alias)
                    # Whoever iterates asks this compiler, not another, what the columns are.
                    self.setup_query()
                    part = page.get_compiler(self.using)
                    return part.execute_sql(MULTI, chunked_fetch, chunk_size)
                # A page, at most: nothing is lost by fetching it whole.
                chunks = super().execute_sql(MULTI, False, chunk_size)
                rows = [row for chunk in chunks or [] for row in chunk]
                if len(rows) >= query.high_mark - query.low_mark:
                    return [rows]
            again = query.exactly().get_compiler(self.using)
            self.setup_query()
            return again.execute_sql(MULTI, chunked_fetch, chunk_size)
        except DataError as error:
            if "embedsync: " in str(error):  # made_by.sql
                raise MismatchError(
                    f"{str(error).splitlines()[0]}. Let web processes and workers have the same"
                    " EMBEDSYNC_EMBEDDERS; another model goes into a second Embedding."
                ) from error
            raise

    def few_match(self) -> bool:
        """Whether few rows pass the filters, as the planner expects."""
        # Whatever their distance is, it has to be computed.
        query = self.query.unbounded().exactly()
        query.clear_ordering(force=True)
        query.clear_limits()
        query.clear_select_clause()
        # Rows are compared before aggregates or DISTINCT leave some out; and none is to be locked.
        query.distinct, query.distinct_fields, query.select_for_update = False, (), False
        # Of passages, all are compared to find a row's nearest.
        conditions: list[Any] = query.where.children
        query.where.children = [
            condition
            for condition in conditions
            if not condition.contains_aggregate and not is_of_nearest(condition)
        ]
        query.add_annotation(models.Value(1), "embedsync_one")
        try:
            sql, parameters = query.get_compiler(self.using).as_sql()
        except EmptyResultSet:
            return False  # none at all, which Django knows without a query
        with self.connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", parameters)
            ((plan,),) = cursor.fetchall()
            expected: int = plan[0]["Plan"]["Plan Rows"]
            if expected <= FEW_ROWS:
                return True
            _, vector = self.query.annotations[self.query.distance_name].get_source_expressions()
            table = self.connection.ops.quote_name(vector.sidecar._meta.db_table)
            # As of the last VACUUM or ANALYZE; -1 where there was none.
            sql = "SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = to_regclass(%s)"
            cursor.execute(sql, [table])
            ((total,),) = cursor.fetchall()
        return expected <= FEW_ROWS * max(1.0, math.sqrt(total / FEW_ROWS_OF))

    def as_sql(self, with_limits: bool = True, with_col_aliases: bool = False) -> Any:
        query = self.query
        if with_limits and is_rescored(query):
            sql, parameters = rescored_sql(self)
        else:
            sql, parameters = super().as_sql(with_limits, with_col_aliases)
        if not (with_limits and query.uses_index and (query.subquery or with_col_aliases)):
            return sql, parameters
        # Part of another query, where nobody sees how many rows come: PostgreSQL has to.
        assert query.high_mark is not None
        again = query.exactly().get_compiler(self.using, self.connection)
        exact, exact_parameters = again.as_sql(with_limits, with_col_aliases)
        wanted = query.high_mark - query.low_mark
        guarded = statement("search_in_query").format(near=sql, exact=exact)
        return guarded, (*parameters, wanted, *exact_parameters, wanted)


class SimilarQuery(models.sql.Query):
    """The query of a search: it knows how to become an exact one.

    ``distance_name`` is what its distance is called, ``own_filters`` how many it began with.
    ``is_part`` says that it is part of a search that has asked the planner, and whose bounds are
    seen to; ``scan_end`` where the page of that ends.

    Django makes another of the class for what ``exclude()`` says of many related rows: that one has
    no distance, and is no search.
    """

    distance_name = ""
    own_filters = 0
    is_part = False
    scan_end: int | None = None

    def get_compiler(
        self, using: str | None = None, connection: Any = None, elide_empty: bool = True
    ) -> SQLCompiler:
        connection = connection or connections[using]  # type: ignore[index]
        name = self.distance_name
        distance = self.annotations.get(name)
        if name in self.order_by[:1] and distance and not isinstance(distance, SearchDistance):
            raise ValueError(
                f"An annotation has taken the name {name!r} from similar(), whose rows it orders:"
                ' give yours another name, or similar(..., distance_name="near").'
            )
        query: Any = self
        if not (self.is_exact() or self.is_served):
            # Or an index could serve it, and nobody would see whether it gives too few rows.
            query = self.exactly()
        # The key as second column makes the order of pages stable. Before PostgreSQL 17 it would
        # lose the index, which could not be the first part of a sort.
        if (
            self.order_by == (name,)
            and not self.combinator
            and self.group_by is None
            # It would be selected, too, and tell apart values that are the same.
            and not (self.distinct and self.has_select_fields)
            and (query.is_exact() or connection.pg_version >= INDEX_MAY_BE_FIRST_PART_OF_SORT)
        ):
            query = query.clone()
            query.order_by = (name, "pk")
        return SimilarCompiler(query, connection, using, elide_empty)

    def is_exact(self) -> bool:
        distance = self.annotations.get(self.distance_name)
        return not isinstance(distance, SearchDistance) or isinstance(distance, ExactDistance)

    @property
    def uses_index(self) -> bool:
        """Whether the index may serve it, and give fewer rows than are asked for."""
        return (
            self.high_mark is not None
            and not self.combinator
            and self.order_by[:1] == (self.distance_name,)
            and self.standard_ordering
            and not self.extra_order_by
            and not self.has_windows
            and not self.is_exact()
        )

    @property
    def has_windows(self) -> bool:
        """Whether it has a window function, which has to see all rows."""
        parts = (self.where, *self.annotations.values(), *self.order_by)
        return any(getattr(part, "contains_over_clause", False) for part in parts)

    @property
    def is_served(self) -> bool:
        """Whether the index that there is serves it: bits do a plain page only."""
        distance = self.annotations.get(self.distance_name)
        return self.uses_index and (not isinstance(distance, RescoredDistance) or is_rescored(self))

    def combine(self, rhs: Any, connector: Any) -> None:
        if connector != "AND":
            raise TypeError(
                "A search cannot be joined by | or ^: filter with Q objects before similar()."
            )
        super().combine(rhs, connector)

    def bump_prefix(self, other_query: models.sql.Query, exclude: Any = None) -> None:
        # combine() alone excludes something, of the query on the right: its distance would be lost.
        is_joined = exclude is not None and not isinstance(other_query, SimilarQuery)
        if is_joined and self.distance_name in self.order_by:
            raise TypeError(
                "A search cannot be joined to another queryset: filter before similar(), or let it"
                " come first, similar(...) & others."
            )
        super().bump_prefix(other_query, exclude)

    @property
    def is_filtered(self) -> bool:
        """Whether there are conditions beside those of the search itself."""
        return len(self.where.children) - len(self.bounds) > self.own_filters

    @property
    def bounds(self) -> list[Any]:
        """Conditions that are met up to some distance, and by nothing that is farther."""
        conditions: list[Any] = self.where.children
        return [
            condition
            for condition in conditions
            if type(condition) in BOUNDS
            # Its own: another search may have been joined by &.
            and condition.lhs == self.annotations.get(self.distance_name)
            and isinstance(condition.rhs, int | float)
            # Which PostgreSQL takes for the greatest number of all.
            and not (isinstance(condition.rhs, float) and math.isnan(condition.rhs))
        ]

    def get_count(self, using: str) -> int:
        """How many rows it has; a row with passages has a first one, so none is compared for that.

        Unless something is asked of the nearest one.
        """
        query: Any = self.clone()
        conditions: list[Any] = self.where.children
        nearest = [one for one in conditions if is_of_nearest(one)]
        others = [one for one in conditions if not is_of_nearest(one)]
        is_plain = not (self.is_sliced or self.distinct or self.combinator or self.group_by)
        if is_plain and nearest and not asks_for(nearest[0].lhs.alias, others):
            query.where.children = [*others, *(type(one)(one.lhs, 0) for one in nearest)]
        count: int = super(SimilarQuery, query).get_count(using)
        return count

    def unbounded(self) -> "SimilarQuery":
        """This search without its ``bounds``, however far its rows are."""
        query, bounds = cast("SimilarQuery", self.clone()), self.bounds
        query.where.children = [one for one in query.where.children if one not in bounds]
        return query

    def ended(self, using: str) -> "SimilarQuery":
        """This page, with its end where its bounds are.

        An index does not know them: where fewer rows are within, it would walk on through all that
        are farther, in vain.
        """
        near, bounds = self.unbounded(), self.bounds
        near.is_part, near.low_mark = True, 0
        near.set_annotation_mask(None)
        rows: Any = models.QuerySet(self.model, near, using)
        within = [
            distance
            for distance in rows.values_list(self.distance_name, flat=True)
            if all(BOUNDS[type(bound)](distance, bound.rhs) for bound in bounds)
        ]
        page = cast("SimilarQuery", self.clone())
        page.is_part, page.scan_end = True, self.high_mark
        page.set_limits(high=max(0, len(within) - self.low_mark))
        return page

    @property
    def can_be_ended(self) -> bool:
        is_plain = not (self.distinct or self.group_by or self.select_for_update)
        return bool(self.bounds) and is_plain and not self.is_part

    def exactly(self) -> "SimilarQuery":
        """This search, with every row compared instead of the index asked."""
        query: Any = self.clone()
        distance: Any = self.annotations[self.distance_name]
        # Wherever it is: an index could serve an annotation that is the distance by another name.
        again = {distance: distance.exactly()}
        query.annotations = {
            name: annotation.replace_expressions(again)
            for name, annotation in self.annotations.items()
        }
        if isinstance(self.group_by, tuple):
            query.group_by = tuple(part.replace_expressions(again) for part in self.group_by)
        exact: SimilarQuery = query
        return exact


def is_of_nearest(condition: Any) -> bool:
    """Whether a condition chooses the nearest of a row's passages."""
    return isinstance(getattr(condition, "rhs", None), NearestPassage)


def asks_for(alias: str, parts: Iterable[Any]) -> bool:
    """Whether expressions have a column of a table in them, be it in a sub-query."""
    for part in parts:
        if isinstance(part, RawSQL) or not hasattr(part, "get_source_expressions"):
            return True  # SQL of the project's own, which may
        inner = [*part.get_source_expressions(), *getattr(part, "get_external_cols", list)()]
        if getattr(part, "alias", None) == alias or asks_for(alias, filter(None, inner)):
            return True
    return False
