"""Every code block of every page runs, and prints what the page shows below it."""

from __future__ import annotations

import shutil
from operator import attrgetter
from pathlib import Path

import pytest
from docstring_blocks import docstring_blocks, examples
from page_blocks import ROOT, Block, blocks_in, blocks_of, pages
from page_checks import Page, check_program, commands, is_installer, is_program

PAGES = [path for path in pages() if blocks_of(path)]
NOT_RUN = Path(__file__).with_name("not_run.txt")


def programs(blocks: list[Block]) -> list[Block]:
    """Return the whole programs that need no file of their page."""
    return [block for block in blocks if is_program(block) and not {"file", "not run"} & block.marks.keys()]


@pytest.mark.parametrize(
    "program",
    [program for blocks in (*map(blocks_of, PAGES), docstring_blocks()) for program in programs(blocks)],
    ids=attrgetter("place"),
)
def test_program_of_a_page(tmp_path: Path, program: Block) -> None:
    (tmp_path / "program.py").write_text(program.text)
    failures = list(check_program(program, tmp_path, "program.py"))
    assert not failures, failures[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_other_blocks_of_a_page(tmp_path: Path, path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "page" / "examples")
    failures = failures_of(blocks_of(path), tmp_path / "page")
    assert not failures, "\n\n".join(failures)


def test_blocks_of_docstrings(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    failures = failures_of(docstring_blocks(), tmp_path / "page")
    assert not failures, "\n\n".join(failures)


def test_every_public_name_has_an_example() -> None:
    assert [name for name, blocks in examples() if not blocks] == []


def test_no_example_shows_two_names() -> None:
    names: dict[str, str] = {}
    for name, blocks in examples():
        for block in blocks:
            assert names.setdefault(block, name) == name, block


def failures_of(blocks: list[Block], folder: Path) -> list[str]:
    page = Page(folder)
    return [failure for block in blocks for failure in page.check(block)] + list(page.run_fragments())


def test_blocks_that_do_not_run_are_listed() -> None:
    """`not_run.txt` has them all, with the reasons that the pages give."""
    blocks = [block for path in PAGES for block in blocks_of(path)] + docstring_blocks()
    found = sorted(line for block in blocks for line in left_out(block))
    assert found == NOT_RUN.read_text().splitlines(), f"{NOT_RUN.name} must be:\n" + "\n".join(found)


def left_out(block: Block) -> list[str]:
    if block.reason_not_to_run is not None:
        return [f"{block.page}: {block.reason_not_to_run}"]
    if block.language == "console":
        return [f"{block.page}: {command}" for command, _ in commands(block) if is_installer(command)]
    return []


GUARDED = """\
```python
import trio

async def main():
    print("one", 2.5)

if __name__ == "__main__":
    trio.run(main)
```
"""
FRAGMENT = """\
```python
with trio.move_on_after(1):
    print(await trio_offload.run_sync(str.upper, "two"))
```
"""


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (GUARDED, None),
        (GUARDED + "\n```text\none 3.5\n```\n", None),
        (GUARDED + "\n```text\ntwo 2.5\n```\n", "page.md:2:\n--- the page shows\ntwo 2.5\n--- printed\none 2.5"),
        ("<!-- numbers: vary -->\n" + GUARDED + "\n```text\none 3\n```\n", None),
        ("<!-- numbers: vary -->\n" + GUARDED.replace("one", "two") + "\n```text\none 3\n```\n", "page.md:3:\n--- the page"),
        ("<!-- file: one.py -->\n" + GUARDED + "\n```text\ntwo\n```\n", "page.md:3:\n--- the page"),
        (GUARDED.replace("2.5", "1 / 0"), "ZeroDivisionError"),
        (GUARDED.replace('print("one", 2.5)', "pass"), "prints nothing"),
        (GUARDED + "```python\nawait main()\n```\n", None),
        (FRAGMENT + "\n```text\nTWO\n```\n", None),
        (FRAGMENT + "\n```text\nT…\n```\n", None),
        (FRAGMENT + "\n```text\n…\nTWO\n…\n```\n", None),
        (FRAGMENT + "\n```text\ntwo\n```\n", "page.md:2:\n--- the page shows\ntwo\n--- printed\nTWO"),
        (FRAGMENT + "\nWords.\n\n```text\nTWO\n```\n", "page.md:9: a block of «text» is not run"),
        ("```python\nawait nothing()\n```\n", 'File "page.md", line 2, in <module>\nNameError'),
        ("<!-- python\nnumber = 3\n-->\n```python\nassert number == 3\n```\n", None),
        ("* A list.\n\n  ```python\n  assert not trio\n  ```\n", "AssertionError"),
        (":::{note}\n```python\nassert not trio\n```\n:::\n", "AssertionError"),
        ("````{note}\n```python\nassert not trio\n```\n````\n", 'File "page.md", line 3, in <module>\nAssertionError'),
        ("    assert not trio\n", "page.md:1: a block of «» is not run"),
        ("<!-- not run: a notation -->\n```\nvalue?\n```\n", None),
        ("<!-- not run: a notation -->\n\nWords.\n\n```\nvalue?\n```\n", "page.md:6: a block of «» is not run"),
        ("<!-- cancel after: 0.01 -->\n```python\nawait trio.sleep_forever()\n```\n", None),
        ("<!-- file: jobs.py -->\n```python\ndef f():\n    return 1\n```\n```python\nimport jobs\n```\n", None),
        ("<!-- file: a.txt\nword\n-->\n```console\n$ cat a.txt\nword\n$ cat \\\n  a.txt\nword\n```\n", None),
        ("```console\n$ echo one; cat a.txt\none\n```\n", "page.md:2: echo one; cat a.txt: exit status 1"),
        ("<!-- exit status: 3 -->\n```console\n$ (exit 3)\n```\n", None),
        ("<!-- exit status: 0 3 -->\n```console\n$ true\n$ (exit 3)\n```\n", None),
        ("```console\n$ exit 3\n$ true\n```\n", "page.md:2: exit 3: exit status None"),
        ("```console\n$ echo one\ntwo\n```\n", "page.md:2: echo one\n--- the page shows\ntwo\n--- printed\none"),
        ("<!-- numbers: vary -->\n```console\n$ echo 1,000 of 5\n2 of 6\n```\n", None),
        ("```console\n$ number=5\n$ echo $? $number\n0 5\n```\n", None),
        ("```python\nnumber = 5\nnumber\n```\n\n```text\n5\n```\n", None),
        ("```json\n{\n```\n", "page.md:2: Expecting"),
        ("```toml\n[a]\nb = 1\n```\n", None),
        ("```toml\n[a\n```\n", "page.md:2: "),
        ("```ini\n[Service]\nKillMode=mixed\nExecStart=a\nExecStart=b\n```\n", None),
        ("```ini\nKillMode\n```\n", "page.md:2: "),
        ("```dockerfile\nFROM a\nRUN b \\\n  c\n```\n", None),
        ("```dockerfile\nFROM\n```\n", "page.md:2: "),
        ("```bash\nif true\n```\n", "page.md:2: "),
    ],
)
def test_the_checks_notice(tmp_path: Path, text: str, failure: str | None) -> None:
    (tmp_path / "page").mkdir()
    blocks = blocks_in(text, "page.md")
    failures = "".join(failures_of(blocks, tmp_path / "page"))
    for program in programs(blocks):
        (tmp_path / "program.py").write_text(program.text)
        failures += "".join(check_program(program, tmp_path, "program.py"))
    assert failure in failures if failure else not failures
