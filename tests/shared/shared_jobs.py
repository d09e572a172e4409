"""Jobs that use shared memory."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
from typing import Any


def total(shared: Any) -> float:
    return float(shared.array.sum())


def fill(shared: Any, value: Any) -> None:
    shared.array[...] = value


def describe(shared: Any) -> tuple[Any, ...]:
    array = shared.array
    return type(array).__name__, array.shape, str(array.dtype), array.flags.f_contiguous, array.flags.writeable


def plain(shared: Any, index: int, value: Any) -> tuple[str, Any, Any]:
    """Without NumPy: the type of a view, the shape, and an item, which is then set."""
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        view = shared.array
        before = view[index]
        view[index] = value
        return type(view).__name__, view.shape, before
    finally:
        del sys.modules["numpy"]


def is_numpy_loaded(shared: Any) -> bool:
    return "numpy" in sys.modules


def identity(value: Any) -> Any:
    return value


def kind_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def receive_and_fill(channel: Any, value: Any) -> int:
    count = 0
    for shared in channel:
        shared.array[...] = value
        count += 1
    return count


def write_to_read_only(shared: Any) -> list[str]:
    """Try every way to write to it. Return what came of each."""
    outcomes = []

    def attempt(work: Any) -> None:
        try:
            work()
            outcomes.append("written")
        except Exception as error:
            outcomes.append(type(error).__name__)

    descriptor = shared.fetch().take()
    attempt(lambda: shared.array.__setitem__(0, 1))
    attempt(lambda: shared.array.setflags(write=True))
    attempt(lambda: mmap.mmap(descriptor, 8, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
    attempt(lambda: os.write(descriptor, b"x"))
    attempt(lambda: os.ftruncate(descriptor, 0))
    os.close(descriptor)
    return outcomes


def resize(shared: Any) -> list[str]:
    outcomes = []
    descriptor = shared.fetch().take()
    for size in (0, 10**6):
        try:
            os.ftruncate(descriptor, size)
            outcomes.append("resized")
        except OSError as error:
            outcomes.append(type(error).__name__)
    os.close(descriptor)
    return outcomes


def write_by_reopening(shared: Any) -> str:
    descriptor = shared.fetch().take()
    try:
        other = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            os.write(other, b"x")
            return "written"
        finally:
            os.close(other)
    except OSError as error:
        return type(error).__name__
    finally:
        os.close(descriptor)


def die_with(shared: Any, signal_number: int) -> None:
    shared.array[...] = 7
    os.kill(os.getpid(), signal_number)


kept: list[Any] = []


def keep_view(shared: Any) -> None:
    kept.append(shared.array)


def sum_of_kept() -> float:
    return float(kept.pop().sum())


def descriptors_and_mappings() -> tuple[int, int]:
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum("trio-offload-shared" in line for line in maps)


def use_twice(first: Any, second: Any) -> tuple[int, float]:
    """Two handles of one array share a mapping."""
    first.array[...] = 3
    with open("/proc/self/maps") as maps:
        mapped = sum("trio-offload-shared" in line for line in maps)
    result = float(second.array.sum())
    return mapped, result


# --- counters ------------------------------------------------------------------------------------


def add(counter: Any, times: int, number: int = 1) -> int:
    for _ in range(times):
        counter.add(number)
    value: int = counter.value
    return value


def add_in_threads(counter: Any, threads: int, times: int) -> None:
    workers = [threading.Thread(target=add, args=(counter, times)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def add_and_die(counter: Any, times: int) -> None:
    add(counter, times)
    os.kill(os.getpid(), signal.SIGKILL)


def add_in_handler(counter: Any, times: int) -> int:
    """Add, and in a signal handler too. Return how often the handler has."""
    handled = 0

    def handle(*_: Any) -> None:
        nonlocal handled
        handled += 1
        counter.add()

    counter.add(0)  # the first use asks the parent, which takes longer than the time between two signals
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        add(counter, times)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return handled


def add_in_fork(counter: Any) -> str:
    """A copy of the job has no word of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            counter.add()
            os.write(write, b"added")
        except RuntimeError as error:
            os.write(write, type(error).__name__.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    outcome = os.read(read, 100).decode()
    os.close(read)
    return outcome


def place(counter: Any) -> int | None:
    """The index of this process's word."""
    counter.add(0)
    word = counter._counter().word
    return None if word is None else word.place


def add_to_kept(number: int) -> int:
    """Add to the counter that ``init`` has kept."""
    kept[0].add(number)
    value: int = kept[0].value
    return value


def keep(value: Any) -> None:
    kept.append(value)


def set_item(shared: Any, index: int, value: Any) -> Any:
    items = shared.array
    before = items[index].item()
    items[index] = value
    return before


def read_items(shared: Any, index: int, begin: int, end: int) -> tuple[Any, list[Any], int]:
    items = shared.array
    return items[index].item(), items[begin:end].tolist(), len(items)


def add_with_lock(shared: Any, lock: Any, times: int) -> None:
    items = shared.array
    for _ in range(times):
        with lock:
            items[0] = items[0] + 1


def fill_when_cancelled(shared: Any, began: Any, value: int) -> None:
    from trio_offload_worker import from_worker

    began.set()
    try:
        from_worker.sleep(60)
    except from_worker.Cancelled:
        shared.array[...] = value
        raise


# --- faults --------------------------------------------------------------------------------------


def tick_for_ever(shared: Any, counter: Any) -> None:
    view = shared.array
    while True:
        counter.add(1)
        view[999] += 1


def read_item(shared: Any, index: int) -> int:
    return int(shared.array[index])
