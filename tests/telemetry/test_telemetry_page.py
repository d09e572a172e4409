"""The programs of docs/telemetry.md print what the page shows, and the page has each name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from running import run_script
from telemetry_support import Metrics
from test_metrics import TABLE

from trio_offload import open_worker_context

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(3))
def test_a_program_prints_what_is_shown(number: int, tmp_path: Path) -> None:
    program, shown = PROGRAMS[number]
    ended = run_script(tmp_path, program)
    assert (ended.stdout, ended.stderr) == (shown, "")


def test_the_page_has_each_metric() -> None:
    rows = re.findall(r"^\| `(trio_offload\.\S+)` \| [a-z -]+ \| `(\S+)` \|", PAGE, re.MULTILINE)
    assert sorted(" ".join(row) for row in rows) == sorted(TABLE)


async def test_the_page_has_each_attribute_of_a_metric(metrics: Metrics) -> None:
    async with open_worker_context() as context:
        await context.run_sync(abs, 1)
        for name, points in metrics.points().items():
            (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name.split()[0]}` |")]
            for point in points:
                assert all(f"`{key}`" in row for key in point.attributes if key != "trio_offload.worker.type"), name
