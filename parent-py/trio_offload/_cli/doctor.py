"""``trio-offload doctor``: the facts for a bug report, and the problems found.

It must work on a broken system. So each probe runs independently, and one that fails reports its
failure in place of its facts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from .exit_status import ExitStatus
from .probes import PROBES, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .probes import Probe


@attrs.frozen
class Finding:
    """The result of one probe."""

    name: str
    facts: dict[str, Any]
    """Values that JSON can represent."""
    problems: tuple[Problem, ...]


def run_doctor(*, as_json: bool) -> ExitStatus:
    """Print the report on standard output. Return FAILED if it has a problem."""
    findings = [examine(probe) for probe in PROBES]
    report = _as_json(findings) if as_json else _as_text(findings)
    # ASCII passes through every terminal, locale and bug tracker.
    print(report.encode("ascii", "backslashreplace").decode("ascii"), flush=True)
    return ExitStatus.FAILED if _problems(findings) else ExitStatus.OK


def examine(probe: Probe) -> Finding:
    """Run one probe. An exception becomes a finding, too."""
    problems: list[Problem] = []
    try:
        facts = probe.examine(problems.append)
    except Exception as error:  # the other probes must still run
        text = " ".join(f"{type(error).__name__}: {error}".split())
        facts = {"failed": text}
        problems.append(Problem(f"the probe {probe.name!r} failed: {text}", probe.remedy))
    return Finding(probe.name, facts, tuple(problems))


def _problems(findings: Iterable[Finding]) -> list[Problem]:
    return [problem for finding in findings for problem in finding.problems]


def _as_json(findings: Iterable[Finding]) -> str:
    findings = list(findings)
    problems = _problems(findings)
    report: dict[str, Any] = {
        "ok": not problems,
        "problems": [attrs.asdict(problem) for problem in problems],
        **{finding.name: finding.facts for finding in findings},
    }
    return json.dumps(report, indent=2)


def _as_text(findings: Iterable[Finding]) -> str:
    findings = list(findings)
    lines = []
    for finding in findings:
        lines.append(finding.name)
        lines.extend(_fact_lines(finding.facts, "  "))
    problems = _problems(findings)
    lines.append("")
    if not problems:
        lines.append("No problems found.")
    for problem in problems:
        lines.append(f"PROBLEM: {problem.what}")
        lines.extend(f"  {line}" for line in problem.remedy.splitlines())
    return "\n".join(lines)


def _fact_lines(facts: dict[str, Any], indent: str) -> list[str]:
    lines = []
    width = max((len(name) for name in facts), default=0) + 1
    for name, value in facts.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            lines.extend(_fact_lines(value, indent + "  "))
        else:
            lines.append(f"{indent}{name + ':':{width}} {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(value).split())
