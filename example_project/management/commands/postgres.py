"""``manage.py postgres``: start, stop and look at the embedded PostgreSQL."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from example_project.postgres import Cluster, PostgresError


class Command(BaseCommand):
    help = "Starts, stops or describes the embedded PostgreSQL of this project."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        for name, purpose in (
            ("start", "Start it unless it runs, and create the project's database in it."),
            ("stop", "Stop it if it runs. Its data stays."),
            ("status", "Say whether and where it runs. Exit status 1 if it does not."),
        ):
            actions.add_parser(name, help=purpose, description=purpose)

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        if os.environ.get("DATABASE_URL") and action != "stop":
            self.stdout.write(
                "DATABASE_URL is set: the project uses the server that it names, and the embedded "
                "PostgreSQL is not needed. To use the embedded one, unset DATABASE_URL."
            )
            return
        try:
            getattr(self, f"_{action}")(Cluster.from_environment())
        except PostgresError as error:
            raise CommandError(str(error)) from error

    def _start(self, cluster: Cluster) -> None:
        cluster.start()
        name = settings.DATABASES["default"]["NAME"]
        if cluster.create_database(name):
            self.stdout.write(f"The database {name} was created.")
        self._describe(cluster)
        self.stdout.write("Stop it with: python manage.py postgres stop")

    def _stop(self, cluster: Cluster) -> None:
        cluster.stop()
        self.stdout.write(f"PostgreSQL in {cluster.data} is stopped. Its data stays.")

    def _status(self, cluster: Cluster) -> None:
        if not self._describe(cluster):
            self.stdout.write("Start it with: python manage.py postgres start")
            sys.exit(1)

    def _describe(self, cluster: Cluster) -> bool:
        status = cluster.status()
        if status is None:
            self.stdout.write(f"PostgreSQL in {cluster.data} is not running.")
            return False
        if not status.running:
            self.stdout.write(
                f"PostgreSQL in {cluster.data} does not answer: its process {status.pid} was "
                "killed or hangs. If start does not cure it, stop it first."
            )
            return False
        self.stdout.write(
            f"PostgreSQL {status.version} is running (process {status.pid}). It listens on port "
            f"{status.port} of the socket in {status.socket_dir}:\n"
            f"  {cluster.url(settings.DATABASES['default']['NAME'])}"
        )
        return True
