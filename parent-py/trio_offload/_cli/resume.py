"""``--resume FILE``: leave out the items that earlier runs have finished.

* An item is identified by its JSON with sorted keys. Lines are counted: an item that occurs twice
  and has one line with ``ok`` is run once more.
* Each line is parsed whole. So the incomplete last line of a killed run is skipped, and so are two
  lines that have become one.
* Only a digest per item stays in memory, about 100 bytes.
* If standard output appends to a FILE, an incomplete last line is removed from it first. Otherwise
  the next line would continue it.
"""

from __future__ import annotations

import collections
import fcntl
import json
import os
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trio_offload_worker._jobs.cli_lines import encode_text, parse_json

from .exit_status import CommandError
from .summary import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from .sources import Item, Source

_DIGEST_SIZE: Final = 15
"""Bytes. Two of a billion items have the same digest with a probability of 1 in 10**18."""

_PIECE: Final = 1024 * 1024
"""Bytes that are read of a line before its start is checked."""

_START: Final = b'{"item":'
"""The start of a line of ``map``."""

_MAX_FOREIGN: Final = 1000
"""Lines of another format after which the rest of a file is not read."""

_CANONICAL: Final = json.JSONEncoder(allow_nan=False, sort_keys=True)


class EarlierOutput:
    """A file with the output of earlier runs.

    Args:
        path: the file. It may be missing.
        output: the descriptor of standard output.

    Raises:
        CommandError: it cannot be used.
    """

    def __init__(self, path: str, output: int = 1) -> None:
        self.path = path
        self.is_output = False
        """True if standard output appends to it."""
        self._output = output
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._check(self._descriptor)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CommandError(f"cannot read {path}: {error.strerror or error}") from error
        except CommandError:
            self.close()
            raise

    @property
    def exists(self) -> bool:
        """True if there was a file."""
        return self._descriptor is not None

    def close(self) -> None:
        """Close the file, and let other runs append to it."""
        # A file object would wait for a read in an abandoned thread.
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, done: collections.Counter[bytes]) -> list[str]:
        """Count the lines with ``ok`` in ``done``, by digest. Return warnings.

        Raises:
            CommandError: the file has another format, or cannot be read.
        """
        if self._descriptor is None:
            return []
        scan = Scan(done)
        try:
            with os.fdopen(self._descriptor, "rb", closefd=False) as file:
                scan.read(file)
        except OSError as error:
            raise CommandError(f"cannot read {self.path}: {error.strerror or error}") from error
        if scan.unreadable and not scan.readable:
            raise CommandError(
                f"cannot resume from {self.path}: no line is output of trio-offload map (see line {scan.first_unreadable})"
            )
        warnings = []
        if scan.unreadable:
            warnings.append(
                f"{count_of(scan.unreadable, 'line')} of {self.path} cannot be read and {'is' if scan.unreadable == 1 else 'are'} "
                f"ignored (see line {scan.first_unreadable})"
            )
        if scan.is_incomplete:
            ending = "is removed" if self.is_output else "is ignored"
            warnings.append(f"the incomplete last line of {self.path} {ending}; its item is run again")
        if self.is_output:
            self._mend_end(scan)
        return warnings

    def _check(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise CommandError(f"cannot read {self.path}: it is a directory")
        self.is_output = stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(self._output))
        if not self.is_output:
            return
        if not fcntl.fcntl(self._output, fcntl.F_GETFL) & os.O_APPEND:
            raise CommandError(f"standard output overwrites {self.path}, the file of --resume. To append: >> {self.path}")
        try:
            # Until the end of the run. Workers do not inherit the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"another run appends to {self.path}; wait for its end") from None
        except OSError:  # a file system without locks
            pass

    def _mend_end(self, scan: Scan) -> None:
        """Make the next line begin at the start of a line."""
        try:
            if scan.is_incomplete:
                os.ftruncate(self._output, scan.tail_at)
            elif scan.has_tail:
                os.write(self._output, b"\n")
        except OSError as error:
            raise CommandError(f"cannot write to {self.path}: {error.strerror or error}") from error


class Scan:
    """Reads the lines of a file, and counts those with ``ok`` by the digest of their item."""

    def __init__(self, done: collections.Counter[bytes]) -> None:
        self._done = done
        self.readable = 0
        """Number of lines of ``map``."""
        self.unreadable = 0
        self.first_unreadable = 0
        """Number of other lines, and the first one's line number."""
        self.has_tail = False
        """True if the last line lacks its line break."""
        self.is_incomplete = False
        """True if that line is the start of a line of ``map``."""
        self.tail_at = 0
        """Its position in the file, in bytes."""

    def read(self, file: BinaryIO) -> None:
        for number, (line, size) in enumerate(_lines_of(file), 1):
            digest = digest_of_line(line)
            self.has_tail = not line.endswith(b"\n")
            if digest is not None:
                self.readable += 1
                if digest:
                    self._done[digest] += 1
            elif self.has_tail and (line.startswith(_START) or _START.startswith(line)):
                self.is_incomplete = True
            elif line.strip():
                self.unreadable += 1
                self.first_unreadable = self.first_unreadable or number
                if self.unreadable >= _MAX_FOREIGN and not self.readable:
                    return  # a large file of another format
            if not self.has_tail:
                self.tail_at += size


def _lines_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of a file with their sizes. Of a long foreign line only the start is kept."""
    while line := file.readline(_PIECE):
        if line.endswith(b"\n") or len(line) < _PIECE:
            yield line, len(line)
            continue
        wanted = line.startswith(b"{")
        pieces, size = [line], len(line)
        while line := file.readline(_PIECE):
            size += len(line)
            if wanted:
                pieces.append(line)
            if line.endswith(b"\n"):
                if not wanted:
                    pieces.append(b"\n")
                break
        yield b"".join(pieces), size


def digest_of_line(line: bytes) -> bytes | None:
    """Return the digest of a line's item, empty if the item failed, or is not finished there.

    None for a line of another format.
    """
    try:
        fields = parse_json(line)
        if type(fields) is dict and "item" in fields and type(fields.get("part")) is int:
            return b""  # a value that a generator function has yielded
        if type(fields) is dict and "item" in fields and type(fields.get("ok")) is bool:
            return _digest(_CANONICAL.encode(fields["item"])) if fields["ok"] else b""
    except (ValueError, RecursionError):
        pass
    return None


def digest_of(item: Item) -> bytes:
    """Return the digest of an item. Its line has the same."""
    if item.kind == "json":
        try:
            return _digest(_CANONICAL.encode(parse_json(item.content)))
        except (ValueError, RecursionError):
            pass  # its line shows it as text
    return _digest(encode_text(item.content).decode("ascii"))


def _digest(canonical: str) -> bytes:
    return blake2b(canonical.encode("ascii"), digest_size=_DIGEST_SIZE).digest()


class ResumedSource:
    """The items of another source without those that earlier runs have finished.

    Args:
        source: all items.
        files: the output of earlier runs.
        warn: called with each warning.
    """

    def __init__(self, source: Source, files: Sequence[EarlierOutput], warn: Callable[[str], None]) -> None:
        self._source = source
        self._files = files
        self._warn = warn
        self._done: collections.Counter[bytes] | None = None
        self._at_end = False
        self._items = 0
        self.left_out = 0

    async def read(self) -> list[Item]:
        if self._done is None:
            self._done = collections.Counter()
            for file in self._files:
                for warning in await trio.to_thread.run_sync(file.read, self._done, abandon_on_cancel=True):
                    self._warn(warning)
        while items := await self._source.read():
            # In a thread: an item may be a large JSON value.
            remaining = await trio.to_thread.run_sync(self._remaining, items, self._done, abandon_on_cancel=True)
            if remaining:
                return remaining
        self._at_end = True
        return []

    async def count(self) -> int | None:
        return await self._source.count()

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._source.close()

    def report(self) -> str:
        """Return the number of items left out, as a sentence. Empty without a file."""
        names = " and ".join(file.path for file in self._files if file.exists)
        if not names:
            return ""
        text = f"{count_of(self.left_out, 'item')} left out, finished according to {names}"
        unused = sum(self._done.values()) if self._at_end and self._done is not None else 0
        return f"{text}; {count_of(unused, 'result')} of other items ignored" if unused else text

    def _remaining(self, items: Sequence[Item], done: collections.Counter[bytes]) -> list[Item]:
        remaining = []
        for item in items:
            digest = digest_of(item)
            if digest in done:
                self.left_out += 1
                if done[digest] == 1:
                    del done[digest]
                else:
                    done[digest] -= 1
            else:
                remaining.append(attrs.evolve(item, index=self._items))
                self._items += 1
        return remaining
