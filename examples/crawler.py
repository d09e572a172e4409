"""A web crawler whose parser is an actor.

Trio fetches pages, three at a time. The parser takes time, and may crash. So it lives in a worker.
A page that kills it costs that page only: the next one gets a fresh parser. The pages come from a
server in this program.

    $ python crawler.py
    /broken killed the parser (SIGABRT), which starts again
    6 pages, 9 links
"""

import os
import re

import trio

import trio_offload

SITE = {
    "/": '<a href="/news">News</a> <a href="/shop">Shop</a> <a href="/broken">Old page</a>',
    "/news": '<a href="/news/1">One</a> <a href="/news/2">Two</a> <a href="/">Home</a>',
    "/news/1": '<a href="/news">News</a>',
    "/news/2": '<a href="/news">News</a>',
    "/shop": '<a href="/">Home</a>',
    "/broken": "<a href=",
}


# --- in a worker ----------------------------------------------------------------------------------


class Parser:
    """Finds links. One that crashes on a broken page, as parsers in C do."""

    def __init__(self) -> None:
        self.pattern = re.compile(r'<a href="([^"]*)">')

    def links(self, page: str) -> list[str]:
        if page.endswith("<a href="):
            os.abort()
        return self.pattern.findall(page)


# --- in the program -------------------------------------------------------------------------------


class Crawler:
    """Visits each page once."""

    def __init__(self, parser: trio_offload.Actor, port: int) -> None:
        self.parser = parser
        self.port = port
        self.seen = {"/"}
        self.links = 0
        self.slots = trio.CapacityLimiter(3)

    async def visit(self, path: str, nursery: trio.Nursery) -> None:
        async with self.slots:
            page = await fetch(self.port, path)
        try:
            links = await self.parser.links(page)
        except trio_offload.BrokenWorkerError as error:
            print(f"{path} killed the parser ({error.signal.name}), which starts again")
            return
        self.links += len(links)
        for link in links:
            if link not in self.seen:
                self.seen.add(link)
                nursery.start_soon(self.visit, link, nursery)


async def fetch(port: int, path: str) -> str:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"{path}\n".encode())
        return b"".join([data async for data in stream]).decode()


async def serve_page(stream: trio.SocketStream) -> None:
    """Stands for the web."""
    request = b""
    while not request.endswith(b"\n"):
        request += await stream.receive_some()
    await stream.send_all(SITE[request.decode().strip()].encode())


async def main() -> None:
    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, serve_page, 0)
        port = listener.socket.getsockname()[1]
        async with trio_offload.open_actor(Parser, restart="fresh") as parser:
            crawler = Crawler(parser, port)
            async with trio.open_nursery() as visits:
                visits.start_soon(crawler.visit, "/", visits)
        print(f"{len(crawler.seen)} pages, {crawler.links} links")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
