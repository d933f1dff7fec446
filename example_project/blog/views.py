"""The blog: a search that finds the passage that matters, and a page for each post."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from example_project.blog.forms import PostSearchForm
from example_project.blog.markdown import as_html, as_words
from example_project.blog.models import Post

SHOWN = 10
ALIKE = 3
EXAMPLES = [
    "why old films catch fire",
    "music for films without sound",
    "making footsteps in a studio",
    "how to begin a film club",
]


@require_safe
def posts(request: HttpRequest) -> HttpResponse:
    """The posts nearest to a text, each with its passage; or the newest ones without a text."""
    form = PostSearchForm(request.GET, label_suffix="")
    form.is_valid()
    query = form.cleaned_data.get("q", "")
    embedded = Post.embedding.model.objects.exists()
    found = Post.objects.filter(published_time__isnull=False)
    if query:
        # Without vectors nothing can be found: no need to load a model for that.
        found = found.similar(query) if embedded else found.none()
    shown = list(found[:SHOWN])
    for post in shown:
        post.excerpt = as_words(post.passage if query else post.body)
    context = {
        "form": form,
        "query": query,
        "posts": shown,
        "embedded": embedded,
        "examples": EXAMPLES,
    }
    return render(request, "blog/posts.html", context)


@require_safe
def post(request: HttpRequest, slug: str) -> HttpResponse:
    """One post, and the posts that are about the most similar things."""
    found = get_object_or_404(Post, slug=slug, published_time__isnull=False)
    try:
        alike = list(found.similar()[:ALIKE])
    except ValueError:
        alike = []  # its text has no vectors yet
    context = {"post": found, "body": as_html(found.body), "alike": alike}
    return render(request, "blog/post.html", context)
