from django.urls import path

from example_project.films import views

urlpatterns = [
    path("", views.search, name="search"),
    path("films/<int:pk>/", views.movie, name="movie"),
]
