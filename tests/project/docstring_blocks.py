"""Find the code in the docstrings of public names, and the names that it expects."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docstring_calls import CALLS
from page_blocks import Block

import trio_offload
import trio_offload_worker
from trio_offload import connection, telemetry
from trio_offload_worker import from_worker, handles

MODULES: tuple[ModuleType, ...] = (trio_offload, connection, trio_offload_worker, from_worker, handles, telemetry)
_LITERAL_BLOCK = re.compile(r"::\n\n((?:[ ]+.*\n|\n)+)")

# What the code of a docstring takes for granted.
BEFORE = {
    "trio_offload_worker.MemoryInfo": "path = 'a.csv'\ndef load(path): return [path]",
    "trio_offload_worker.memory_info": "path = 'a.csv'\ndef parse(path): return path",
    "trio_offload_worker.resident_memory": "def parse(path): return path\ndef clear_caches(): pass",
    "trio_offload_worker.handles.Barrier": "def load_tables(): pass\ndef benchmark(): return 5.0",
    "trio_offload_worker.handles.Callback": "import os\ndef write_rows(path): open(path, 'w').close()",
    "trio_offload_worker.handles.CapacityLimiter": """
        def fetch(url): return "new"
        def cached(url): return "old"
    """,
    "trio_offload_worker.handles.Condition": "def compile_release(version): print(version)",
    "trio_offload_worker.handles.Event": "def convert(path): raise ValueError(path)",
    "trio_offload_worker.handles.Lease": "import os\ndef convert(path): pass",
    "trio_offload_worker.handles.SendChannel": "import os",
    "trio_offload_worker.handles.Semaphore": "def execute(text): return [text]",
    "trio_offload_worker.handles.WorkQueue": "def digest(path): return path.upper()",
    "trio_offload.AbandonedLockError": """
        import os
        def update(lock): lock.acquire(); os.kill(os.getpid(), 9)
        def restore_backup(): pass
        lock = trio_offload.Lock()
        try:
            await trio_offload.run_sync(update, lock)
        except trio_offload.BrokenWorkerError:
            pass
    """,
    "trio_offload.Actor": """
        class Index:
            def __init__(self, path): self.words = []
            def __len__(self): return len(self.words)
            def add(self, word): self.words.append(word)
            def matches(self, pattern): yield from self.words
    """,
    "trio_offload.ActorStatistics": """
        import contextlib, os
        class Model:
            def __init__(self, path): pass
            def predict(self, x): return x or os.abort()
        inputs = [1, 0, 3]
    """,
    "trio_offload.Barrier": "def job(barrier): barrier.wait()",
    "trio_offload.BoundedSemaphore": "def render(path): pass",
    "trio_offload.BrokenBarrierError": "barrier = trio_offload.Barrier(3)\nbarrier.abort()",
    "trio_offload.BrokenWorkerError": "import os\njob = os.abort",
    "trio_offload.CapacityLimiter": "def job(downloads):\n    with downloads: pass",
    "trio_offload.Condition": """
        def job(changed):
            with changed:
                changed.notify()
    """,
    "trio_offload.CrashRecord": """
        import json, os
        from pathlib import Path
        def decode(path): os.abort()
    """,
    "trio_offload.DeadlockError": """
        def append(lock):
            with lock: pass
        lock = trio_offload.Lock()
    """,
    "trio_offload.Event": "def job(ready): ready.set()",
    "trio_offload.FailedItemsError": """
        queue = trio_offload.WorkQueue()
        await queue.put("a.jpg")
        queue.close()
        (await queue.get()).fail("not a picture")
    """,
    "trio_offload.JobProgress": "def thumbnail(path): return path\npaths = ['a', 'b']",
    "trio_offload.LocateError": """
        import os
        from trio_offload._interpreter.locate import find_worker_executable
        os.environ["TRIO_OFFLOAD_WORKER"] = "/nowhere"
        find_worker_executable.cache_clear()
    """,
    "trio_offload.Lock": "def job(lock): lock.acquire(); lock.release()",
    "trio_offload.Process": """
        def transcode(path):
            channel = from_worker.channel()
            channel.send(50)
            channel.send(100)
            return "film.webm"
    """,
    "trio_offload.RLock": "def subfolders(folder): return ['photos/2026'] if folder == 'photos' else []",
    "trio_offload.ReceiveChannel": """
        import contextlib
        send, receive = trio_offload.open_channel(1000)
        await send.send_many(range(700))
        send.close()
    """,
    "trio_offload.RemoteError": """
        class NoSuchTable(Exception):
            def __reduce__(self): raise TypeError("cannot be pickled")
        def fetch(table): raise NoSuchTable(table)
    """,
    "trio_offload.Results": "lines = ['one', 'two', 'three']",
    "trio_offload.SendChannel": """
        async def fetch(day): return [day]
        def store(rows): print("stored", *rows)
        days = ["Monday", "Tuesday"]
        send, receive = trio_offload.open_channel(100)
    """,
    "trio_offload.SendChannel.move": """
        def produce(send):
            with send:
                send.send(1)
        send, receive = trio_offload.open_channel[int](5)
    """,
    "trio_offload.Semaphore": "def job(connections):\n    with connections: pass",
    "trio_offload.SharedArray": "def fill(shared): shared.array[:] = 1",
    "trio_offload.SharedCounter": "def job(counter): counter.add()",
    "trio_offload.SharedObject": """
        import functools
        cache = {"one": 1, "two": 2}
        def look_up(shared, key): return shared.get(key)
        keys = ["two", "three"]
    """,
    "trio_offload.Stream": "def read_log(path): yield from ['INFO: started', 'ERROR: disk full', 'INFO: ended']",
    "trio_offload.StreamStatistics": """
        async def insert(row): pass
        def read_rows(path): yield from range(3)
        path = "a.csv"
    """,
    "trio_offload.WaitingJob": """
        def update(lock):
            with lock: pass
        lock = trio_offload.Lock()
        await lock.acquire()
        nursery = await page_stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(trio_offload.run_sync, update, lock)
        while not trio_offload.default_context_statistics().waiting:
            await trio.sleep(0.01)
    """,
    "trio_offload.WorkQueue": """
        paths = ["a", "b"]
        def work(queue):
            for lease in queue:
                with lease:
                    pass
    """,
    "trio_offload.WorkerContext": "path = 'a.csv'\ndef parse(path): return path",
    "trio_offload.WorkerContext.map": "def thumbnail(path): return path\npaths = ['a', 'b']",
    "trio_offload.WorkerContext.stream": "path = 'a.csv'\ndef read_rows(path):\n    yield path",
    "trio_offload.WorkerContextStatistics": """
        context = await page_stack.enter_async_context(trio_offload.open_worker_context())
        await context.prewarm(1)
    """,
    "trio_offload.JobExitError": "import sys",
    "trio_offload.WorkerMemoryError": """
        path = "a.csv"
        def parse(path): return bytearray(2**32)
    """,
    "trio_offload.WorkerStartError": """
        def connect(): raise ConnectionError("refused")
        def query(text): pass
    """,
    "trio_offload.WorkerStatistics": """
        context = await page_stack.enter_async_context(trio_offload.open_worker_context())
        await context.run_sync(len, "abc")
    """,
    "trio_offload.WorkerTimeoutError": "import time\ndef job(): time.sleep(60)",
    "trio_offload.WorkerType": "import sys\npath = 'a.csv'\ndef parse(path): return path",
    "trio_offload.cache_scope": """
        path = "a.csv"
        class library:
            async def process(path): await trio_offload.run_sync(len, path)
    """,
    "trio_offload.callback": "def job(report): report(1)",
    "trio_offload.configure_default_context": """
        import warnings
        warnings.filterwarnings("ignore", "configure_default_context.. replaces a default context")
    """,
    "trio_offload.default_context_statistics": """
        path = "a.csv"
        class library:
            async def process(path):
                for _ in range(3): await trio_offload.run_sync(len, path)
    """,
    "trio_offload.open_actor": """
        x = 1
        class Model:
            def __init__(self, path): pass
            def predict(self, x): return x
        def job(model): return model.predict(1)
    """,
    "trio_offload.open_channel": """
        Row = int
        def rows(): return [1, 2]
        def produce(send):
            with send:
                for row in [1, 2]:
                    send.send(row)
    """,
    "trio_offload.open_process": """
        question = 1
        def serve_model(path):
            channel = from_worker.channel()
            for question in channel:
                channel.send(question)
    """,
    "trio_offload.open_worker_context": "path = 'a.csv'\ndef parse(path): return path",
    "trio_offload.prewarm": "async def read_settings(): return {}",
    "trio_offload.retire_when": "path = 'a.csv'\ndef parse(path): return path",
    "trio_offload.run_sync": """
        path = "page.txt"
        def word_count(path): return 3
        def recognize(path): pass
    """,
    "trio_offload.share": "table = {'key': 1}\ndef job(shared): return shared.get('key')",
    "trio_offload.connection.Connection": "import json",
    "trio_offload.connection.Connection.move": """
        ours, theirs = connection.pipe()
        def work(connection): pass
    """,
    "trio_offload.connection.Listener": """
        import multiprocessing.connection
        def report(address):
            with multiprocessing.connection.Client(address) as client:
                client.send("done")
        nursery = await page_stack.enter_async_context(trio.open_nursery())
    """,
    "trio_offload.connection.authenticate": """
        import functools
        import socket
        from trio_offload import connection
        key = b"secret"
        tunnel, other = socket.socketpair()
        listener = connection.adopt(other)
        nursery = await page_stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(functools.partial(connection.authenticate, listener, key, side="listener"))
    """,
    "trio_offload.connection.adopt": """
        import types
        class Process:
            def __init__(self, target, args): pass
            def start(self): pass
        multiprocessing = types.SimpleNamespace(Process=Process, Pipe=__import__("multiprocessing").Pipe)
    """,
    "trio_offload.connection.listen": """
        import contextlib
        import types
        key = b"secret"
        async def handle(client): pass
        @contextlib.asynccontextmanager
        async def listen(address, authkey):
            async with trio_offload.connection.listen(authkey=authkey) as listener:
                yield listener
        async def serve(handler, address, authkey):
            await trio_offload.connection.serve(handler, authkey=authkey)
        async def open_client(address, authkey):
            ours, theirs = trio_offload.connection.pipe()
            nursery.start_soon(theirs.send, "hello")
            return ours
        connection = types.SimpleNamespace(listen=listen, serve=serve, open_client=open_client)
        nursery = await page_stack.enter_async_context(trio.open_nursery())
    """,
    "trio_offload.connection.pipe": """
        from trio_offload import connection
        def work(connection): connection.recv()
    """,
    "trio_offload.telemetry.uninstrument": "import math\nfrom trio_offload import telemetry",
    "trio_offload_worker.from_worker.BrokenBarrierError": "def advance(part): pass",
    "trio_offload_worker.from_worker.Cancelled": "import os",
    "trio_offload_worker.from_worker.EndOfChannel": "def store(batch): print(batch)",
    "trio_offload_worker.from_worker.Job": "import threading",
    "trio_offload_worker.from_worker.JobEndedError": "import os\nimport threading",
    "trio_offload_worker.from_worker.RemoteError": """
        class NoSuchUser(Exception):
            def __reduce__(self): raise TypeError("not to be pickled")
        async def find_user(name): raise NoSuchUser(name)
    """,
    "trio_offload_worker.from_worker.WouldBlock": "import os",
    "trio_offload_worker.from_worker.cancelled": "import random",
    "trio_offload_worker.from_worker.check_cancelled": "paths = ['a']\ndef convert(path): pass",
    "trio_offload_worker.from_worker.job": """
        from concurrent.futures import ThreadPoolExecutor
        def convert(path):
            from_worker.check_cancelled()
            return path
    """,
    "trio_offload_worker.from_worker.progress": "import os\nimport zlib",
    "trio_offload_worker.from_worker.run_async": "async def fetch(url): print(url)",
    "trio_offload_worker.from_worker.run_sync": "import os",
    "trio_offload_worker.from_worker.shielded": """
        state = {}
        def save(state): pass
        def go_on(state): pass
    """,
    "trio_offload_worker.from_worker.track": "paths = ['a', 'b']",
    "trio_offload_worker.handles": "lock = trio_offload.Lock()\nsend, receive = trio_offload.open_channel(5)",
}
AFTER = {
    "trio_offload.LocateError": "del os.environ['TRIO_OFFLOAD_WORKER']",
    "trio_offload.WaitingJob": "lock.release()",
}
# What the code prints. Without an entry, a block with `print` must print something.
PRINTED = {
    "trio_offload_worker.MemoryInfo": "… bytes, … at the peak",
    "trio_offload_worker.handles.Condition": "1.2",
    "trio_offload.AbandonedLockError": "__main__.update was ended by <Signals.SIGKILL: 9>",
    "trio_offload.Actor": "1\ntrio",
    "trio_offload.ActorStatistics": "1\n3\n2 answers of 2 models",
    "trio_offload.BoundedSemaphore": "semaphore released too many times",
    "trio_offload.BrokenBarrierError": "3 parties, but not all have come",
    "trio_offload.BrokenWorkerError": "…Fatal Python error: Aborted\n…\n",
    "trio_offload.CrashRecord": "__main__.decode died after 0.0 s with … bytes",
    "trio_offload.DeadlockError": "deadlock: the task … would wait for the end of its job, … which waits for the Lock …",
    "trio_offload.FailedItemsError": "a.jpg: not a picture",
    "trio_offload.JobExitError": "3",
    "trio_offload.JobProgress": "… of 2, …%\n2 of 2, 100%",
    "trio_offload.LocateError": "no workers, so threads: the worker executable (trio-offload-worker) was not found.…\n…",
    "trio_offload.Process": "…transcode: 50 %\n…transcode: 100 %\nfilm.webm 0",
    "trio_offload.ReceiveChannel": "insert 500 rows\ninsert 200 rows",
    "trio_offload.RemoteError": "nothing to fetch: users",
    "trio_offload.Results": "3 5",
    "trio_offload.SendChannel": "stored Monday Tuesday",
    "trio_offload.SharedObject": "[2, None]",
    "trio_offload.Stream": "ERROR: disk full",
    "trio_offload.StreamStatistics": "…\n3 rows have come: reading is slower than inserting",
    "trio_offload.WaitingJob": "…update: acquire of …Lock…, locked by …, … s",
    "trio_offload.WorkerContext": "a.csv 60",
    "trio_offload.WorkerContextCounters": "… calls, … s each\n…",
    "trio_offload.WorkerContextStatistics": "0 calls, 1 idle, … bytes",
    "trio_offload.WorkerStartError": "no worker: ConnectionError('refused')",
    "trio_offload.WorkerStatistics": "worker … took … bytes, in 1 jobs",
    "trio_offload.WorkerType": "a.csv",
    "trio_offload.atexit_shutdown_grace_period": "workers get 10 s at exit",
    "trio_offload.current_default_process_limiter": "0 of … tokens are in use",
    "trio_offload.default_context_statistics": "3 calls of run_sync",
    "trio_offload.run_sync": "3",
    "trio_offload_worker.from_worker.JobEndedError": "…",  # the job may end before the first line
}
SOMETHING = "……\n…\n"
FIRST = """
import trio_offload_worker
from trio_offload import *
from trio_offload import connection
from trio_offload_worker import from_worker, handles
"""
MARKS = {
    "trio_offload.connection.listen": {"cancel after": "0.1"},
    "trio_offload.connection.serve": {"cancel after": "0.1"},
    "trio_offload_worker.single_threaded": {"not run": "needs the rights of a superuser"},
}


def public_texts() -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each public module, function, class and method."""
    for module in MODULES:
        yield module.__name__, inspect.getdoc(module) or ""
        for name in module.__all__:
            value: Any = getattr(module, name)
            yield f"{module.__name__}.{name}", inspect.getdoc(value) or ""
            if inspect.isclass(value):
                for member in dir(value):
                    if not member.startswith("_"):
                        yield f"{module.__name__}.{name}.{member}", inspect.getdoc(getattr(value, member)) or ""


def examples() -> Iterator[tuple[str, list[str]]]:
    """Yield each public name, with the blocks of code in its docstring."""
    for module in MODULES:
        for name in module.__all__:
            text = inspect.getdoc(getattr(module, name)) or ""
            yield f"{module.__name__}.{name}", _LITERAL_BLOCK.findall(text + "\n")


def docstring_blocks() -> list[Block]:
    """Return the code of all docstrings, between what it takes for granted and its calls."""
    blocks = [Block("docstrings", 1, "python", FIRST)]
    seen = set()
    for name, text in public_texts():
        for found in _LITERAL_BLOCK.finditer(text + "\n"):
            # A method and a function may share a docstring.
            if found[1] not in seen:
                seen.add(found[1])
                line = text[: found.start(1)].count("\n") + 1
                blocks.append(Block(name, 1, "python", textwrap.dedent(BEFORE.get(name, ""))))
                code = textwrap.dedent(found[1])
                printed = PRINTED.get(name, SOMETHING if "print(" in code else None)
                calls = textwrap.dedent(CALLS.get(name, ""))
                blocks.append(Block(name, line, "python", code, MARKS.get(name, {}), None if calls else printed))
                blocks.append(Block(name, 1, "python", calls, output=printed if calls else None))
                blocks.append(Block(name, 1, "python", AFTER.get(name, "")))
    return blocks
