"""A forked process whose number is not known yet."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

import trio

from trio_offload_worker._system.linux import identity_of, open_pidfd

from .. import _clock
from .._transport.sockets import socket_pair
from .fork_lock import fork_lock
from .oom import OomKills
from .proc import start_time
from .process import WorkerProcess
from .record import RecordFile

# Seconds until a template that has not forked is killed; a fork takes a thousandth of that.
_FORK_TIMEOUT: Final = 5.0


class ForkedProcess(WorkerProcess):
    """A process that a template was asked to fork. It counts as running.

    ``pid`` is 0 until its number is known.

    It first writes its number into a pipe. If the pipe ends without one, the record tells why.
    With a number in the record, the process was killed before it could write to the pipe. Without
    one, the template has died or could not fork, and no process exists.
    """

    def __init__(self, pid_pipe: int, template: WorkerProcess, record: RecordFile) -> None:
        super().__init__(0, None)
        self._pid_pipe = pid_pipe
        self._template = template
        self._record = record

    @property
    def has_pid(self) -> bool:
        """True if its number is known, which the arrival of one of its frames implies."""
        return self.read_pid()

    def read_pid(self) -> bool:
        """Read the number if it has arrived. Return True if it has."""
        with self._lock:
            return self.pid != 0 or (not self.ended and self._receive_pid())

    async def wait(self) -> None:
        if self.killed and self.pid == 0 and not self.poll():
            with _clock.move_on_after(_FORK_TIMEOUT), self._kept_pidfd() as pid_pipe:
                if pid_pipe is not None:
                    await trio.lowlevel.wait_readable(pid_pipe)
            self._end_mute_template()
        await super().wait()

    def wait_sync(self, deadline: float) -> bool:
        if self.killed and self.pid == 0:
            if super().wait_sync(min(deadline, time.monotonic() + _FORK_TIMEOUT)):
                return True
            self._end_mute_template()
        return super().wait_sync(deadline)

    def _kill(self) -> None:
        self.killed = True
        if self.pid != 0:
            self._end_family()

    def _end_mute_template(self) -> None:
        """End a template that does not handle the request, for example because it is stopped."""
        if not self.poll() and self.pid == 0:
            self._template.kill()

    def _reap(self, options: int) -> bool:
        if self.pid == 0 and not self.ended and not self._receive_pid():
            return self.ended
        return super()._reap(options)

    def _receive_pid(self) -> bool:
        try:
            number = os.read(self._pid_pipe, 4)
        except BlockingIOError:
            return False
        pid = int.from_bytes(number, "big") if len(number) == 4 else self._record.pid_of_fork()
        if pid == 0:
            self.ended = True
            self._close_pidfd()
            return False
        self.pid = pid
        # Only this program reaps its children, so the number is not reused yet. Close the pipe
        # first: there may be no other free descriptor.
        self._close_pid_pipe()
        self._pidfd = open_pidfd(self.pid)
        if self._pidfd is None:
            self._start_time = start_time(self.pid)
        else:
            self._pidfd_identity = identity_of(self._pidfd)
        if self.killed:
            self._end_family()
        return True

    def _awaited(self) -> int | None:
        return self._pidfd if self.pid != 0 else self._pid_pipe if self._pid_pipe != -1 else None

    def _close_pidfd(self) -> None:
        super()._close_pidfd()
        self._close_pid_pipe()

    def _close_pid_pipe(self) -> None:
        if self._waiting == 0 and self._pid_pipe != -1:
            pid_pipe, self._pid_pipe = self._pid_pipe, -1
            os.close(pid_pipe)


class PendingFork:
    """A forked process with an unknown number: its socket, its record, and the pipe for the number.

    A standby process is requested before it is needed. Then ``oom_kills`` has been counted already,
    which takes longest of the parent's steps of a start.
    """

    def __init__(self, template: WorkerProcess, oom_kills: OomKills | None = None) -> None:
        self.oom_kills: Final = oom_kills
        with fork_lock, contextlib.ExitStack() as made:
            self.ours, self.theirs = socket_pair()
            made.callback(self.ours.close)
            made.callback(self.theirs.close)
            self.record = RecordFile()
            made.callback(self.record.close)
            pid_pipe, self.written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.process = ForkedProcess(pid_pipe, template, self.record)
            self.process.socket = self.ours
            made.pop_all()
            fork_lock.register(self.process, self.ours, self.record, self)

    def ask(self, send: Callable[[list[int]], bool]) -> bool:
        """Request the process. Return False, and close this object, if that fails at this moment.

        Args:
            send: called with the template's ends in the order of PROTOCOL.md. Returns True if it
                has sent them.
        """
        asked = False
        try:
            with fork_lock:
                asked = send([self.theirs.fileno(), self.record.fileno(), self.written])
                if asked:
                    self._close_template_ends()
        finally:
            if not asked:
                self.close()
        return asked

    def _close_template_ends(self) -> None:
        """Close the template's ends, which it has received."""
        with fork_lock:
            self.theirs.close()
            if self.written != -1:
                written, self.written = self.written, -1
                os.close(written)

    def close(self) -> None:
        """Close all: the fork has failed, or this is a fork of the program."""
        with fork_lock:
            self._close_template_ends()
            self.ours.close()
            self.record.close()
            self.process.abandon()
