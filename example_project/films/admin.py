from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from example_project.films.models import Genre, Movie


@admin.register(Movie)
class MovieAdmin(admin.ModelAdmin):
    list_display = ["title", "year", "director", "genre_names", "published"]
    list_editable = ["published"]
    list_filter = ["published", "genres"]
    search_fields = ["title", "director", "cast"]
    filter_horizontal = ["genres"]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Movie]":
        return super().get_queryset(request).prefetch_related("genres")

    @admin.display(description="genres")
    def genre_names(self, movie: Movie) -> str:
        return ", ".join(genre.name for genre in movie.genres.all())


@admin.register(Genre)
class GenreAdmin(admin.ModelAdmin):
    list_display = ["name"]
    search_fields = ["name"]
