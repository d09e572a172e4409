"""Write the table of ratios in docs/speed.md, from results/bench.json.

    python benchmarks/ratios.py            write it
    python benchmarks/ratios.py --check    exit with status 1 if it differs from the results

`ci/bench` calls it after a full run, and a test checks it. It needs only Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "bench.json"
ROOT = FOLDER.parent
BEGIN, END = "<!-- ratios: benchmarks/ratios.py writes this -->\n", "<!-- end of ratios -->\n"

OURS = "trio-offload"
PEERS = (
    "trio-parallel",
    "anyio.to_process",
    "ProcessPoolExecutor",
    "InterpreterPoolExecutor",
    "multiprocessing.Pool",
    "loky",
    "Trio thread",
)
BOUNDS = ("python -c pass", "bare fork, one byte back", "bare Trio echo", "memcpy to fresh memory")


PAGE, TO_ROOT = ROOT / "docs" / "speed.md", "../"


def ratios(results: Path) -> str:
    """Return the text between the marks."""
    if not results.exists():
        return "`ci/bench` has not been run yet: it writes a table of ratios here.\n"
    written = json.loads(results.read_text())
    measured = {name for record in written["rows"] for name in record["contenders"]}
    peers = [peer for peer in PEERS if any(name.startswith(peer) for name in measured)]
    lines = [["times as fast, or as small, as", *peers, "the machine itself"], ["---"] * (len(peers) + 2)]
    for record in written["rows"]:
        beside = {name: advantage(record, name) for name in record["contenders"] if name != OURS}
        # Where a peer has several ways, the one that does best.
        cells = [min((beside[name] for name in beside if name.startswith(peer)), default=None) for peer in peers]
        if any(cell is not None for cell in cells):
            bounds = [f"{shown(beside[bound])} `{bound}`" for bound in BOUNDS if bound in beside]
            lines.append([record["row"], *("" if cell is None else shown(cell) for cell in cells), *(bounds or [""])])
    machine = written["machine"]
    folder = f"{TO_ROOT}benchmarks/"
    return (
        "How many times as fast as each peer trio-offload is, or how many times smaller.\n"
        "Below 1 it is slower. "
        f"Medians of one run of `ci/bench`:\n{machine['processor']}, {machine['cores']} cores, "
        f"{machine['python'].partition(',')[0]}.\n"
        f"The [figures]({folder}results/bench.md) and [how each is measured]({folder}README.md).\n\n"
        + "".join("| " + " | ".join(line) + " |\n" for line in lines)
        + f"\n![The same as a picture]({folder}results/bench.svg)\n"
    )


def advantage(record: dict[str, Any], name: str) -> float:
    """How many times better ours is than that one: more than 1 is better, whatever the unit."""
    ours, other = (float(record["contenders"][who]["median"]) for who in (OURS, name))
    return other / ours if record["better"] == "less" else ours / other


def shown(ratio: float) -> str:
    """Two digits that count."""
    if ratio >= 10:
        return f"{float(f'{ratio:.2g}'):.0f} ×"
    return f"{ratio:.1f} ×" if ratio >= 1 else f"{ratio:.2f} ×"


def replaced() -> tuple[str, str]:
    """Return the page's text, and the text with the block of today."""
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE.name} lacks the marks {BEGIN.strip()} and {END.strip()}, between which the ratios stand")
    return text, before + begin + ratios(RESULTS) + end + after


def write() -> None:
    PAGE.write_text(replaced()[1])


def check() -> None:
    text, new = replaced()
    if text != new:
        sys.exit(f"the ratios in {PAGE.name} are not those of {RESULTS.name}: run python benchmarks/ratios.py")


if __name__ == "__main__":
    check() if sys.argv[1:] == ["--check"] else write()
