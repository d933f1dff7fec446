from django.apps import AppConfig
from django.db.models.signals import post_migrate


class EmbedsyncConfig(AppConfig):
    name = "embedsync"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from embedsync import checks  # noqa: F401  (registers them)
        from embedsync.queue import forget_dropped

        post_migrate.connect(forget_dropped, sender=self, dispatch_uid="embedsync.forget_dropped")
