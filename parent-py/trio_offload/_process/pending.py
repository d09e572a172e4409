"""A forked process whose number is not known yet."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

import trio

from trio_offload_worker._descriptors import identity_of
from trio_offload_worker._family import open_pidfd

from .. import _clock
from .._transport.sockets import socket_pair
from .fork_lock import no_forks
from .oom import OomKills
from .process import WorkerProcess, start_time
from .record import RecordFile

_BIRTH_PATIENCE: Final = (
    5.0  # seconds until a template that has not forked a worker is given up; a thousand times what it takes
)


class ForkedProcess(WorkerProcess):
    """A process that a template was asked for. Until it is there, ``pid`` is 0, and it runs as far as anybody can tell.

    The first thing that it does is to write its number into a pipe. At the end of the pipe without a number the record has it if the
    process was killed before it could write. Otherwise there never will be such a process: the template has died, or could not
    fork.
    """

    def __init__(self, birth: int, template: WorkerProcess, record: RecordFile) -> None:
        super().__init__(0, None)
        self._birth = birth
        self._template = template
        self._record = record

    @property
    def is_known(self) -> bool:
        """Whether it has told its number. It has when anything else is heard of it."""
        return self.note_birth()

    def note_birth(self) -> bool:
        """Take in its number if it has told it; whether it has."""
        with self._lock:
            return self.pid != 0 or (not self.ended and self._is_born())

    async def wait(self) -> None:
        if self.killed and self.pid == 0 and not self.poll():
            with _clock.move_on_after(_BIRTH_PATIENCE), self._kept_pidfd() as birth:
                if birth is not None:
                    await trio.lowlevel.wait_readable(birth)
            self._end_mute_template()
        await super().wait()

    def wait_sync(self, deadline: float) -> bool:
        if self.killed and self.pid == 0:
            if super().wait_sync(min(deadline, time.monotonic() + _BIRTH_PATIENCE)):
                return True
            self._end_mute_template()
        return super().wait_sync(deadline)

    def _kill(self) -> None:
        self.killed = True
        if self.pid != 0:
            self._end_family()

    def _end_mute_template(self) -> None:
        """A template that does not get round to a request (it is stopped, say) would be waited for without end."""
        if not self.poll() and self.pid == 0:
            self._template.kill()

    def _reap(self, options: int) -> bool:
        if self.pid == 0 and not self.ended and not self._is_born():
            return self.ended
        return super()._reap(options)

    def _is_born(self) -> bool:
        try:
            number = os.read(self._birth, 4)
        except BlockingIOError:
            return False
        pid = int.from_bytes(number, "big") if len(number) == 4 else self._record.number_of_newborn()
        if pid == 0:
            self.ended = True
            self._close_pidfd()
            return False
        self.pid = pid
        # It is our child, and nobody but us reaps it: the number is its own.
        # In this order: there may be no other descriptor left.
        self._close_birth()
        self._pidfd = open_pidfd(self.pid)
        if self._pidfd is None:
            self._start_time = start_time(self.pid)
        else:
            self._pidfd_identity = identity_of(self._pidfd)
        if self.killed:
            self._end_family()
        return True

    def _awaited(self) -> int | None:
        return self._pidfd if self.pid != 0 else self._birth if self._birth != -1 else None

    def _close_pidfd(self) -> None:
        super()._close_pidfd()
        self._close_birth()

    def _close_birth(self) -> None:
        if self._waiting == 0 and self._birth != -1:
            birth, self._birth = self._birth, -1
            os.close(birth)


class Lines:
    """What leads to a process that a template is asked for: its socket, its record, and the pipe through which its number comes.

    The process may be asked for long before there is anything to tell it. Then ``oom_kills`` has been counted already: it is what
    takes longest of all that the parent does for a start.
    """

    def __init__(self, template: WorkerProcess, oom_kills: OomKills | None = None) -> None:
        self.oom_kills: Final = oom_kills
        with no_forks, contextlib.ExitStack() as made:
            self.ours, self.theirs = socket_pair()
            made.callback(self.ours.close)
            made.callback(self.theirs.close)
            self.record = RecordFile()
            made.callback(self.record.close)
            birth, self.written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.process = ForkedProcess(birth, template, self.record)
            self.process.line = self.ours
            made.pop_all()
            no_forks.register(self.process, self.ours, self.record, self)

    def ask(self, send: Callable[[list[int]], bool]) -> bool:
        """Ask for the process; false: that cannot be done at this moment, and there will be none.

        ``send`` is called with the template's ends in the order of PROTOCOL.md, and says whether it has sent them.
        """
        asked = False
        try:
            with no_forks:
                asked = send([self.theirs.fileno(), self.record.fileno(), self.written])
                if asked:
                    self._pass_on()
        finally:
            if not asked:
                self.close()
        return asked

    def _pass_on(self) -> None:
        """The template has its end of all: it is closed here."""
        with no_forks:
            self.theirs.close()
            if self.written != -1:
                written, self.written = self.written, -1
                os.close(written)

    def close(self) -> None:
        """There will be no such process, or it is not ours: this is a fork of the program."""
        with no_forks:
            self._pass_on()
            self.ours.close()
            self.record.close()
            self.process.abandon()
