"""The query of a search: run again exactly where the index has returned too few rows."""

from typing import Any

from django.db import connections, models
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI

from embedsync.expressions import ExactDistance, SearchDistance

INDEX_MAY_BE_FIRST_PART_OF_SORT = 170000


class SimilarCompiler(SQLCompiler):
    """Runs a search again exactly where the index has returned fewer rows than were asked for.

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
        if (
            result_type != MULTI
            or query.high_mark is None
            or query.explain_info is not None
            or query.is_exact()
        ):
            return super().execute_sql(result_type, chunked_fetch, chunk_size)
        wanted = query.high_mark - query.low_mark
        # A page, at most: nothing is lost by fetching it whole.
        chunks = super().execute_sql(MULTI, False, chunk_size)
        rows = [row for chunk in chunks or [] for row in chunk]
        if len(rows) < wanted:
            again = query.exactly().get_compiler(self.using)
            assert isinstance(again, SimilarCompiler)
            again.setup_query()
            return again.execute_sql(MULTI, chunked_fetch, chunk_size)
        return [rows]


class SimilarQuery(models.sql.Query):
    """The query of a search: it knows how to become an exact one."""

    def get_compiler(
        self, using: str | None = None, connection: Any = None, elide_empty: bool = True
    ) -> SQLCompiler:
        connection = connection or connections[using]  # type: ignore[index]
        query: Any = self
        # The key as second column makes the order of pages stable. Before PostgreSQL 17 it would
        # lose the index, which could not be the first part of a sort.
        if self.order_by == ("distance",) and (
            self.is_exact() or connection.pg_version >= INDEX_MAY_BE_FIRST_PART_OF_SORT
        ):
            query = self.clone()
            query.order_by = ("distance", "pk")
        return SimilarCompiler(query, connection, using, elide_empty)

    def is_exact(self) -> bool:
        distance = self.annotations.get("distance")
        return not isinstance(distance, SearchDistance) or isinstance(distance, ExactDistance)

    def exactly(self) -> "SimilarQuery":
        query: Any = self.clone()
        distance: Any = self.annotations["distance"]
        query.annotations = {**self.annotations, "distance": distance.exactly()}
        exact: SimilarQuery = query
        return exact
