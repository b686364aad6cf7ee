"""One echo server in a process of its own, until it is killed or its parent is; prints its port as a line of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from aiolb import Address, ServeConfig, Server, logs
from aiolb.bpf import syscall
from aiolb.builtin import Echo
from aiolb.receive import choose

ADDRESS = Address("127.0.0.1", 0)


class Callback(asyncio.DatagramProtocol):
    """What is written without aiolb."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Send it back."""
        self.transport.sendto(data, addr)


async def callback() -> None:
    """Serve with the event loop's own transport."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Callback, local_addr=(ADDRESS.host, ADDRESS.port))
    say(transport.get_extra_info("sockname")[1])
    await asyncio.Event().wait()


async def collector() -> None:
    """Serve with the echo collector of aiolb."""
    # Steering happens before the queue, and in the sender's time: it has a benchmark of its own.
    server = Server(Echo(), ServeConfig(bind=(ADDRESS,), balancer="none"))
    await server.start()
    say(server.listeners[0].address.port)
    await asyncio.Event().wait()


async def plain_collector() -> None:
    """The same without the compiled parts."""
    choose.best = lambda: choose.PLAIN
    await collector()


def say(port: int) -> None:
    """Tell the parent."""
    print(json.dumps({"port": port}), flush=True)


ECHOES: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "uvloop callback": callback,
    "aiolb handle": collector,
    "aiolb plain handle": plain_collector,
}

if __name__ == "__main__":
    syscall.end_with_parent()
    logs.configure(level="error")
    uvloop.run(ECHOES[sys.argv[1]]())
