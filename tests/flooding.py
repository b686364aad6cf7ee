"""What the tests of ``aiolb flood`` share: where it sends to, how it is run, and what came."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from deadline import DEADLINE

from aiolb.cli.flood import flood


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    """A bound socket that gives up at the deadline."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(DEADLINE)
        yield sock


@pytest.fixture
def target(receiver: socket.socket) -> str:
    """HOST:PORT of the receiver."""
    return f"127.0.0.1:{receiver.getsockname()[1]}"


def invoke(*arguments: str) -> Result:
    """Run the command in this process; errors come through as they are."""
    return CliRunner().invoke(flood, arguments, catch_exceptions=False)


def receive(sock: socket.socket, number: int) -> list[bytes]:
    """Exactly that many datagrams; nothing may be left after them."""
    received = [sock.recv(1 << 16) for _ in range(number)]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    return received
