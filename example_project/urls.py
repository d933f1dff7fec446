from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("example_project.films.urls")),
    path("blog/", include("example_project.blog.urls")),
    path("admin/", admin.site.urls),
]
