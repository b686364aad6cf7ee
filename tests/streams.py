"""What the tests of connections share: clients with a source each, and a listening socket to connect to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from events import DEADLINE

from aiolb import sockets
from aiolb.address import Address

LOCAL = Address("127.0.0.1", 0)


@contextlib.asynccontextmanager
async def connected(
    to: Address | tuple[str, int], host: str | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to an address from a source, closed at the end of the block."""
    target = (to.host, to.port) if isinstance(to, Address) else to
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(*target, local_addr=host and (host, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str = "who") -> str:
    """The line that answers a line."""
    async with asyncio.timeout(DEADLINE):
        writer.write(f"{line}\n".encode())
        answer = await reader.readuntil(b"\n")
    return answer.decode().rstrip("\n")


@contextlib.contextmanager
def listening_socket(*, backlog: int = 128) -> contextlib.AbstractContextManager[socket.socket]:
    """A socket that listens on a free port."""
    sock = sockets.bind_listening(LOCAL, backlog=backlog)
    try:
        yield sock
    finally:
        sock.close()


def address_of(sock: socket.socket) -> Address:
    """Where it listens."""
    return Address(*sock.getsockname())
