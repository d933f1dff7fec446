"""The app: its checks, and what it does before and after migrations."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate, pre_migrate


class EmbedsyncConfig(AppConfig):
    """What Django finds under the name in ``INSTALLED_APPS``."""

    name = "embedsync"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from embedsync import checks  # noqa: F401  (registers them)
        from embedsync.declaration import add_dependencies
        from embedsync.resize import resize_in_plan
        from embedsync.state import forget_dropped
        from embedsync.triggers import renew_triggers
        from embedsync.unapplied import refuse_to_unapply_others

        add_dependencies()
        for receiver in (renew_triggers, forget_dropped):
            name = f"embedsync.{receiver.__name__}"
            post_migrate.connect(receiver, sender=self, dispatch_uid=name)
        for receiver in (refuse_to_unapply_others, resize_in_plan):
            name = f"embedsync.{receiver.__name__}"
            pre_migrate.connect(receiver, sender=self, dispatch_uid=name)
