"""A service whose jobs share a rate limit: an upstream server allows 50 requests a second, in all.

Each client asks for the temperatures of some cities. A job in a worker gets them, one after the
other, with a blocking library. All jobs together keep the limit, with one semaphore. A task adds a
token to it 50 times a second, up to a burst of 5. No lock file or further server is needed. The
tokens of a worker that is killed stay used, because its requests were sent (``on_death="keep"``).

    $ python rate_limit.py
    client 0: Cairo 21, Lima 20, Oslo 20, Pune 20, ...
    ...
    40 requests of 4 jobs in 4 workers; at most 15 within 0.2 seconds
"""

import socket
import time

import trio

import trio_offload
from trio_offload_worker.handles import Semaphore

RATE, BURST = 50, 5
CITIES = ["Cairo", "Lima", "Oslo", "Pune", "Rome", "Suva", "Riga", "Bonn", "Doha", "Nice"]


# --- in a worker ----------------------------------------------------------------------------------


def ask_upstream(city: str, port: int) -> int:
    """Stands for a library that blocks."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(city.encode())
        return int(connection.recv(100))


def temperatures(cities: list[str], port: int, tokens: Semaphore) -> dict[str, int]:
    found = {}
    for city in cities:
        tokens.acquire()  # a task gives tokens, so a job does not return them
        found[city] = ask_upstream(city, port)
    return found


# --- in the program -------------------------------------------------------------------------------


async def refill(tokens: trio_offload.Semaphore) -> None:
    """Add a token at each tick. Ticks that come late are made up for, up to the burst."""
    began, added = trio.current_time(), 0
    while True:
        await trio.sleep_until(began + (added + 1) / RATE)
        added += 1
        if tokens.value < BURST:
            tokens.release()


class Upstream:
    """The server with the limit. It notes the time of each request."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            city = await stream.receive_some(100)
            self.times.append(time.monotonic())
            await stream.send_all(str(18 + len(self.times) % 3 + city.count(b"C")).encode())

    def most_within(self, seconds: float) -> int:
        return max(sum(start <= moment < start + seconds for moment in self.times) for start in self.times)


async def main() -> None:
    upstream, workers = Upstream(), set[int]()
    tokens = trio_offload.Semaphore(BURST, max_value=BURST, on_death="keep")
    limiter = trio.CapacityLimiter(4)  # jobs that wait use no processor

    async def answer(client: int) -> None:
        found = await trio_offload.run_sync(temperatures, CITIES, port, tokens.handle, limiter=limiter)
        workers.update(worker.pid for worker in trio_offload.default_context_statistics().workers)
        print(f"client {client}:", ", ".join(f"{city} {degrees}" for city, degrees in found.items()))

    async with trio.open_nursery() as services:
        listeners = await services.start(trio.serve_tcp, upstream.serve, 0)
        port = listeners[0].socket.getsockname()[1]
        services.start_soon(refill, tokens)
        async with trio.open_nursery() as clients:
            for client in range(4):
                clients.start_soon(answer, client)
        services.cancel_scope.cancel()
    most = upstream.most_within(0.2)
    print(f"{len(upstream.times)} requests of 4 jobs in {len(workers)} workers; at most {most} within 0.2 seconds")


if __name__ == "__main__":
    trio.run(main)
