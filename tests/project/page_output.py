"""Compare what a block prints with what its page shows."""

from __future__ import annotations

import re

ANYTHING = "…"
"""In a line, it stands for any characters; as a line, for any number of lines."""
_FIGURES = (
    # Of a line of `trio-offload map`.
    (re.compile(r'"(seconds|peak_rss|pid)": [\d.]+'), r'"\1": 0'),
    (re.compile(r"\d+\.\d+"), "0.0"),
    (re.compile(r"\b(worker|process|pid) \d+"), r"\1 0"),
    (re.compile(r"\b0x[0-9a-f]+"), "0x0"),
)
_NUMBERS = (re.compile(r"\d+([.,]\d+)*"), "0")


def matches(shown: str, printed: str, *, numbers_vary: bool = False) -> bool:
    """Return True if the page shows what was printed, up to `…` and figures that vary."""
    figures = (*_FIGURES, _NUMBERS) if numbers_vary else _FIGURES
    return re.fullmatch(_pattern(_without(figures, shown)), _without(figures, printed)) is not None


def _without(figures: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for pattern, replacement in figures:
        text = pattern.sub(replacement, text)
    return "".join(line.rstrip() + "\n" for line in text.rstrip().splitlines())


def _pattern(shown: str) -> str:
    return "".join(
        r"(?:.*\n)*" if line.strip() == ANYTHING else re.escape(line).replace(ANYTHING, ".*") + r"\n"
        for line in shown.splitlines()
    )
