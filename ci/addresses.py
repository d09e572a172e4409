#!/usr/bin/env python3
"""Write the public addresses of the project into README.md and pyproject.toml, before its first release.

    python ci/addresses.py SOURCE FILES RAW ISSUES
    python ci/addresses.py --check

With --check it ends with 1 and a sentence if one is missing; `ci/wheels` asks it first. SOURCE is the project's page. FILES and RAW are the beginnings of its files' addresses: as pages, and
as bytes. For a project on GitHub they end with `/blob/main/` and `/raw/main/`.

A package index shows README.md by itself, so its relative links and its picture would lead nowhere there. The
tree names no address, because the project has no public one yet.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_ABSOLUTE = re.compile(r"[a-z]+:")


def with_addresses(readme: str, files: str, raw: str) -> str:
    """Return the text with each relative link made absolute."""

    def absolute(link: re.Match[str]) -> str:
        target = link["target"]
        if not _ABSOLUTE.match(target):
            target = (raw if link["picture"] else files) + target
        return f"{link['picture']}[{link['text']}]({target})"

    return _LINK.sub(absolute, readme)


def with_urls(pyproject: str, source: str, files: str, issues: str) -> str:
    """Return the text with the table [project.urls] after [project]."""
    if "[project.urls]" in pyproject:
        raise ValueError("pyproject.toml has [project.urls] already")
    urls = {
        "Documentation": f"{files}docs/index.md",
        "Source": source,
        "Issues": issues,
        "Changelog": f"{files}CHANGELOG.md",
    }
    table = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    before, mark, after = pyproject.partition("[project.optional-dependencies]\n")
    return f"{before}[project.urls]\n{table}\n{mark}{after}"


def problem(readme: str, pyproject: str) -> str:
    """Return a sentence about the addresses that are missing. It is empty if there are all."""
    missing = []
    relative = sum(not _ABSOLUTE.match(link["target"]) for link in _LINK.finditer(readme))
    if relative:
        missing.append(f"{relative} links of README.md are relative")
    if "[project.urls]" not in pyproject:
        missing.append("pyproject.toml has no [project.urls]")
    if not missing:
        return ""
    return (
        f"a release needs the project's public addresses, but {' and '.join(missing)}: "
        "run python ci/addresses.py SOURCE FILES RAW ISSUES (docs/release.md)"
    )


def check() -> None:
    found = problem((ROOT / "README.md").read_text(), (ROOT / "pyproject.toml").read_text())
    if found:
        sys.exit(found)


def main(source: str, files: str, raw: str, issues: str) -> None:
    readme, pyproject = ROOT / "README.md", ROOT / "pyproject.toml"
    new = with_urls(pyproject.read_text(), source, files, issues)
    readme.write_text(with_addresses(readme.read_text(), files, raw))
    pyproject.write_text(new)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
    elif len(sys.argv) == 5:
        main(*sys.argv[1:])
    else:
        sys.exit("usage: python ci/addresses.py SOURCE FILES RAW ISSUES | --check")
