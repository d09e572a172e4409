"""Prose: how often words occur that make sentences hard to read, how long sentences are, how wide lines.

Comments and docstrings are measured for each tree, documents for each group. `ci/prose` lists the places.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .findings import Finding
from .layers import ROOT, Tree

WIDTH = 100
MAX_MEAN, MAX_P90 = 13, 25
# Name, pattern, occurrences in 1,000 words that are allowed.
WORDS = (
    ("what", r"\bwhat\b", 2.0),
    ("who", r"\b(?:who|whoever)\b", 0.5),
    ("that of", r"\b(?:that|those) of\b", 0.1),
    ("negations", r"\b(?:no|none|nobody|nothing|never|neither|nor)\b", 7.0),
    ("there is", r"\bthere (?:is|are)\b", 1.4),
    ("fillers", r"\b(?:by then|meanwhile|as ever|in vain|let go of|come by|for want of|is to be|of its own)\b", 0.1),
)
STARTS, MAX_STARTS = re.compile(r"(?:What|Who|Whoever|Of)\b"), 1.0


class Paragraph(NamedTuple):
    path: Path
    line: int
    text: str

    def sentences(self) -> list[str]:
        plain = re.sub(r"``?[^`]+``?", "Code", re.sub(r"\]\([^)]*\)|[\[\]*_]", "", self.text))
        return [part for part in re.split(r"(?<=[.!?])[\"')]*\s+(?=[^a-z])", plain) if re.search(r"[a-z]", part)]


def check(trees: dict[str, Tree]) -> Iterator[Finding]:
    for tree in trees.values():
        paths = [module.path for module in tree.modules]
        paragraphs = [paragraph for path in paths for paragraph in read(path)]
        yield from measure(tree.name, paragraphs)
        wide = [place for path in paths for place in wide_lines(path)]
        if wide:
            yield Finding("prose-width", tree.name, wide[0], f"lines wider than {WIDTH} columns: {len(wide)}", len(wide))
    for group, paths in documents().items():
        yield from measure(group, [paragraph for path in paths for paragraph in read(path)])
    for path in sorted(markdown()):
        wide = list(wide_lines(path))
        if wide:
            message = f"lines wider than {WIDTH} columns: {len(wide)}"
            yield Finding("markdown-width", str(path.relative_to(ROOT)), wide[0], message, len(wide))


def documents() -> dict[str, list[Path]]:
    groups = {name: [ROOT / name] for name in ("README.md", "ARCHITECTURE.md", "PROTOCOL.md")}
    groups["docs"] = sorted((ROOT / "docs").rglob("*.md"))
    return groups


def markdown() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    for folder in ("docs", "benchmarks", "tests"):
        yield from (path for path in (ROOT / folder).rglob("*.md") if "results" not in path.parts)


def measure(group: str, paragraphs: Iterable[Paragraph]) -> Iterator[Finding]:
    sentences = [sentence for paragraph in paragraphs for sentence in paragraph.sentences()]
    lengths = sorted(len(words(sentence)) for sentence in sentences)
    text, total = " ".join(sentences).lower(), sum(lengths)
    measured = [(name, len(re.findall(pattern, text)) * 1000 / total, limit) for name, pattern, limit in WORDS]
    measured += [
        ("starts with What, Who, Of (%)", sum(map(bool, map(STARTS.match, sentences))) * 100 / len(sentences), MAX_STARTS),
        ("words in a sentence, mean", total / len(sentences), MAX_MEAN),
        ("words in a sentence, 90th percentile", lengths[len(lengths) * 9 // 10], MAX_P90),
    ]
    for name, value, limit in measured:
        if round(value, 1) > limit:
            yield Finding("prose", f"{group}: {name}", group, f"{name}: {value:.1f}, at most {limit:g}", round(value, 1))


def words(sentence: str) -> list[str]:
    return re.findall(r"[A-Za-z][\w'’-]*", sentence)


def read(path: Path) -> Iterator[Paragraph]:
    """Yield the paragraphs of a file's prose."""
    lines = {".py": python_lines, ".rs": rust_lines, ".md": markdown_lines}[path.suffix](path.read_text())
    start, parts, last = 0, list[str](), 0
    for number, text in lines:
        item = re.match(r"(?:[*-]|\d+\.) ", text)
        if parts and (not text or item or number != last + 1):
            yield Paragraph(path, start, " ".join(parts))
            parts = []
        if text:
            start = start if parts else number
            parts.append(text[item.end() :] if item else text)
        last = number
    if parts:
        yield Paragraph(path, start, " ".join(parts))


def python_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments and docstrings, attributes' too."""
    found = {
        token.start[0]: token.string.lstrip("#!: ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not re.match(r"# (?:type|noqa|ruff|fmt|mypy)\b", token.string)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number, line in enumerate(node.value.value.splitlines(), node.lineno):
                found[number] = line.strip()
            found.setdefault((node.end_lineno or 0) + 1, "")
    return iter(sorted(found.items()))


def rust_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"(?:.*?\s)?//[/!]? ?(.*)", line)
        if found:
            yield number, found[1].strip()


def markdown_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield all lines but those of code, tables and comments; a heading stands alone."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        aside = in_code or re.match(r"\s*(?:```|\||<!--|!\[|#)", line) or line.startswith("    ")
        yield number, "" if aside else line.strip()


def wide_lines(path: Path) -> Iterator[str]:
    """Yield the places of lines of prose that are wider than `WIDTH`."""
    text = path.read_text()
    lines = {".py": python_lines, ".rs": rust_lines, ".md": markdown_lines}[path.suffix](text)
    whole = text.splitlines()
    for number, part in lines:
        # A word alone, such as an address, cannot be wrapped.
        if part and number <= len(whole) and len(whole[number - 1]) > WIDTH and " " in part:
            yield f"{path.relative_to(ROOT)}:{number}"
