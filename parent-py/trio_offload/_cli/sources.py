"""Read the items of ``trio-offload map``: arguments, or the lines of a file or of standard input.

* Items are read on demand; only :class:`ArgumentSource` has all of them from the start.
* Each read runs in a thread, which a cancellation abandons: standard input may stay silent forever,
  and a disk may be slow. Reads use ``os.read``. With ``sys.stdin``, an abandoned thread would hold
  its lock until the interpreter exits.
* Text is decoded like names of the operating system (PEP 383), so
  ``find | trio-offload map --lines -`` can pass every file name. A line of JSON stays bytes: the
  workers parse it, in parallel.
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

from .exit_status import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_offload_worker._jobs.cli_lines import ItemKind

_CHUNK = 64 * 1024
"""Bytes per read: the capacity of a pipe."""
_LABEL = 80
"""Maximum length of an item in a message."""


@attrs.frozen
class Item:
    """One argument for the function."""

    index: int
    """Position of its line in the output, from 0."""
    number: int
    """Position in its source, from 1: a line number that counts blank lines."""
    kind: ItemKind
    content: str | bytes

    @property
    def size(self) -> int:
        """Approximate memory use of the content, in bytes."""
        return len(self.content)

    @property
    def label(self) -> str:
        """The start of the content on one line, for messages."""
        front = self.content[:_LABEL]
        if isinstance(front, bytes):
            text = front.decode("utf-8", "replace")
            text = text if text.isprintable() else ascii(text)
        else:
            text = repr(front)
        return text if len(front) == len(self.content) else f"{text}…"


class Source(Protocol):
    """A sequence of items that one task reads."""

    left_out: int
    """Number of items that :meth:`count` includes and :meth:`read` has skipped so far."""

    async def read(self) -> list[Item]:
        """Return the next items, as many as are available soon. Empty at the end.

        Raises:
            CommandError: the read failed.
        """

    async def count(self) -> int | None:
        """Return the number of all items. None means that it is unknown before the end."""

    def close(self) -> None:
        """Close the file."""


class ArgumentSource:
    """The items of the command line."""

    left_out = 0

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
    """The lines of a file.

    Args:
        name: a path, or ``-`` for standard input.
        kind: ``text`` if each line is an item, ``json`` if it has the JSON value of one.

    Raises:
        CommandError: the file cannot be opened.
    """

    left_out = 0

    def __init__(self, name: str, kind: ItemKind) -> None:
        self._kind = kind
        self._label = "standard input" if name == "-" else name
        self._path = None if name == "-" else Path(name)
        self._descriptor = self._open()
        # The start of an incomplete line, in pieces: a line may be much longer than a chunk.
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
        except OSError:  # deleted in the meantime; the reader has its own descriptor
            return None

    def _take(self, chunk: bytes) -> list[Item]:
        """Return the items that the chunk completes. An empty chunk means the end of the file."""
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
        except BlockingIOError:  # its owner has set it to non-blocking: wait, and leave it so
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()


def _count_items(path: Path, kind: ItemKind) -> int:
    with path.open("rb") as file:
        if kind == "json":
            return sum(1 for line in file if line.strip())
        return sum(1 for _ in file)
