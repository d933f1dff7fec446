from django.apps import AppConfig


class PressConfig(AppConfig):
    name = "tests.press"
    default_auto_field = "django.db.models.BigAutoField"
