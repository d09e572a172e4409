"""A program that makes calls of all kinds from several threads. The soak starts some of these, and looks at what they leave.

    python tests/soak/program.py --folder FOLDER --seed SEED --seconds N --rest N [--loop] [--threads N]

It works for a round of `--rest` seconds, rests and tells its figures in a line of JSON, and so on. Before it measures itself it says
so and waits for a line on standard input: nobody is to be killed then.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

import attrs
import processes
import trio
from ledger import Files, Writer
from scenes import Lane

import trio_offload
from trio_offload import WorkerType

HUNG_AFTER: Final = 100.0  # seconds that no call takes, on a busy machine too
LANES: Final = 3
_SETTLING: Final = 0.5  # seconds


@attrs.define
class Program:
    """The threads, and the lanes in them."""

    arguments: argparse.Namespace
    writer: Writer
    lanes: list[Lane] = attrs.field(factory=list)

    def run(self) -> None:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        self._tell(self._figures(), event="begins")
        end = time.monotonic() + self.arguments.seconds
        round_number = 0
        while time.monotonic() < end:
            until = min(end, time.monotonic() + self.arguments.rest)
            self._work(round_number, until)
            round_number += 1
            self._tell({}, event="rests")
            if not sys.stdin.readline():
                return
            # What has ended shall be through, and be noticed by a look at the context.
            time.sleep(_SETTLING)
            trio_offload.default_context_statistics()
            self._tell(self._figures(), event="figures")

    def _work(self, round_number: int, until: float) -> None:
        # One of the runs is the main thread's, where signals arrive.
        self.lanes = []
        others = [
            threading.Thread(target=self._run_thread, args=(round_number, number, until))
            for number in range(1, self.arguments.threads)
        ]
        for thread in others:
            thread.start()
        self._run_thread(round_number, 0, until)
        for thread in others:
            thread.join()

    def _run_thread(self, round_number: int, number: int, until: float) -> None:
        try:
            trio.run(self._run_lanes, round_number, number, until)
        except BaseException:
            self.writer.complain("undocumented", 0, f"a run of Trio ended with\n{traceback.format_exc()}")

    async def _run_lanes(self, round_number: int, thread: int, until: float) -> None:
        types = [WorkerType.SPAWN, WorkerType.FORK]
        if not self.arguments.loop:
            types.append(WorkerType.FORKSERVER)
        async with trio.open_nursery() as nursery:
            for number in range(LANES):
                rng = random.Random(f"{self.arguments.seed} {round_number} {thread} {number}")
                lane = Lane(rng, self.writer, self.arguments.folder, types)
                self.lanes.append(lane)
                nursery.start_soon(lane.run, until)

    def _figures(self) -> dict[str, Any]:
        gc.collect()
        _trim()
        children = _children()
        zombies = [pid for pid, state in children.items() if state == "Z"]
        status = Path("/proc/self/status").read_text()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "children": len(children),
            "zombies": zombies,
            # Trio keeps threads that have nothing to do for some seconds.
            "threads": sum("trio" not in thread.name.lower() for thread in threading.enumerate()),
            "memory": next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS:")),
        }

    def _tell(self, figures: dict[str, Any], *, event: str) -> None:
        print(json.dumps({"event": event, **figures}), flush=True)

    def _watch(self) -> None:
        """Complain of a scene that does not come to an end, with the stacks of its tasks."""
        complained: set[int] = set()
        while True:
            time.sleep(1)
            for lane in self.lanes:
                if lane.scene and time.monotonic() - lane.moved > HUNG_AFTER and id(lane) not in complained:
                    complained.add(id(lane))
                    text = f"{lane.scene} has not moved for {HUNG_AFTER:g} s\n{_stacks(lane.task)}\n{_processes()}"
                    self.writer.complain("hung", 0, text)
                    faulthandler.dump_traceback(all_threads=True)
                    lane.give_up()


def _stacks(task: Any, depth: int = 0) -> str:
    """Where a task and all those below it wait."""
    if task is None:
        return ""
    lines = [f"{'  ' * depth}task {task.name}"]
    for frame, line in traceback.walk_stack(None) if task.coro.cr_running else task.iter_await_frames():
        lines.append(f"{'  ' * depth}  {frame.f_code.co_filename}:{line} {frame.f_code.co_name}")
        worker = frame.f_locals.get("worker")
        if worker is not None:
            lines.append(f"{'  ' * depth}    worker: {getattr(worker, 'process', worker)}")
    for nursery in list(task.child_nurseries):
        lines += [_stacks(child, depth + 1) for child in list(nursery.child_tasks)]
    return "\n".join(lines)


def _processes() -> str:
    """Those below this one, and where each waits in the kernel."""
    lines = []
    for process in processes.descendants(os.getpid()):
        lines.append(
            f"process {process.pid}, child of {process.parent}, {process.state}: {processes.command(process.pid)[:80]}"
        )
        for task in Path(f"/proc/{process.pid}/task").glob("*"):
            try:
                lines.append(
                    f"  thread {task.name}: {(task / 'wchan').read_text()}, {(task / 'syscall').read_text().strip()}"
                )
            except OSError:
                pass
    return "\n".join(lines)


def _children() -> dict[int, str]:
    """This process's children and their states."""
    states = {}
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            process = processes.look(pid)
            if process is not None:
                states[pid] = process.state
    return states


def _trim() -> None:
    """Give back to the system what the C library keeps of freed memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run_workers_as_loops() -> None:
    from trio_offload._interpreter import locate as _locate

    way = _locate.WorkerRuntime("", "", "the soak wants it so")
    _locate.runtime = lambda: way


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rest", type=float, required=True)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--loop", action="store_true")
    arguments = parser.parse_args()
    # Crashes on purpose leave no core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if arguments.loop:
        _run_workers_as_loops()
    rng = random.Random(arguments.seed)
    retire = rng.choice([bool, object, trio_offload.retire_when(jobs=20)])
    trio_offload.configure_default_context(
        retire=retire,
        worker_type=rng.choice([WorkerType.SPAWN, WorkerType.SPAWN if arguments.loop else WorkerType.FORKSERVER]),
    )
    Program(arguments, Writer(Files(arguments.folder))).run()


if __name__ == "__main__":
    main()
