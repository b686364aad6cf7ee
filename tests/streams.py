"""What the tests of connections share: clients with a source each, and a listening socket to connect to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
from deadline import DEADLINE
from events import until
from supervision import Answer, write_module

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
def listening_socket(*, backlog: int = 128) -> Iterator[socket.socket]:
    """A socket that listens on a free port."""
    sock = sockets.bind_listening(LOCAL, backlog=backlog)
    try:
        yield sock
    finally:
        sock.close()


def address_of(sock: socket.socket) -> Address:
    """Where it listens."""
    return Address(*sock.getsockname())


# It answers each line with who it is; the line ``kill`` kills it.
APP = """
import os, signal
from aiolb import StreamCollector

class App(StreamCollector):
    async def handle_stream(self, reader, writer):
        async for line in reader:
            if line == b"kill\\n":
                os.kill(os.getpid(), signal.SIGKILL)
            writer.write(f"{VERSION} {self.statistics().index} {os.getpid()} {os.getuid()}\\n".encode())
            await writer.drain()
"""


def write_app(path: Path, *, version: str = "1") -> str:
    """Write the application to ``path``; how the command line names it."""
    write_module(path, f"VERSION = {version!r}\n{APP}")
    return f"{path}:App"


async def who(to: Address, host: str) -> Answer:
    """Who handles a connection from a source."""
    async with connected(to, host) as client:
        return Answer(await ask(*client))


@pytest.fixture
def address() -> Iterator[Address]:
    """A free port of 127.0.0.1 that stays free; who keeps it so listens nowhere, and no balancer knows of it."""
    with sockets.reserved_port(LOCAL, "tcp") as free:
        yield free


class Load:
    """Sources that connect, ask and close, over and over; ``answers`` by source, and what went wrong."""

    def __init__(self, to: Address, hosts: Sequence[str]) -> None:
        self.answers: dict[str, list[Answer]] = {host: [] for host in hosts}
        self.failures: list[str] = []
        self._to = to
        self._stopped = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._connect(host)) for host in self.answers]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End each source's last connection."""
        self._stopped.set()
        await asyncio.gather(*self._tasks)

    async def _connect(self, host: str) -> None:
        while not self._stopped.is_set():
            try:
                self.answers[host].append(await who(self._to, host))
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(f"{host}: {error!r}")
            await asyncio.sleep(0.001)

    async def more(self) -> None:
        """Wait until each source has had another answer, which it asked for after this call."""
        before = {host: len(answers) for host, answers in self.answers.items()}
        await until(lambda: all(len(self.answers[host]) > number + 1 for host, number in before.items()), "answers")

    @property
    def connections(self) -> int:
        """How many were answered."""
        return sum(map(len, self.answers.values()))

    def indexes(self) -> dict[str, set[int]]:
        """The members that each source has been at."""
        return {host: {answer.index for answer in answers} for host, answers in self.answers.items()}
