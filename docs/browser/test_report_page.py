"""The page of a run (`trio-offload report`) in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from trio_offload._report.page import page_of
from trio_offload._report.run import TracedJob, TracedRun, TracedWorker

PICTURES = ["workers", "memory", "load", "durations"]
PATIENCE = 60.0


def run_of(jobs: int) -> TracedRun:
    run = TracedRun(memory_limit=1 << 28)
    for pid in (11, 12):
        run.workers[pid] = TracedWorker(pid, 0.0, 0.1, None, [(0.1, 1 << 24), (0.5, 1 << 26)])
    for number in range(jobs):
        outcome = "raised" if number % 10 == 3 else "ok"
        error = "ValueError: <no>" if outcome == "raised" else ""
        run.jobs.append(
            TracedJob(11 + number % 2, "jobs.work", number * 1e-3, number * 1e-3 + 9e-4, outcome, error, "in work")
        )
    return run


@pytest.mark.parametrize("jobs", [100, 100_000])
def test_pictures(jobs: int, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "run.html").write_text(page_of(run_of(jobs), "a run"), encoding="utf-8")
    browser.get((tmp_path / "run.html").as_uri())
    WebDriverWait(browser, PATIENCE).until(
        lambda driver: len(driver.find_elements(By.CSS_SELECTOR, ".main-svg")) >= len(PICTURES)
    )
    for name in PICTURES:
        assert browser.find_element(By.CSS_SELECTOR, f"#{name} .main-svg").size["height"] > 100
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    summary = browser.find_element(By.TAG_NAME, "summary")
    assert summary.text == f"ValueError: {jobs // 10:,}"
    summary.click()
    assert "<no>" in browser.find_element(By.TAG_NAME, "details").text


def test_light_and_dark(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "run.html").write_text(page_of(run_of(100), "a run"), encoding="utf-8")
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get((tmp_path / "run.html").as_uri())
        tick = WebDriverWait(browser, PATIENCE).until(
            lambda driver: driver.find_elements(By.CSS_SELECTOR, "#load .xtick text")
        )[0]
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        colours[scheme] = (ground, browser.execute_script("return getComputedStyle(arguments[0]).fill", tick))
    assert colours["light"] == ("rgb(255, 255, 255)", "rgb(34, 34, 34)")
    assert colours["dark"] == ("rgb(22, 24, 28)", "rgb(221, 221, 221)")
