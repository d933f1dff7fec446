"""Django's admin in a real browser: headless Chromium."""

import pytest
from django.utils import timezone

from embedsync.models import Ledger, Minute, SidecarState
from tests.books import KEY
from tests.owed import BOOKS, LATER, LEDGER, owe
from tests.test_browser import browser  # noqa: F401
from tests.test_browser import pytestmark as needs_browser

pytestmark = [needs_browser, pytest.mark.django_db(transaction=True)]


def test_a_parked_row_is_retried_in_a_browser(live_server, admin_user, browser):  # noqa: F811
    owe("17", error="RuntimeError: unwell")
    owe("18", LATER)

    def find(selector):
        return browser.find_element("css selector", selector)

    browser.get(live_server.url + LEDGER)
    find("#id_username").send_keys("admin")
    find("#id_password").send_keys("password\ue007")
    browser.find_element("link text", "parked").click()
    assert "state=parked" in browser.current_url
    [shown] = browser.find_elements("css selector", "th.field-source_pk")
    assert shown.text == "17"
    find("input.action-select").click()
    find("select[name=action] option[value=retry]").click()
    find("button[name=index]").click()
    assert find(".messagelist .success").text == "1 of 1 row due again."
    assert not Ledger.objects.filter(run_at=None).exists()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_chart_has_the_colours_of_the_theme(live_server, client, admin_user, browser, theme):  # noqa: F811
    Minute.objects.create(sidecar=KEY, minute=timezone.now(), embedded=30, failed=10, waiting=5)
    SidecarState.objects.get_or_create(key=KEY)
    client.force_login(admin_user)
    browser.get(live_server.url + "/admin/login/")
    browser.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})
    browser.get(f"{live_server.url}{BOOKS}change/")
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    fills = browser.execute_script(
        "return [...document.querySelectorAll('g.bar rect')]"
        ".filter(bar => bar.getBoundingClientRect().height > 0)"
        ".map(bar => getComputedStyle(bar).fill)"
    )
    variables = browser.execute_script(
        "const root = getComputedStyle(document.documentElement);"
        "return ['--secondary', '--error-fg'].map(name => root.getPropertyValue(name))"
    )
    assert fills == [rgb(colour) for colour in variables]


def rgb(colour):
    """``#417690``, as a browser computes it."""
    return f"rgb{tuple(bytes.fromhex(colour.strip('# ')))}"
