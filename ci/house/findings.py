"""A finding, and the recorded list of them, which may only shrink."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

Key = tuple[str, str]


class Finding(NamedTuple):
    """Something that a rule forbids."""

    rule: str
    subject: str
    """The name of the thing, without line numbers: it stays the same when lines move."""
    place: str
    """The file, with the line if one is known."""
    message: str
    amount: float | None = None
    """How much of it, if the rule measures: the recorded amount is a bound that may only fall."""

    @property
    def key(self) -> Key:
        return self.rule, self.subject

    def __str__(self) -> str:
        return f"{self.place}: {self.message} [{self.rule}]"


def merged(findings: Iterable[Finding]) -> dict[Key, Finding]:
    """Return one finding for each key, the one with the largest amount, sorted by key."""
    by_key: dict[Key, Finding] = {}
    for finding in findings:
        other = by_key.get(finding.key)
        if other is None or (finding.amount or 0) > (other.amount or 0):
            by_key[finding.key] = finding
    return dict(sorted(by_key.items()))


def read(path: Path) -> dict[Key, float | None]:
    """Return the recorded findings. Of two lines with one key (a merge may leave both) the larger counts."""
    recorded: dict[Key, float | None] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            rule, subject, *rest = line.split("\t")
            amount = float(rest[0]) if rest else None
            known = recorded.get((rule, subject))
            recorded[rule, subject] = amount if known is None or amount is None else max(known, amount)
    return recorded


HEADER = """\
# Findings of ci/shape that are known: rule, subject and, for what is measured, the bound.
# The list may only shrink. `ci/shape --record` rewrites it.
"""


def write(path: Path, findings: dict[Key, Finding]) -> None:
    lines = (
        "\t".join([*key, *([] if finding.amount is None else [f"{finding.amount:g}"])]) for key, finding in findings.items()
    )
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))


def differences(findings: dict[Key, Finding], recorded: dict[Key, float | None]) -> Iterator[str]:
    """Yield a line for each finding that is new or has grown, and each recorded one that is gone."""
    for key, finding in findings.items():
        if key not in recorded:
            yield str(finding)
        elif (finding.amount or 0) > (bound := recorded[key] or 0):
            yield f"{finding}: the recorded bound is {bound:g}"
    for rule, subject in recorded.keys() - findings.keys():
        yield f"{subject} is recorded and no longer found: run ci/shape --record [{rule}]"


def growth(findings: dict[Key, Finding], recorded: dict[Key, float | None]) -> Iterator[str]:
    """Yield a line for each rule that has more findings, or larger ones, than the recorded list.

    A finding whose subject has been renamed is compared with one that is gone, the largest with the largest.
    """
    now, before = defaultdict(list), defaultdict(list)
    for key, finding in findings.items():
        if key in recorded and (finding.amount or 0) > (recorded[key] or 0):
            yield f"{finding}: the recorded bound is {recorded[key]:g}"
        elif key not in recorded:
            now[finding.rule].append((finding.amount or 0, str(finding)))
    for key, amount in recorded.items():
        if key not in findings:
            before[key[0]].append(amount or 0)
    for rule, fresh in now.items():
        gone = sorted(before[rule], reverse=True)
        for number, (amount, text) in enumerate(sorted(fresh, reverse=True)):
            if number >= len(gone) or amount > gone[number]:
                yield text
