"""Ask a worker for the stacks of its Python threads, just before it is killed.

``faulthandler`` writes them to the record in the handler of a signal, even while C code holds the
GIL. The wait is short in any case, also for a worker that is stopped, sleeps in the kernel or
blocks the signal.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

from trio_offload_worker._system.linux import STACKS

from .. import _clock
from .proc import read_file

if TYPE_CHECKING:
    from .process import WorkerProcess
    from .record import RecordFile

STACKS_TIMEOUT: Final = 0.15  # seconds, as in worker-bin/src/process/record.rs
_SETTLED: Final = 0.015  # seconds without growth after which the stacks are complete
_INTERVAL: Final = 0.001  # seconds
_RECORD: Final = 4  # its descriptor, except in a fork of this process
_MAX_LOOKED_AT: Final = 1000  # descriptors


async def write_stacks(process: WorkerProcess, record: RecordFile) -> str:
    """Let a worker write the stacks of this moment to its record. The worker must be killed next.

    Return the reason why they are missing, or "".
    """
    if not _holds(process.pid, record):
        return "the job has closed the file for it"
    begun = grown = _clock.now()
    empty = size = record.size()
    asked = False
    while (now := _clock.now()) - begun < STACKS_TIMEOUT and (size == empty or now - grown < _SETTLED):
        if not asked:
            problem = _obstacle(process.pid)
            if problem:
                return problem
            try:
                asked = process.send(STACKS)
            except PermissionError:
                return "this program may not signal the worker any more"
            except ProcessLookupError:
                asked = True
        if process.poll():
            break
        await _clock.sleep(_INTERVAL)
        latest = record.size()
        if latest != size:
            size, grown = latest, _clock.now()
    if size != empty:
        return ""
    if process.ended:
        return "the worker ended by itself at that moment"
    return _obstacle(process.pid, was_asked=True) or f"the worker did not write it within {STACKS_TIMEOUT:g} seconds"


def _holds(pid: int, record: RecordFile) -> bool:
    """Return False if the worker has closed its record: the stacks would go to another file."""
    folder = f"/proc/{pid}/fd"
    try:
        for number in (_RECORD, *itertools.islice(os.listdir(folder), _MAX_LOOKED_AT)):
            try:
                status = os.stat(f"{folder}/{number}")
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) == record.identity():
                return True
    except OSError:
        # The system does not tell.
        return True
    return False


def _obstacle(pid: int, was_asked: bool = False) -> str:
    """Return the reason why a process cannot write its stacks, or ""."""
    fields = dict(line.split(":\t", 1) for line in read_file(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    state, mask = fields.get("State", "?")[0], 1 << (STACKS - 1)
    if state == "T":
        return "the worker was stopped"
    if "SigCgt" in fields and not int(fields["SigCgt"], 16) & mask:
        # The default action would end the worker, but not its child processes.
        return "the job has removed the handler that writes it"
    if was_asked and state == "D":
        return "the worker slept in the kernel, where no signal reaches it"
    if was_asked and int(fields.get("SigBlk", "0"), 16) & mask:
        return f"the job blocks the signal that asks for it, {STACKS}"
    return ""
