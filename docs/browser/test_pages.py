"""The built documentation site in a real browser, from files, without a network.

`ci/docs --browse` runs this with Selenium, Debian's Chromium and its driver.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = sorted(str(path.relative_to(SITE)) for path in (SITE / "docs").rglob("*.html"))
PATIENCE = 30.0


def open_page(browser: Any, page: str) -> None:
    browser.get((SITE / page).as_uri())


def test_home_leads_to_each_page(browser: Any) -> None:
    open_page(browser, "docs/index.html")
    links = {
        link.get_attribute("href").partition("#")[0] for link in browser.find_elements(By.CSS_SELECTOR, ".sidebar-tree a")
    }
    assert {(SITE / page).as_uri() for page in PAGES if page != "docs/index.html"} <= links


def test_navigation(browser: Any) -> None:
    open_page(browser, "docs/index.html")
    browser.find_element(By.LINK_TEXT, "Many items").click()
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("Many items")
    onwards = browser.find_element(By.CSS_SELECTOR, "a.next-page")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", onwards)
    onwards.click()
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("Workers of your own")


def test_search(browser: Any) -> None:
    open_page(browser, "docs/index.html")
    field = browser.find_element(By.CSS_SELECTOR, ".sidebar-search")
    field.send_keys("retire_when")
    field.submit()
    wait = WebDriverWait(browser, PATIENCE)
    first = wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#search-results li a"))[0]
    assert "retire_when" in first.text
    first.click()
    assert "retire_when" in browser.find_element(By.TAG_NAME, "article").text


def test_code_can_be_copied(browser: Any) -> None:
    open_page(browser, "docs/quickstart.html")
    blocks = browser.find_elements(By.CSS_SELECTOR, ".highlight-python")
    block = next(block for block in blocks if "factorial" in block.text)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", block)
    # Browsers write to the clipboard only after a real click.
    button = block.find_element(By.CSS_SELECTOR, "button.copybtn")
    ActionChains(browser).move_to_element(block).move_to_element(button).click().perform()
    browser.execute_script(
        "const area = document.createElement('textarea'); area.id = 'pasted'; document.body.prepend(area); area.focus()"
    )
    area = browser.find_element(By.ID, "pasted")
    area.send_keys(Keys.CONTROL, "v")
    assert area.get_property("value").strip() == block.find_element(By.TAG_NAME, "pre").text.strip()


@pytest.mark.parametrize("page", PAGES)
def test_narrow_screen(page: str, browser: Any) -> None:
    """The page itself does not scroll sideways. Wide tables and code scroll in their own boxes."""
    size = browser.get_window_size()
    browser.set_window_size(500, 900)
    try:
        open_page(browser, page)
        wide, shown = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
    finally:
        browser.set_window_size(size["width"], size["height"])
    assert wide <= shown


def test_dark_mode(browser: Any) -> None:
    open_page(browser, "docs/index.html")
    seen = set()
    for _ in range(3):  # automatic, light, dark
        seen.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        browser.execute_script("document.querySelector('.theme-toggle').click()")
    assert len(seen) == 2


def test_no_page_needs_a_network(browser: Any) -> None:
    for page in PAGES:
        open_page(browser, page)
        sources = browser.execute_script(
            "return [...document.querySelectorAll('[src], link[rel=stylesheet]')].map(element => element.src || element.href)"
        )
        assert [source for source in sources if not source.startswith(("file:", "data:"))] == [], page


def test_signatures_have_a_line_for_each_parameter(browser: Any) -> None:
    """One that Sphinx cannot read becomes a paragraph with full names and reprs."""
    for page in PAGES:
        open_page(browser, page)
        signatures = [found.text for found in browser.find_elements(By.CSS_SELECTOR, "dt.sig")]
        assert not [text for text in signatures if "~" in text or "<" in text]
