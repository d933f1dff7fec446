"""The query of a search: made exact where few rows match, or where the index has given too few."""

from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import DataError, connections, models
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI

from embedsync.embedders import MismatchError
from embedsync.expressions import ExactDistance, SearchDistance
from embedsync.rescoring import is_rescored, rescored_sql
from embedsync.retrieval import NearestPassage
from embedsync.sql import statement

INDEX_MAY_BE_FIRST_PART_OF_SORT = 170000

# Up to so many rows that pass the filters are all compared: that finds all of the nearest, and
# costs about as much as a walk through the index until enough are met, or far less
# (docs/benchmarks.md).
FEW_ROWS = 3000


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
            if not (query.is_filtered and self.few_match()):
                # A page, at most: nothing is lost by fetching it whole.
                chunks = super().execute_sql(MULTI, False, chunk_size)
                rows = [row for chunk in chunks or [] for row in chunk]
                if len(rows) >= query.high_mark - query.low_mark:
                    return [rows]
            again = query.exactly().get_compiler(self.using)
            # Whoever iterates asks this compiler, not the other, what the columns are.
            self.setup_query()
            again.setup_query()
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
        query = self.query.exactly()
        query.clear_ordering(force=True)
        query.clear_limits()
        query.clear_select_clause()
        # Of passages, all are compared to find a row's nearest.
        query.where.children = [
            condition
            for condition in query.where.children
            if not isinstance(getattr(condition, "rhs", None), NearestPassage)
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
        return expected <= FEW_ROWS

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
    """

    distance_name: str
    own_filters: int

    def get_compiler(
        self, using: str | None = None, connection: Any = None, elide_empty: bool = True
    ) -> SQLCompiler:
        connection = connection or connections[using]  # type: ignore[index]
        query: Any = self
        # The key as second column makes the order of pages stable. Before PostgreSQL 17 it would
        # lose the index, which could not be the first part of a sort.
        if self.order_by == (self.distance_name,) and (
            self.is_exact() or connection.pg_version >= INDEX_MAY_BE_FIRST_PART_OF_SORT
        ):
            query = self.clone()
            query.order_by = (self.distance_name, "pk")
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
            and not self.is_exact()
        )

    @property
    def is_filtered(self) -> bool:
        """Whether there are conditions beside those of the search itself."""
        return len(self.where.children) > self.own_filters

    def exactly(self) -> "SimilarQuery":
        query: Any = self.clone()
        distance: Any = self.annotations[self.distance_name]
        query.annotations = {**self.annotations, self.distance_name: distance.exactly()}
        exact: SimilarQuery = query
        return exact
