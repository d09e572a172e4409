"""The part of the project's README.md that quotes ratios: made from results/bench.json, so that it cannot go stale.

    python benchmarks/readme.py            writes it
    python benchmarks/readme.py --check    exit status 1 if what stands there is something else

ci/bench writes it after a full run; a test checks it. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "bench.json"
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- ratios: benchmarks/readme.py writes this -->\n", "<!-- end of ratios -->\n"

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


def ratios(results: Path) -> str:
    """What stands between the marks."""
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
    return (
        f"How many times as fast as its peers trio-offload is, or how much smaller; less than 1 is slower. Medians from one run of\n"
        f"`ci/bench` ({machine['processor']}, {machine['cores']} cores, {machine['python'].partition(',')[0]}), all of a row by turns. "
        "The last\ncolumn is beside what the machine, or Python, takes by itself. "
        "[The whole table](benchmarks/results/bench.md) has the figures, their spread and the goals; "
        "[benchmarks/](benchmarks/README.md) says how each is measured.\n\n"
        + "".join("| " + " | ".join(line) + " |\n" for line in lines)
        + "\n![The same as a picture](benchmarks/results/bench.svg)\n"
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


def replaced(text: str, block: str) -> str:
    """README with that block between the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{README.name} lacks the marks {BEGIN.strip()} and {END.strip()}, between which the ratios stand")
    return before + begin + block + end + after


def write() -> None:
    README.write_text(replaced(README.read_text(), ratios(RESULTS)))


def check() -> None:
    text = README.read_text()
    if text != replaced(text, ratios(RESULTS)):
        sys.exit(f"the ratios in {README.name} are not those of {RESULTS.name}: run python benchmarks/readme.py")


if __name__ == "__main__":
    check() if sys.argv[1:] == ["--check"] else write()
