"""A load balancer as small as can be: new connections go in turn to those replicas whose `/readyz` said yes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx

CHECK_S = 0.1
"""Between two looks at a replica."""


class Balancer:
    """Passes bytes on, and repeats nothing."""

    def __init__(self) -> None:
        self._replicas: list[int] = []
        self._ready: set[int] = set()
        self._turn = 0
        self.num_refused = 0
        """Connections for which there was no replica, or that it did not take."""

    def add(self, port: int) -> None:
        """Watch a replica from now on."""
        self._replicas.append(port)

    def remove(self, port: int) -> None:
        """Forget a replica that has ended."""
        self._replicas.remove(port)
        self._ready.discard(port)

    def is_ready(self, port: int) -> bool:
        """What the last look at a replica said."""
        return port in self._ready

    async def watch(self) -> None:
        """Look at all replicas again and again."""
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                for port in list(self._replicas):
                    is_ready = False
                    with contextlib.suppress(httpx.HTTPError):
                        is_ready = (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
                    if is_ready and port in self._replicas:
                        self._ready.add(port)
                    else:
                        self._ready.discard(port)
                await asyncio.sleep(CHECK_S)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        self._turn += 1
        ready = sorted(self._ready)
        try:
            if not ready:
                raise ConnectionError
            there = await asyncio.open_connection("127.0.0.1", ready[self._turn % len(ready)])
        except OSError:
            self.num_refused += 1
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, there[1]), _pass_on(there[0], writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def balancing() -> AsyncIterator[tuple[Balancer, str]]:
    """A balancer and its address."""
    balancer = Balancer()
    server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    watching = asyncio.create_task(balancer.watch())
    try:
        yield balancer, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        server.close()
