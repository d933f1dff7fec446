"""What ``migrate embedsync zero`` must not take along: the tables of a project's own apps."""

from typing import Any

from django.core.management.base import CommandError

OWN = "embedsync"
SHOWN = 5


def refuse_to_unapply_others(*, plan: Any = None, **_: Any) -> None:
    """Before a migration: refuse to go back beyond embedsync's own where other apps depend on it.

    Django would unapply what depends on it without a question, and an app's first migration does
    where its models were declared from the beginning: all its tables would go.
    """
    back = [migration for migration, backward in plan or () if backward]
    others = [f"{each.app_label}.{each.name}" for each in back if each.app_label != OWN]
    if not others or len(others) == len(back):
        return
    listed = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    raise CommandError(
        f"Nothing was done: {listed} would be unapplied, too, with the tables they made. To remove"
        ' embedsync see "Removing embedsync" in docs/operations.md. If those are to go, unapply'
        " them by themselves before."
    )
