"""The blog in a real browser: headless Chromium."""

import pytest
from django.core.management import call_command

from tests.test_browser import browser, pytestmark, resize  # noqa: F401


@pytest.fixture
def blog(drain, live_server, browser):  # noqa: F811
    """The browser at the blog; nothing may go wrong in its console."""
    call_command("load_posts", verbosity=0)
    drain()
    resize(browser, 1280)
    browser.get_log("browser")
    browser.get(live_server.url)
    browser.find_element("link text", "Blog").click()
    browser.find_element("css selector", ".examples")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_search_shows_the_passage_and_leads_to_the_post(blog):
    box = blog.find_element("css selector", "input[name=q]")
    box.send_keys("a leather pouch of corn starch for snow", "\ue007")
    passage = blog.find_element("css selector", ".passage")
    assert "corn starch in a leather pouch" in passage.text
    assert blog.find_element("css selector", ".distance").is_displayed()
    link = blog.find_element("css selector", ".film h3 a")
    assert link.text == "Footsteps are made in a studio"
    link.click()
    blog.find_element("css selector", ".post")
    assert blog.find_element("tag name", "h1").text == "Footsteps are made in a studio"
    assert blog.find_element("id", "alike").text == "Read on"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_scrolls_sideways(blog, live_server, width):
    resize(blog, width)
    for page in ("/blog/", "/blog/?q=fire", "/blog/?q=" + "W" * 300, "/blog/cutting/"):
        blog.get(live_server.url + page)
        assert blog.find_element("tag name", "h1").is_displayed()
        wide, shown = blog.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        )
        assert wide <= shown, page
