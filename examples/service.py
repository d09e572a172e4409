"""A service on plain Trio TCP: bounded work, timeouts, figures, and an orderly end on SIGTERM.

    $ python service.py 8000 &
    $ echo 'primes 10000' | nc localhost 8000

A request is a line: ``primes NUMBER`` or ``metrics``. Each gets one line.
"""

import functools
import math
import signal
import sys

import trio

import trio_offload

MAX_REQUESTS = 3  # that run or wait for a worker; more are refused
TIMEOUT = 2  # seconds that a request may run
GRACE = 5  # seconds that requests get to finish at the end
MAX_LINE = 1000  # bytes


def count_primes(limit: int) -> int:
    return sum(all(number % divisor for divisor in range(2, math.isqrt(number) + 1)) for number in range(2, limit))


class Service:
    def __init__(self, context: trio_offload.WorkerContext) -> None:
        self.context = context
        self.admission = trio.CapacityLimiter(MAX_REQUESTS)
        self.refused = 0
        self.stopping = False
        self.idle: set[trio.CancelScope] = set()

    async def answer(self, request: str) -> str:
        command, _, argument = request.partition(" ")
        if command == "metrics":
            counters = self.context.statistics().counters
            return f"returned={counters.calls_returned} timed_out={counters.calls_timed_out} refused={self.refused}"
        try:
            self.admission.acquire_nowait()  # a queue without a bound would answer nobody in time
        except trio.WouldBlock:
            self.refused += 1
            return "busy, try again later"
        try:
            return str(await self.context.run_sync(count_primes, int(argument), timeout=TIMEOUT, kill_on_cancel=True))
        except trio_offload.WorkerTimeoutError:
            return f"given up after {TIMEOUT} seconds"
        except Exception as error:  # one request's fault, also if its worker has died
            return f"failed: {type(error).__name__}"
        finally:
            self.admission.release()

    async def talk(self, stream: trio.SocketStream) -> None:
        """Serve one connection until its end, or until the service stops."""
        unread = b""
        try:
            while not self.stopping and len(unread) <= MAX_LINE:
                line, newline, rest = unread.partition(b"\n")
                if newline:
                    unread = rest
                    await stream.send_all((await self.answer(line.decode(errors="replace").strip())).encode() + b"\n")
                    continue
                data = b""
                with trio.CancelScope() as idle:
                    self.idle.add(idle)
                    data = await stream.receive_some()
                self.idle.discard(idle)
                if not data:
                    break
                unread += data
        except trio.BrokenResourceError:
            pass  # the client has gone


async def main(port: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio_offload.open_worker_context(min_idle=1) as context:
            service = Service(context)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as listening:
                    serve = functools.partial(trio.serve_tcp, service.talk, port, host="127.0.0.1")
                    (listener,) = await listening.start(functools.partial(serve, handler_nursery=connections))
                    print(f"listening on port {listener.socket.getsockname()[1]}", flush=True)
                    async for _ in signals:
                        break
                    listening.cancel_scope.cancel()
                # Requests finish, and connections that wait for the next one end.
                service.stopping = True
                for scope in service.idle:
                    scope.cancel()
                # Then the workers of requests that still run are killed.
                connections.cancel_scope.deadline = trio.current_time() + GRACE
    print(f"stopped: {await service.answer('metrics')}")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if sys.argv[1:] else 0)
