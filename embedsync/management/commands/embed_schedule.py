"""``manage.py embed_schedule``: have a cluster of django-q2 sweep once a day, and embed."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime, time, timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, ProgrammingError, connections, router, transaction
from django.utils import timezone

from embedsync.management.arguments import seconds

DAILY, MINUTES = "D", "I"
LONGEST_SECONDS = 3600.0
SHARE = 0.8  # of the time after which a cluster takes a task for lost
WORK_SECONDS = 45.0  # of each minute, so that one run ends before the next begins

SWEEP = "embedsync sweep"
WORK = "embedsync work"


def time_of_day(text: str) -> time:
    try:
        return datetime.strptime(text, "%H:%M").time()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no time of day like 03:00") from None


class Command(BaseCommand):
    help = (
        "Schedules a daily sweep with django-q2, and on demand the work of embed_worker."
        " Running it again changes what is there."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--sweep-at",
            type=time_of_day,
            default=time(3),
            metavar="HH:MM",
            help="in the zone of TIME_ZONE (default: 03:00)",
        )
        parser.add_argument(
            "--max-seconds",
            type=seconds,
            metavar="S",
            help="how long a sweep may take; the next one goes on there (default: what the"
            f" cluster's retry and timeout allow, at most {LONGEST_SECONDS:.0f})",
        )
        parser.add_argument(
            "--work",
            action="store_true",
            help="embed what has changed, too, once a minute: where no embed_worker runs",
        )
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="the database to sweep")
        parser.add_argument("--remove", action="store_true", help="take the schedules away")

    def handle(self, *args: Any, **options: Any) -> None:
        using = options["database"]
        if using not in connections:
            raise CommandError(f"There is no database {using!r} in DATABASES.")
        schedules = schedule_model()
        suffix = "" if using == DEFAULT_DB_ALIAS else f" of {using}"
        try:
            with transaction.atomic(router.db_for_write(schedules)):
                if options["remove"]:
                    self.remove(schedules, f"{SWEEP}{suffix}")
                    self.remove(schedules, f"{WORK}{suffix}")
                    return
                self.schedule_sweep(schedules, f"{SWEEP}{suffix}", options)
                if options["work"]:
                    self.schedule_work(schedules, f"{WORK}{suffix}", using)
        except ProgrammingError as error:
            told = str(error).partition("\n")[0]
            raise CommandError(
                f"The tables of django-q2 are missing: run migrate. ({told})"
            ) from error

    def remove(self, schedules: Any, name: str) -> None:
        there = schedules.objects.filter(name=name)
        self.stdout.write(f"{name}: {'removed' if there.exists() else 'is not scheduled'}")
        there.delete()

    def schedule_sweep(self, schedules: Any, name: str, options: dict[str, Any]) -> None:
        seconds, at = self.seconds(options["max_seconds"], LONGEST_SECONDS), options["sweep_at"]
        schedule = the_only(schedules, name)
        schedule.func = "embedsync.tasks.sweep"
        arguments = {"repair": True, "max_seconds": seconds, "database": options["database"]}
        schedule.kwargs = repr(arguments)
        schedule.schedule_type = DAILY
        if schedule.next_run is None or local(schedule.next_run).time() != at:
            schedule.next_run = next_time(at)
        schedule.save()
        self.stdout.write(
            f"{name}: daily at {at:%H:%M}, for at most {seconds:.0f} s, next on"
            f" {local(schedule.next_run):%Y-%m-%d}. A running qcluster does it."
        )

    def schedule_work(self, schedules: Any, name: str, using: str) -> None:
        seconds = self.seconds(None, WORK_SECONDS)
        schedule = the_only(schedules, name)
        schedule.func = "embedsync.tasks.process_pending"
        schedule.kwargs = repr({"max_seconds": seconds, "database": using})
        schedule.schedule_type, schedule.minutes = MINUTES, 1
        schedule.next_run = schedule.next_run or timezone.now()
        schedule.save()
        self.stdout.write(f"{name}: every minute, for at most {seconds:.0f} s.")

    def seconds(self, asked: float | None, longest: float) -> float:
        """How long one run may take, so that the cluster does not take it for lost meanwhile.

        At most ``longest`` where nobody has asked.
        """
        conf = import_module("django_q.conf").Conf
        limits: dict[str, float | None] = {"retry": conf.RETRY, "timeout": conf.TIMEOUT}
        for name, limit in limits.items():
            if asked is not None and limit and asked >= limit:
                raise CommandError(
                    f"Q_CLUSTER[{name!r}] is {limit}: the cluster would not wait so long for a"
                    f" task. Raise it above {asked:.0f}, or give a smaller --max-seconds; the"
                    " next run goes on where one has stopped."
                )
        if asked is not None:
            return asked
        return min([longest, *(limit * SHARE for limit in limits.values() if limit)])


def schedule_model() -> Any:
    """django-q2's ``Schedule``. Raises ``CommandError`` where there is none."""
    if find_spec("django_q") is None:
        raise CommandError(
            "Schedules need django-q2: pip install 'django-q2>=1.8', add \"django_q\" to"
            " INSTALLED_APPS and run migrate."
        )
    if not apps.is_installed("django_q"):
        raise CommandError(
            'Schedules need django-q2, which is installed: add "django_q" to INSTALLED_APPS and run'
            " migrate."
        )
    return apps.get_app_config("django_q").get_model("Schedule")


def the_only(schedules: Any, name: str) -> Any:
    """The schedule of this name, without end; a new one where there is none."""
    there = list(schedules.objects.filter(name=name).order_by("pk"))
    for other in there[1:]:
        other.delete()
    schedule = there[0] if there else schedules(name=name, next_run=None)
    schedule.repeats = -1
    return schedule


def local(moment: datetime) -> datetime:
    """A moment as the clock on the wall shows it."""
    return (
        timezone.localtime(moment, timezone.get_default_timezone()) if settings.USE_TZ else moment
    )


def next_time(at: time) -> datetime:
    """The next moment at which it is this time of day."""
    now = local(timezone.now())
    today = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)
