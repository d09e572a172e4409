"""Jobs that use multiprocessing, subprocess and concurrent.futures, as people's jobs do."""

import os
import subprocess
import sys
import time


def imported():
    return "multiprocessing" in sys.modules


def import_it():
    import multiprocessing.managers
    import multiprocessing.pool

    return multiprocessing.current_process().name


def identity():
    import multiprocessing

    current, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return {
        "pid": os.getpid(),
        "current": (current.name, current.pid, current.daemon, current.is_alive()),
        "parent": parent and (parent.name, parent.pid, parent.is_alive()),
        "children": multiprocessing.active_children(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "key": bytes(current.authkey),
    }


def log():
    import logging

    record = logging.LogRecord("name", 20, __file__, 1, "message", (), None)
    return record.processName, record.process


def append(proxy, value):
    proxy.append(value)
    return len(proxy)


def put_into(mapping, key, value):
    mapping[key] = value
    return sorted(mapping.keys())


def increment(lock, namespace, times):
    for _ in range(times):
        with lock:
            value = namespace.value
            time.sleep(0.0001)
            namespace.value = value + 1


def through_queues(inbox, outbox):
    outbox.put(inbox.get() * 2)


def meet(event, other):
    other.set()
    assert event.wait(60)
    return "met"


def returned(proxy):
    return proxy


def nested_proxies(structure):
    structure["list"][0].append("nested")
    return structure


def with_manager_of_its_own():
    import multiprocessing

    with multiprocessing.Manager() as manager:
        numbers = manager.list([1, 2])
        with multiprocessing.Pool(1) as pool:
            pool.apply(append, (numbers, 3))
        return list(numbers)


def square(number):
    return number * number


def report(queue):
    import multiprocessing

    parent = multiprocessing.parent_process()
    queue.put((os.getpid(), parent and parent.pid, bytes(multiprocessing.current_process().authkey)))


def with_process(method):
    import multiprocessing

    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=report, args=(queue,))
    process.start()
    found = queue.get(timeout=60)
    process.join()
    return found, process.pid, process.exitcode, os.getpid()


def with_pool(method):
    import multiprocessing

    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(square, range(5)), pool.apply_async(divmod, (7, 2)).get(60)


def with_executor(method):
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        return list(executor.map(square, range(5)))


def with_threads():
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        return list(executor.map(square, range(5)))


def with_pipe():
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=theirs.send, args=("through the pipe",))
    process.start()
    found = ours.recv()
    process.join()
    return found


def with_subprocess():
    run = subprocess.run([sys.executable, "-c", "import sys; print(sys.version)"], stdout=subprocess.PIPE, check=True)
    code = subprocess.run(["sh", "-c", "exit 7"]).returncode
    shell = subprocess.check_output("echo $((2 + 3))", shell=True)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        echoed = process.communicate(b"echoed")[0]
    return run.stdout.decode().strip() == sys.version, code, shell, echoed


def with_fork():
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def leave_process(seconds, daemon):
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(seconds,), daemon=daemon)
    process.start()
    return process.pid


def fail_in_child():
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=divmod, args=(1, 0))
    process.start()
    process.join()
    return process.exitcode


def fork_and_return():
    """The copy returns from the job as well, and before the worker does."""
    pid = os.fork()
    if pid == 0:
        return "child"
    os.waitpid(pid, 0)
    return "parent"


def fork_and_raise():
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the copy")
    os.waitpid(pid, 0)
    return "parent"


def write_shared(name, text):
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(name)
    block.buf[: len(text)] = text
    block.close()


def make_shared(text):
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=len(text))
    block.buf[: len(text)] = text
    block.close()
    return block.name


def nested(function, *args):
    import trio

    import trio_offload

    return trio.run(trio_offload.run_sync, function, *args)


def nested_chain(depth):
    return [os.getpid()] if depth == 0 else [os.getpid(), *nested(nested_chain, depth - 1)]


def nested_and_cancelled():
    import trio

    import trio_offload

    async def main():
        with trio.move_on_after(0.5) as scope:
            await trio_offload.run_sync(time.sleep, 1000, kill_on_cancel=True)
        return scope.cancelled_caught, await trio_offload.run_sync(square, 3)

    return trio.run(main)


def nested_at_once():
    import trio

    import trio_offload

    async def main():
        async with trio_offload.open_worker_context() as context, trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(context.run_sync, square, number)
        return "done"

    return trio.run(main)


def nested_and_leave(path):
    """Ends with a nested worker in the middle of a job that never ends."""
    import threading

    import trio

    import trio_offload

    threading.Thread(target=trio.run, args=(trio_offload.run_sync, spin, path), daemon=True).start()
    while not os.path.exists(path):
        time.sleep(0.01)
    with open(path) as file:
        return int(file.read())


def spin(path):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    while True:
        pass
