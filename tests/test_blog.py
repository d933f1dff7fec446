"""The example project's blog: long posts, found by the passage that matters."""

import html
import re

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from example_project.blog.markdown import as_html, as_words
from example_project.blog.models import Post

QUESTIONS = {
    "a leather pouch of corn starch for snow": ("Footsteps are made in a studio", "coconut"),
    "removing scratches from damaged film": ("How a film is restored", "scratch"),
    "do I need permission to show a film": ("How to start a film club", "licence"),
    "a film that stops and melts": ("The last reel: a projectionist remembers", "melt"),
}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def posts(drain):
    call_command("load_posts", verbosity=0)
    drain()


def titles(response):
    return [post.title for post in response.context["posts"]]


def text_of(response):
    body = response.content.decode().split("<main", 1)[1]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_posts_that_come_with_the_project(posts, capsys):
    assert Post.objects.count() == 18
    drafts = Post.objects.filter(published_time=None)
    assert drafts.count() == 2
    sidecar = Post.embedding.model
    assert not sidecar.objects.filter(source__in=drafts).exists()
    assert sidecar.objects.count() > 3 * 16
    assert not sidecar.objects.filter(cut=True).exists()
    call_command("load_posts")
    assert "18 posts read: 0 new or changed." in capsys.readouterr().out


def test_a_post_is_found_by_its_passage(client, posts):
    for query, (title, word) in QUESTIONS.items():
        response = client.get("/blog/", {"q": query})
        first = response.context["posts"][0]
        assert first.title == title
        assert word in first.passage
        assert len(titles(response)) == len(set(titles(response))) == 10
        assert as_words(first.passage)[:60] in html.unescape(text_of(response))


def test_drafts_are_neither_shown_nor_found(client, posts):
    assert Post.objects.filter(slug="summer-in-the-open").exists()
    for query in ({}, {"q": "deck chairs in the courtyard of the brewery in August"}):
        assert "Summer in the open: what we need" not in titles(client.get("/blog/", query))
    assert client.get("/blog/summer-in-the-open/").status_code == 404
    Post.objects.filter(slug="nitrate").update(published_time=None)
    assert "Why old films catch fire" not in titles(client.get("/blog/", {"q": "film on fire"}))


def test_a_draft_is_found_when_it_is_published(client, posts, drain):
    Post.objects.filter(slug="summer-in-the-open").update(published_time=timezone.now())
    drain()
    found = client.get("/blog/", {"q": "deck chairs in the courtyard of the brewery in August"})
    assert titles(found)[0] == "Summer in the open: what we need"


def test_the_page_of_a_post(client, posts):
    response = client.get("/blog/footsteps/")
    assert "<h2>The tools of the trade</h2>" in response.content.decode()
    assert "Read on" in text_of(response)
    assert len(response.context["alike"]) == 3


def test_before_there_are_vectors_or_posts(client, transactional_db):
    assert "manage.py load_posts" in text_of(client.get("/blog/"))
    call_command("load_posts", verbosity=0)
    assert "embed_worker" in text_of(client.get("/blog/", {"q": "fire"}))
    assert client.get("/blog/nitrate/").status_code == 200
    assert client.get("/blog/", {"q": "x" * 301}).context["form"].errors["q"]


def test_markdown_is_shown_without_html_of_its_own():
    shown = as_html("<script>alert(1)</script> *x* [y](javascript:alert(1))")
    assert "<script" not in shown
    assert "<em>x</em>" in shown
    assert "href" not in shown
    text = "# A *title*\n\n* one\n* `two`\n\n```\ncode\n```\nand [a link](/x)\nends"
    assert as_words(text) == "A title one two code and a link ends"


@pytest.mark.parametrize("name", ["Bad Name.md", "2024-01-18-x.md"])
def test_files_that_are_no_posts(tmp_path, name):
    (tmp_path / name).write_text("no title\n")
    with pytest.raises(CommandError, match="Nothing was loaded"):
        call_command("load_posts", str(tmp_path))
    with pytest.raises(CommandError, match=r"no \*.md files"):
        call_command("load_posts", str(tmp_path / "elsewhere"))


def test_the_demo_searches_the_blog(posts, drain, capsys):
    call_command("load_films", "--limit", "20", verbosity=0)
    drain()
    call_command("demo")
    printed = capsys.readouterr().out
    assert printed.count("In the blog: ") == 2
    assert re.search(r"^ {4}\d\.\d\d  Footsteps are made in a studio$", printed, re.MULTILINE)
