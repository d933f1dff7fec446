"""``manage.py load_posts``: load the blog's posts, as often as you like.

A post is a Markdown file whose first line is its title. ``2024-05-02-some-name.md`` was published
on that day; ``some-name.md`` is a draft.
"""

import re
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from example_project.blog.models import Post

SHIPPED = Path(__file__).resolve().parents[2] / "data"
NAME = re.compile(r"(?:(\d{4}-\d\d-\d\d)-)?([a-z0-9-]+)")


class Command(BaseCommand):
    help = "Loads posts from Markdown files. A post is known by its name; only changes write."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "folder", nargs="?", type=Path, default=SHIPPED, help="a folder of *.md"
        )

    def handle(self, *args: Any, folder: Path, **options: Any) -> None:
        files = sorted(folder.glob("*.md"))
        if not files:
            raise CommandError(f"There are no *.md files in {folder}.")
        with transaction.atomic():
            written = sum(store(read(file)) for file in files)
        self.stdout.write(f"{len(files)} posts read: {written} new or changed.")


def read(file: Path) -> dict[str, Any]:
    """The fields of the post in a file. Raises ``CommandError``."""
    name = NAME.fullmatch(file.stem)
    first, _, body = file.read_text(encoding="utf-8").partition("\n")
    if name is None or not first.startswith("# ") or not body.strip():
        raise CommandError(
            f"{file}: a post is called 2024-05-02-some-name.md, or some-name.md for a draft. Its"
            " first line is “# ” and its title, and its text is below. Nothing was loaded."
        )
    day, slug = name.groups()
    published = datetime.fromisoformat(day).replace(tzinfo=UTC) if day else None
    return {
        "slug": slug,
        "title": first.removeprefix("# ").strip(),
        "body": body.strip(),
        "published_time": published,
    }


def store(values: dict[str, Any]) -> bool:
    """Write a post where it is new or has changed; whether it has."""
    known = Post.objects.filter(slug=values["slug"]).values(*values).first()
    if known == values:
        return False
    Post.objects.update_or_create(slug=values["slug"], defaults=values)
    return True
