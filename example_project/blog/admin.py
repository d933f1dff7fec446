from django.contrib import admin

from example_project.blog.models import Post


@admin.register(Post)
class PostAdmin(admin.ModelAdmin):
    list_display = ["title", "published_time"]
    list_filter = [("published_time", admin.EmptyFieldListFilter)]
    prepopulated_fields = {"slug": ["title"]}
    search_fields = ["title", "body"]
