"""The page of a run (`trio-offload report`) in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from trio_offload._report.page import page_of
from trio_offload._report.run import TracedJob, TracedRun, TracedWorker

PICTURES = ["workers", "memory", "load", "queue", "durations"]
PATIENCE = 60.0


def run_of(jobs: int) -> TracedRun:
    run = TracedRun(memory_limit=1 << 26, waiting=[(0.0, jobs), (jobs * 1e-3, 0)])
    for pid in (11, 12):
        run.workers[pid] = TracedWorker(pid, 0.0, 0.1, None, [(0.1, 1 << 24), (0.5, 1 << 26)])
    for number in range(jobs):
        outcome = "raised" if number % 10 == 3 else "ok"
        error = "ValueError: <no>" if outcome == "raised" else ""
        run.jobs.append(
            TracedJob(
                11 + number % 2, "jobs.<lambda>", number * 1e-3, number * 1e-3 + 9e-4, outcome, error, "in work", "item <7>"
            )
        )
    return run


def open_page(browser: Any, run: TracedRun, folder: Path) -> None:
    """Open the page of a run, and wait until its pictures are drawn."""
    (folder / "run.html").write_text(page_of(run, "a run"), encoding="utf-8")
    browser.get((folder / "run.html").as_uri())
    WebDriverWait(browser, PATIENCE).until(lambda driver: driver.execute_script("return 'drawn' in document.body.dataset"))


@pytest.mark.parametrize("jobs", [100, 100_000])
def test_pictures(jobs: int, browser: Any, tmp_path: Path) -> None:
    open_page(browser, run_of(jobs), tmp_path)
    for name in PICTURES:
        assert browser.find_element(By.CSS_SELECTOR, f"#{name} .main-svg").size["height"] > 100
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    summary = browser.find_element(By.TAG_NAME, "summary")
    assert summary.text == f"ValueError: {jobs // 10:,}"
    summary.click()
    assert "<no>" in browser.find_element(By.TAG_NAME, "details").text


def test_run_without_jobs(browser: Any, tmp_path: Path) -> None:
    """A section without a picture says why."""
    open_page(browser, TracedRun(), tmp_path)
    assert browser.find_elements(By.CSS_SELECTOR, ".main-svg") == []
    assert all(len(browser.find_element(By.ID, name).text.splitlines()) == 2 for name in PICTURES)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_text_over_a_job(browser: Any, tmp_path: Path) -> None:
    """Names that look like tags are shown as they are."""
    open_page(browser, run_of(2), tmp_path)
    browser.execute_script(
        "const plot = document.querySelector('#workers .plot');"
        "Plotly.Fx.hover(plot, [{curveNumber: plot.data.findIndex(each => each.name == 'ok'), pointNumber: 0}])"
    )
    (text,) = WebDriverWait(browser, PATIENCE).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "#workers .hoverlayer .hovertext text.nums")
    )
    assert "jobs.<lambda>" in text.text
    assert "item <7>" in text.text


def test_narrow_screen(browser: Any, tmp_path: Path) -> None:
    size = browser.get_window_size()
    browser.set_window_size(500, 900)
    try:
        open_page(browser, run_of(100), tmp_path)
        wide, shown = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
    finally:
        browser.set_window_size(size["width"], size["height"])
    assert wide <= shown


def test_light_and_dark(browser: Any, tmp_path: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        open_page(browser, run_of(100), tmp_path)
        tick = browser.find_element(By.CSS_SELECTOR, "#load .xtick text")
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        colours[scheme] = (ground, browser.execute_script("return getComputedStyle(arguments[0]).fill", tick))
    assert colours["light"] == ("rgb(255, 255, 255)", "rgb(34, 34, 34)")
    assert colours["dark"] == ("rgb(22, 24, 28)", "rgb(221, 221, 221)")
