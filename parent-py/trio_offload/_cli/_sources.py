"""Where the items of ``trio-offload map`` come from: arguments, or the lines of a file or of standard input.

* Items are read as they are needed; only :class:`ArgumentSource` has them all at once, as the kernel gave them.
* Reads happen in a thread that is abandoned when the read is cancelled: standard input may stay silent for ever, and a file
  may be on a slow disk. A descriptor is read with ``os.read``, never through ``sys.stdin``, whose lock an abandoned thread
  would hold to the end of the interpreter.
* Text is decoded as the operating system's names are (PEP 383), so that ``find | trio-offload map --lines -`` names every
  file that there is. A line of JSON stays bytes: the worker reads it, so the cost is paid in parallel.
"""

from __future__ import annotations

import codecs
import os
import select
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from ._exit import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_offload_worker._jobs.cli_items import ItemKind

_CHUNK = 64 * 1024
"""Bytes taken from a file at once; what a pipe holds."""
_LABEL = 80
"""So much of an item is shown where it is only named."""


@attrs.frozen
class Item:
    """One argument for the function."""

    index: int
    """The place of its line in the output, from 0."""
    number: int
    """The place in its source, from 1: of a line in a file, blank lines counted."""
    kind: ItemKind
    content: str | bytes

    @property
    def size(self) -> int:
        """About how much memory the content takes, in bytes."""
        return len(self.content)

    @property
    def label(self) -> str:
        """The content for a person: on one line, and only its beginning."""
        front = self.content[:_LABEL]
        if isinstance(front, bytes):
            text = front.decode("utf-8", "replace")
            text = text if text.isprintable() else ascii(text)
        else:
            text = repr(front)
        return text if len(front) == len(self.content) else f"{text}…"


class Source(Protocol):
    """A sequence of items, read from front to back by one task."""

    async def read(self) -> list[Item]:
        """The next items, as many as there are without waiting long; none when there are no more.

        Raises :class:`CommandError` if reading fails.
        """

    async def count(self) -> int | None:
        """The number of all items, or ``None`` if only reading them to the end would tell."""

    def close(self) -> None:
        """Release what was opened."""


class ArgumentSource:
    """The items given on the command line."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._items = [Item(index, index + 1, "text", text) for index, text in enumerate(arguments)]
        self._total = len(self._items)

    async def read(self) -> list[Item]:
        await trio.lowlevel.checkpoint()
        items, self._items = self._items, []
        return items

    async def count(self) -> int | None:
        await trio.lowlevel.checkpoint()
        return self._total

    def close(self) -> None:
        pass


class LineSource:
    """The lines of a file: each is an item (``text``), or its value is one (``json``).

    ``name`` is a path, or ``-`` for standard input. A file that cannot be opened is a :class:`CommandError` at once.
    """

    def __init__(self, name: str, kind: ItemKind) -> None:
        self._kind = kind
        self._label = "standard input" if name == "-" else name
        self._path = None if name == "-" else Path(name)
        self._descriptor = self._open()
        # The beginning of a line whose end has not been read, in pieces: a line may be far longer than a chunk.
        self._rest: list[bytes] = []
        self._lines = 0
        self._items = 0
        self._at_end = False

    def _open(self) -> int:
        if self._path is None:
            if sys.stdin is None:
                raise CommandError("cannot read standard input: it is closed")
            return 0
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error) from error
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CommandError(f"cannot read {self._label}: it is a directory")
        return descriptor

    def close(self) -> None:
        if self._path is not None:
            os.close(self._descriptor)

    async def read(self) -> list[Item]:
        while not self._at_end:
            try:
                chunk = await trio.to_thread.run_sync(_read, self._descriptor, abandon_on_cancel=True)
            except OSError as error:
                raise self._unreadable(error) from error
            self._at_end = not chunk
            items = self._take(chunk)
            if items:
                return items
        return []

    async def count(self) -> int | None:
        if self._path is None or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return None
        try:
            return await trio.to_thread.run_sync(_count_items, self._path, self._kind, abandon_on_cancel=True)
        except OSError:  # gone meanwhile; the reader has its own descriptor and does not care
            return None

    def _take(self, chunk: bytes) -> list[Item]:
        """The items that are whole now. An empty ``chunk`` is the end of the file: what is left is a line too."""
        if chunk and b"\n" not in chunk:
            self._rest.append(chunk)
            return []
        *lines, rest = b"".join([*self._rest, chunk]).split(b"\n")
        self._rest = [rest]
        if not chunk and rest:
            lines.append(rest)
        items = []
        for line in lines:
            self._lines += 1
            if self._lines == 1 and self._kind == "json":
                line = line.removeprefix(codecs.BOM_UTF8)
            line = line.removesuffix(b"\r")
            if self._kind == "json" and not line.strip():
                continue
            content = os.fsdecode(line) if self._kind == "text" else line
            items.append(Item(self._items, self._lines, self._kind, content))
            self._items += 1
        return items

    def _unreadable(self, error: OSError) -> CommandError:
        return CommandError(f"cannot read {self._label}: {error.strerror or error}")


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:  # somebody left the descriptor non-blocking; it is theirs, so wait instead of changing it
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()


def _count_items(path: Path, kind: ItemKind) -> int:
    with path.open("rb") as file:
        if kind == "json":
            return sum(1 for line in file if line.strip())
        return sum(1 for _ in file)
