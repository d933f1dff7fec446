"""A chart of what workers did in the last hours: its figures, and where they stand in an SVG."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from django.utils import timezone

from embedsync.models import Minute

STEPS = {1: 1, 6: 5, 24: 15, 48: 30}  # minutes of a bar, by the hours that are shown
USUAL_HOURS = 24
WIDTH, HEIGHT = 1440, 200  # of the plot; each of the numbers of bars divides the width


@dataclass(frozen=True)
class Point:
    """What was done in one step from ``since`` on, and the most rows that waited in it."""

    since: datetime
    done: int = 0
    failed: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Bar:
    """A point's place in the plot: ``done`` and, on top of it, ``failed`` are heights."""

    point: Point
    x: int
    width: int
    done: int
    failed: int

    @property
    def done_top(self) -> int:
        return HEIGHT - self.done

    @property
    def failed_top(self) -> int:
        return HEIGHT - self.done - self.failed


@dataclass(frozen=True)
class Chart:
    """Two plots over the same time: bars of what was done, and a line of what waited."""

    hours: int
    until: datetime
    points: list[Point]

    @classmethod
    def of(cls, sidecar: str, asked: str = "") -> Self:
        """The chart of a sidecar up to now, for as many hours as ``asked``, one of ``STEPS``."""
        hours = next((hours for hours in STEPS if str(hours) == asked), USUAL_HOURS)
        until = end_of_step(timezone.now(), STEPS[hours])
        since = until - timedelta(hours=hours)
        minutes = Minute.objects.filter(sidecar=sidecar, minute__gte=since, minute__lt=until)
        return cls(hours, until, points(minutes, since, hours))

    @property
    def step(self) -> int:
        """The minutes of a bar."""
        return STEPS[self.hours]

    @property
    def done(self) -> int:
        return sum(point.done for point in self.points)

    @property
    def failed(self) -> int:
        return sum(point.failed for point in self.points)

    @property
    def most_done(self) -> int:
        """What the top of the bars stands for."""
        return max(point.done + point.failed for point in self.points)

    @property
    def most_waiting(self) -> int:
        """What the top of the line's plot stands for."""
        return max(point.waiting for point in self.points)

    @property
    def bars(self) -> list[Bar]:
        width = WIDTH // len(self.points)
        return [
            Bar(
                point,
                number * width,
                width,
                scaled(point.done, self.most_done),
                scaled(point.failed, self.most_done),
            )
            for number, point in enumerate(self.points)
        ]

    @property
    def line(self) -> str:
        """The line of what waited, through the middles of the bars, as ``<polyline>`` has it."""
        return " ".join(
            f"{bar.x + bar.width // 2},{HEIGHT - scaled(bar.point.waiting, self.most_waiting)}"
            for bar in self.bars
        )

    @property
    def middle(self) -> datetime:
        return self.until - timedelta(hours=self.hours) / 2


def points(minutes: Iterable[Minute], since: datetime, hours: int) -> list[Point]:
    """Minutes as points, one a step; where no minute is, nothing was done."""
    step = timedelta(minutes=STEPS[hours])
    found: list[list[Minute]] = [[] for _ in range(timedelta(hours=hours) // step)]
    for minute in minutes:
        found[(minute.minute - since) // step].append(minute)
    return [
        Point(
            since + number * step,
            done=sum(minute.embedded + minute.unchanged for minute in inside),
            failed=sum(minute.failed for minute in inside),
            waiting=max((minute.waiting for minute in inside), default=0),
        )
        for number, inside in enumerate(found)
    ]


def end_of_step(now: datetime, minutes: int) -> datetime:
    """When the step of so many minutes ends that a moment is in."""
    begun = now.replace(minute=now.minute - now.minute % minutes, second=0, microsecond=0)
    return begun + timedelta(minutes=minutes)


def scaled(rows: int, most: int) -> int:
    """The height that so many rows have in a plot; what is not zero can be seen."""
    return -(-rows * HEIGHT // most) if rows else 0
