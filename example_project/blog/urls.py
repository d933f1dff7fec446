from django.urls import path

from example_project.blog import views

urlpatterns = [
    path("", views.posts, name="posts"),
    path("<slug:slug>/", views.post, name="post"),
]
