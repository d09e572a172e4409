"""Find the code blocks of a page, as the parser of the documentation site finds them.

A comment in front of a block is invisible to readers, and tells how the block is tested. ARCHITECTURE.md
has the conventions, below "Code blocks of the pages".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "text"
_INVISIBLE = re.compile(r"<!--[ ]*(?P<language>python|console)\n(?P<text>.*)-->\s*\Z", re.DOTALL)
_FILE = re.compile(r"<!--[ ]*file: (?P<name>\S+)\n(?P<text>.*)-->\s*\Z", re.DOTALL)
_MARK = re.compile(r"<!--\s*(?P<name>not run|file|exit status|cancel after|numbers):\s*(?P<value>.+?)\s*-->\s*\Z", re.DOTALL)
_DIRECTIVES_WITHOUT_BLOCKS = ("toctree", "eval-rst")


@attrs.frozen
class Block:
    """A block of code, with the marks in front of it."""

    page: str
    line: int
    """The line of its first line of code, counted from 1."""
    language: str
    text: str
    marks: dict[str, str] = attrs.field(factory=dict)
    output: str | None = None
    """The block of text that follows at once."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def with_output(self, text: str) -> Block:
        """Return the block with what a block of text right after it shows."""
        if self.language == "console":
            return attrs.evolve(self, text=self.text + text)
        return attrs.evolve(self, output=text)

    @property
    def reason_not_to_run(self) -> str | None:
        return self.marks.get("not run")


def pages() -> list[Path]:
    """Return the pages that are written by hand."""
    return [
        *sorted(ROOT.glob("*.md")),
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


@functools.cache
def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in their order, each with the output that the page shows for it."""
    return blocks_in(page.read_text(), page.relative_to(ROOT).as_posix())


def blocks_in(text: str, page: str) -> list[Block]:
    """Return the blocks of a text that is a page of this name."""
    return _with_outputs(_blocks(text, page, 0))


def _with_outputs(found: Iterator[Block | None]) -> list[Block]:
    blocks: list[Block] = []
    before: Block | None = None
    for item in found:
        if item is not None and item.language == OUTPUT and not item.marks and before is not None:
            blocks[-1] = before.with_output(item.text)
        elif item is not None:
            blocks.append(item)
        before = item
    return blocks


def _blocks(text: str, page: str, offset: int) -> Iterator[Block | None]:
    """Yield the blocks of a text that begins after `offset` lines of its page, and None for prose."""
    marks: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(text):
        if token.map is None:
            continue
        line = offset + token.map[0] + 1
        if token.type == "html_block":
            invisible, file, mark = (kind.match(token.content) for kind in (_INVISIBLE, _FILE, _MARK))
            if file:
                yield Block(page, line + 1, "file", file["text"], {"file": file["name"]})
            elif invisible:
                yield Block(page, line + 1, invisible["language"], invisible["text"], marks)
                marks = {}
            elif mark:
                marks[mark["name"]] = " ".join(mark["value"].split())
        elif token.type == "fence" and token.info.startswith("{"):
            if token.info[1:].partition("}")[0] not in _DIRECTIVES_WITHOUT_BLOCKS:
                yield from _blocks(token.content, page, line)
        elif token.type in ("fence", "code_block"):
            yield Block(page, line + (token.type == "fence"), token.info.strip(), token.content, marks)
            marks = {}
        elif token.type == "inline":
            yield None
            marks = {}
