"""Jobs that send and receive."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from typing import Any

from trio_offload_worker import from_worker


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def outcome(method: Any, *args: Any, **options: Any) -> Any:
    """The value, or the names of the exception."""
    try:
        return method(*args, **options)
    except (Exception, from_worker.Cancelled) as error:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def produce(send: Any, items: list[Any], end: str = "") -> int:
    for item in items:
        send.send(item)
    if end == "die":
        die()
    if end == "raise":
        raise LookupError("the job raises")
    return len(items)


def produce_forever(send: Any) -> None:
    for number in itertools.count():
        send.send(number)


def item_of_kind(number: int) -> Any:
    kinds = (number, "x" * (number % 1500), [number], bytes(number % 5000), None)
    return kinds[number % len(kinds)]


def produce_kinds(send: Any, count: int) -> None:
    """Send items of several kinds. A few are ends of this channel."""
    for number in range(count):
        if number % 140 == 139:
            with send.clone() as clone:
                send.send(clone)
        else:
            send.send(item_of_kind(number))


def produce_many(send: Any, count: int) -> None:
    send.send_many(range(count))


def consume(receive: Any) -> list[Any]:
    return list(receive)


def consume_some(receive: Any, count: int) -> list[Any]:
    return [receive.receive() for _ in range(count)]


def consume_and_die(receive: Any, count: int) -> None:
    for _ in range(count):
        receive.receive()
    die()


def each_method(send: Any, receive: Any) -> list[Any]:
    """The channel has a buffer of two items."""
    results = [
        send.send_nowait(1),
        send.send(2),
        outcome(send.send_nowait, 3),
        outcome(send.send, 3, timeout=0.01),
        vars(send.statistics())["current_buffer_used"],
        receive.receive_nowait(),
        receive.receive(),
        outcome(receive.receive_nowait),
        outcome(receive.receive, timeout=0.01),
    ]
    other_send, other_receive = send.clone(), receive.clone()
    results.append(vars(receive.statistics())["open_send_channels"])
    other_send.send("a")
    with send:
        pass
    results += [outcome(send.send, 4), outcome(send.clone), other_receive.receive_many(5)]
    other_send.send_many(["b", "c"])
    other_send.close()
    return [*results, list(receive), outcome(other_receive.receive), outcome(receive.receive_many, 0)]


def send_unpicklable(send: Any) -> str:
    return str(outcome(send.send, threading.Lock())).partition(":")[0]


def try_send(send: Any) -> str:
    return str(outcome(send.send, 1))


def receive_unloadable(receive: Any) -> list[Any]:
    return [outcome(receive.receive), receive.receive()]


class Unloadable:
    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise LookupError("not today")


class Deadly:
    """Kills the worker that unpickles it."""

    def __reduce__(self) -> Any:
        return die, ()


def receive_three(receive: Any, gate: Any, way: str) -> list[Any]:
    """Receive three, while the rest has come already. Then end in this way."""
    items = [receive.receive() for _ in range(3)]
    gate.receive()
    if way == "dies":
        die()
    if way == "closes":
        receive.close()
        items.append(outcome(receive.receive))
    return items


def receive_in_many_ways(receive: Any) -> list[Any]:
    return [receive.receive(), receive.receive_nowait(), receive.receive_many(2), receive.receive_many(9)]


def pass_on(receive: Any, send: Any) -> None:
    for item in receive:
        send.send(item)


def size_of_each(receive: Any) -> list[int]:
    return [len(item) for item in receive]


def by_threads(send: Any, receive: Any, threads: int, items: int) -> list[Any]:
    """Each thread sends and receives."""
    received: list[Any] = []

    def work(number: int) -> None:
        for item in range(items):
            send.send((number, item))
            received.append(receive.receive())

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return received


def return_it(end: Any) -> Any:
    return end


def send_it(send: Any, end: Any) -> None:
    send.send({"end": end})


def use_end_from(receive: Any) -> None:
    with receive.receive()["end"] as end:
        end.send("from the other job")


def leave_thread_waiting(receive: Any) -> None:
    thread = threading.Thread(target=outcome, args=(receive.receive,), daemon=True)
    thread.start()
    time.sleep(0.05)


def receive_until_cancelled(receive: Any, send: Any) -> str:
    result = outcome(receive.receive)
    send.send_nowait("last words")
    return str(outcome(send.send, "never")) + " " + str(result)


class AlarmError(Exception):
    pass


def receive_with_alarm(receive: Any, send: Any) -> None:
    """A signal handler raises in the wait. Then an item comes."""

    def on_alarm(*_: object) -> None:
        raise AlarmError

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    send.send(outcome(receive.receive))
    send.send(receive.receive())


# --- work queues


def work(queue: Any) -> list[Any]:
    done = []
    for lease in queue:
        with lease:
            done.append(lease.item)
    return done


def work_and_die(queue: Any, item: Any) -> list[Any]:
    """Die at one item."""
    done = []
    for lease in queue:
        with lease:
            if lease.item == item:
                die()
            done.append(lease.item)
    return done


def each_method_of_queue(queue: Any) -> list[Any]:
    """The queue has a buffer of two items."""
    results = [
        queue.put("a"),
        queue.put_nowait("b"),
        outcome(queue.put_nowait, "c"),
        outcome(queue.put, "c", timeout=0.01),
    ]
    lease, second = queue.get(), queue.get_nowait()
    results += [lease.item, second.item, outcome(queue.get_nowait), outcome(queue.get, timeout=0.01)]
    results += [outcome(queue.join, timeout=0.01), vars(queue.statistics())["leased"]]
    second.give_back()
    lease.give_back()
    results.append(outcome(lease.done))
    with queue.get() as third:
        results.append(third.item)
    queue.get().fail("its holder says so")
    queue.close()
    return [*results, outcome(queue.get), outcome(queue.put, "d"), outcome(queue.join)]


def call_with_lease(queue: Any, function: Any) -> None:
    with queue.get():
        function()


def forget_lease(queue: Any) -> Any:
    return queue.get().item
