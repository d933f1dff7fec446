"""The film site in a real browser: headless Chromium."""

from pathlib import Path

import pytest
from django.core.management import call_command

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FILMS = """
{"title": "Deep Blue", "year": 1990, "genres": ["Sea"], "director": "Ida Brook", \
"plot_summary": "A fisherman is dragged under by a giant squid."}
{"title": "Salt", "year": 1995, "genres": ["Sea"], "extract": "Sailors drift on the ocean.", \
"href": "Salt_(film)"}
{"title": "Red Dust", "year": 2001, "genres": ["Space"], \
"plot_summary": "Astronauts land on Mars and find a buried door."}
{"title": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", \
"year": 2010, "plot_summary": "A clerk gets lost in the corridors of a shipping company."}
"""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()),
    reason=f"Chromium is not installed ({CHROMIUM} and {DRIVER}: apt install chromium-driver)",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    driver.implicitly_wait(30)  # the first search loads the model
    yield driver
    driver.quit()


@pytest.fixture
def films(drain, tmp_path):
    file = tmp_path / "films.jsonl"
    file.write_text(FILMS, encoding="utf-8")
    call_command("load_films", str(file), verbosity=0)
    drain()


@pytest.fixture
def site(films, live_server, browser):
    """The browser at the site's first page; nothing may go wrong in its console."""
    resize(browser, 1280)
    browser.get_log("browser")
    browser.get(live_server.url)
    yield browser
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def resize(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def search(browser, text):
    box = browser.find_element("css selector", "input[name=q]")
    box.clear()
    box.send_keys(text, "\ue007")
    browser.find_element("css selector", ".distance")


def found(browser):
    return [link.text for link in browser.find_elements("css selector", ".film h3 a")]


def test_typing_and_enter_searches(site):
    search(site, "a tentacled beast attacks")
    assert found(site)[0] == "Deep Blue"
    assert "a tentacled beast attacks" in site.title
    box = site.find_element("css selector", "input[name=q]")
    assert box.get_attribute("value") == "a tentacled beast attacks"


def test_a_result_leads_to_its_film_and_to_others_like_it(site):
    search(site, "a tentacled beast attacks")
    site.find_element("link text", "Deep Blue").click()
    site.find_element("css selector", ".movie")
    assert site.find_element("tag name", "h1").text == "Deep Blue 1990"
    assert "Ida Brook" in site.find_element("css selector", "dl").text
    assert site.find_element("id", "alike").text == "More like this"
    assert found(site)[0] == "Salt"
    assert site.find_element("link text", "CC BY-SA 4.0").is_displayed()


def test_the_keyboard_reaches_the_content_first(site):
    site.switch_to.active_element.send_keys("\ue004")
    skip = site.switch_to.active_element
    assert skip.text == "Skip to the content"
    skip.send_keys("\ue007")
    assert site.switch_to.active_element.get_attribute("id") == "main"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_scrolls_sideways(site, live_server, width):
    resize(site, width)
    pages = ["/", "/?q=a+monster", "/?q=" + "W" * 300, "/?genre=Opera&year_from=x&page=7"]
    pages += [link.get_attribute("href") for link in site.find_elements("css selector", "h3 a")]
    for page in pages:
        site.get(page if "://" in page else live_server.url + page)
        assert site.find_element("tag name", "h1").is_displayed()
        page_width, window, shown = site.execute_script(
            "const page = document.documentElement;"
            "return [page.scrollWidth, window.innerWidth, page.clientWidth]"
        )
        assert window == width
        assert page_width <= shown, page
