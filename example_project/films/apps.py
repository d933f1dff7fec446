from django.apps import AppConfig


class FilmsConfig(AppConfig):
    name = "example_project.films"
    label = "films"
