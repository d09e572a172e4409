"""The rows of docs/migration.md, and the tests that try them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PAGE = Path(__file__).resolve().parents[1] / "docs" / "migration.md"
Test = TypeVar("Test", bound=Callable[..., Any])


class Ported:
    """The rows of some sections of the page, and those of them that tests try."""

    def __init__(self, *sections: str) -> None:
        self.tried: set[str] = set()
        self._sections = sections

    def ports(self, cls: str, *names: str) -> Callable[[Test], Test]:
        """Name the rows that a test tries."""
        self.tried.update(f"{cls}: {name}" for name in (cls, *names))
        return lambda test: test

    def rows(self) -> set[str]:
        """The rows that name something of ours: ``Class: method``, with the class of the rows above."""
        found, cls = set(), ""
        for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
            title, _, text = section.partition("\n")
            for line in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE) if title in self._sections else ():
                name, _, *ours = (cell.strip() for cell in line.split(" |"))
                if name[1].isupper():
                    cls = name
                if any(ours):
                    found.add(f"{cls}: {name}".replace("`", ""))
        return found
