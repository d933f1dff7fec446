"""Django's admin: what is owed row by row, how each sidecar is, and who works.

All of it is for reading, but for two actions on the ledger. No text of a row is shown: of an error
only the first line, because the next may quote the row.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import models, router
from django.db.models import Case, F, Func, Value, When
from django.db.models.functions import Now
from django.db.models.lookups import GreaterThan
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.text import Truncator
from django.utils.timesince import timesince

from embedsync import ledger
from embedsync.chart import STEPS, Chart
from embedsync.declaration import key_of
from embedsync.models import LedgerRow, SidecarState, WorkerState
from embedsync.sql import statement
from embedsync.state import ALIVE_SECONDS
from embedsync.status import COUNTED, SidecarStatus, chosen, statuses
from embedsync.words import plural

ALIVE = timedelta(seconds=ALIVE_SECONDS)
SHOWN_OF_ERROR = 100
ROWS_AT_ONCE = 10_000  # of an action
# Of the ledger, which is empty where no worker has seen the events yet.
SUBTITLE = "What workers have taken in; events that nobody has seen are counted in Sidecar states"

# As in status.sql: a row whose lease has run out waits.
STATE = Case(
    When(run_at=None, then=Value("parked")),
    When(token__isnull=False, run_at__gt=Now(), then=Value("leased")),
    default=Value("waiting"),
)
FIRST_LINE = Func(
    F("last_error"),
    Value("\n"),
    Value(1),
    function="split_part",
    output_field=models.TextField(),
)
# Of a worker, by the database's clock.
LAST_HEARD = Func(template=statement("heard"), output_field=models.DateTimeField())
IS_ALIVE = GreaterThan(LAST_HEARD, Now() - ALIVE)


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Shows rows that nobody edits by hand."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def may(self, request: HttpRequest, verb: str) -> bool:
        """Whether the user has one of the permissions that Django makes for each model."""
        return request.user.has_perm(f"{self.opts.app_label}.{verb}_{self.opts.model_name}")


class ColumnFilter(admin.SimpleListFilter):
    """By one of the values that a column is known to have, without a look at all rows for them."""

    def values(self) -> Iterable[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return (
            queryset.filter(**{str(self.parameter_name): self.value()})
            if self.value()
            else queryset
        )


class StateFilter(ColumnFilter):
    title = parameter_name = "state"

    def values(self) -> Iterable[str]:
        return ["waiting", "leased", "parked"]


class SidecarFilter(ColumnFilter):
    title = parameter_name = "sidecar"

    def values(self) -> Iterable[str]:
        return SidecarState.objects.order_by("key").values_list("key", flat=True)


class WorkerFilter(ColumnFilter):
    """By the worker that had a row last, of those that have not ended."""

    title = parameter_name = "worker"

    def values(self) -> Iterable[str]:
        return WorkerState.objects.order_by("name").values_list("name", flat=True)


@admin.register(LedgerRow)
class LedgerRowAdmin(ReadOnlyAdmin):
    """What is owed, row by row. Retry takes the permission to change, Discard the one to delete."""

    list_display = ["source_pk", "sidecar", "state", "attempts", "age", "worker", "short_error"]
    list_filter = [StateFilter, SidecarFilter, WorkerFilter]
    search_fields = ["source_pk", "error"]
    # The order of the primary key: a page of it is cheap however many rows are owed.
    ordering = ["sidecar", "source_pk"]
    readonly_fields: ClassVar[Any] = [
        "sidecar",
        "source_pk",
        "state",
        "attempts",
        "queued_at",
        "run_at",
        "dirty",
        "worker",
        "error",
    ]
    fields = readonly_fields
    actions = ["retry", "discard"]

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request).defer("last_error")
        return rows.annotate(state=STATE, error=FIRST_LINE)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {"subtitle": SUBTITLE, **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        # By the ledger's own key, which has an index; no sidecar has a space in its name.
        sidecar, _, source_pk = object_id.partition(" ")
        return self.get_queryset(request).filter(sidecar=sidecar, source_pk=source_pk).first()

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "change")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "delete")

    @admin.display(ordering="state")
    def state(self, row: Any) -> str:
        return str(row.state)

    @admin.display(ordering="-queued_at")
    def age(self, row: Any) -> str:
        return since(row.queued_at)

    @admin.display(description="error")
    def short_error(self, row: Any) -> str:
        return Truncator(row.error).chars(SHOWN_OF_ERROR)

    @admin.display
    def error(self, row: Any) -> str:
        return str(row.error)

    @admin.action(permissions=["retry"], description="Retry: parked rows are due again")
    def retry(self, request: HttpRequest, rows: "models.QuerySet[Any]") -> None:
        pairs, using = pairs_of(rows), router.db_for_write(LedgerRow)
        retried = sum(
            ledger.retry(using, [key], pks=[pk for _, pk in group])
            for page in pages(pairs)
            for key, group in groupby(page, itemgetter(0))
        )
        said = [f"{retried:,} of {plural(len(pairs))} due again."]
        if retried < len(pairs):
            said.append("The others are not parked.")
        self.tell(request, said, is_well=retried > 0)

    @admin.action(
        permissions=["discard"],
        description="Discard: a vector may stay missing or stale until its row changes",
    )
    def discard(self, request: HttpRequest, rows: "models.QuerySet[Any]") -> None:
        pairs, using = pairs_of(rows), router.db_for_write(LedgerRow)
        discarded = sum(ledger.discard(using, page) for page in pages(pairs))
        said = [f"{discarded:,} of {plural(len(pairs))} discarded."]
        if discarded < len(pairs):
            said.append("The others are in a worker's hands, or done by now.")
        if discarded:
            said.append(
                "Vectors may stay missing or stale until the rows change or a sweep finds them:"
                " manage.py embed_sweep --repair."
            )
        self.tell(request, said, is_well=discarded > 0)

    def tell(self, request: HttpRequest, said: list[str], *, is_well: bool) -> None:
        level = messages.SUCCESS if is_well else messages.WARNING
        self.message_user(request, " ".join(said), level)


def figure(
    name: str, read: Callable[[SidecarStatus], str], otherwise: str = "-"
) -> Callable[[Any], str]:
    """A column of what a status tells, and what it says of a sidecar without one."""

    @admin.display(description=name)
    def told(state: Any) -> str:
        return (read(state.status) if state.status else "") or otherwise

    told.__name__ = name.replace(" ", "_")
    return told


def rows_of(status: SidecarStatus) -> str:
    if status.rows is None:
        return "?"
    return f"{'~' if status.rows_are_estimated else ''}{status.rows:,}"


def fill_of(status: SidecarStatus) -> str:
    fill = status.fill
    if fill.left is None:
        return fill.state
    over = "over " if fill.left >= COUNTED else ""
    return f"{fill.state}, {over}{fill.left:,} to go"


FIGURES = [
    figure("embedded", rows_of),
    figure("waiting", lambda status: f"{status.waiting:,}"),
    figure("leased", lambda status: f"{status.leased:,}"),
    figure("parked", lambda status: f"{status.parked:,}"),
    figure("oldest wait", lambda status: in_words(status.oldest_wait)),
    figure("fill", fill_of, otherwise="not declared by this project"),
]
ERRORS = [
    figure("schema error", lambda status: status.schema_error),
    figure("error", lambda status: status.error),
    figure("last error", lambda status: status.last_error),
]


class SidecarChangeList(ChangeList):
    """A page of sidecars, each with its status, found for all of them at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list: Any = with_status(self.result_list)


@admin.register(SidecarState)
class SidecarStateAdmin(ReadOnlyAdmin):
    """How each sidecar is, as ``embed_status`` tells it; and a chart of what was done lately."""

    list_display = ["key", *FIGURES]
    search_fields = ["key"]
    ordering = ["key"]
    readonly_fields: ClassVar[Any] = ["key", *FIGURES, *ERRORS, "embedder", "swept_at"]
    fields = readonly_fields

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return SidecarChangeList

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        found = super().get_object(request, object_id, from_field)
        return None if found is None else with_status([found])[0]

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        context["chart"] = Chart.of(context["original"].pk, request.GET.get("hours", ""))
        context["hours"] = list(STEPS)
        alive = WorkerState.objects.annotate(heard_at=LAST_HEARD).filter(IS_ALIVE)
        context["workers"] = alive.order_by("name")
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(WorkerState)
class WorkerStateAdmin(ReadOnlyAdmin):
    """The workers that have not ended in order, those that died included."""

    readonly_fields: ClassVar[Any] = ["name", "alive", "doing", "started_at", "heard_at", "settled"]
    fields = list_display = readonly_fields
    search_fields = ["name"]
    ordering = ["name"]

    def get_queryset(self, request: HttpRequest) -> Any:
        found = super().get_queryset(request).annotate(heard_at=LAST_HEARD)
        return found.annotate(alive=IS_ALIVE)

    @admin.display(boolean=True)
    def alive(self, worker: Any) -> bool:
        return bool(worker.alive)

    @admin.display(description="last heard of")
    def heard_at(self, worker: Any) -> Any:
        return worker.heard_at


def pairs_of(rows: "models.QuerySet[Any]") -> list[tuple[str, str]]:
    """Sidecar and key of rows of the ledger, in this order."""
    return sorted(rows.order_by().values_list("sidecar", "source_pk"))


def pages(pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Pairs in parts, each for a transaction of its own: nobody waits for more than one."""
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        yield pairs[start : start + ROWS_AT_ONCE]


def with_status(states: Iterable[Any]) -> list[Any]:
    """These sidecars with their ``status``; None for one that this project has no more."""
    found = list(states)
    keys = {state.pk for state in found}
    here = chosen([], router.db_for_write(SidecarState))
    told = statuses(
        router.db_for_read(SidecarState), [sidecar for sidecar in here if key_of(sidecar) in keys]
    )
    by_key: dict[str, SidecarStatus] = {status.sidecar: status for status in told}
    for state in found:
        state.status = by_key.get(state.pk)
    return found


def since(moment: Any) -> str:
    """How long ago something was, for people."""
    return in_words((timezone.now() - moment).total_seconds())


def in_words(seconds: float) -> str:
    """A time for people: seconds where it is short, which ``timesince`` calls 0 minutes."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    now = timezone.now()
    return timesince(now - timedelta(seconds=seconds), now)
