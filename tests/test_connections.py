"""Connections: a handler for each, how many may be open, what became of every one of them, and who accepts them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from ipaddress import ip_address

import pytest
import structlog.testing
from events import until
from streams import address_of, ask, connected, listening_socket

from aiolb import acceptor, listening
from aiolb.acceptor import Acceptor
from aiolb.connections import Connections
from aiolb.sketch import Sketch

pytestmark = pytest.mark.usefixtures("nothing_left")


class Echo:
    """Answers line by line; the words ``raise`` and ``cancel`` make the handler fail."""

    def __init__(self):
        self.errors = []
        self.finished = []

    async def handle_stream(self, reader, writer):
        """Answer each line with itself."""
        addr = writer.get_extra_info("peername")
        async for line in reader:
            if line == b"raise\n":
                raise ValueError("as told")
            if line == b"cancel\n":
                raise asyncio.CancelledError
            if line == b"end\n":
                return
            writer.write(line)
        self.finished.append(addr)

    def on_error(self, error, addr):
        """Remember it."""
        self.errors.append((repr(error), addr))


@contextlib.asynccontextmanager
async def serving(handlers=None, *, concurrency=128, backlog=128):
    """A socket whose connections are handled: its address, the connections and the acceptor."""
    with listening_socket(backlog=backlog) as sock:
        connections = Connections(handlers or Echo(), concurrency)
        accepting = Acceptor(sock, connections, structlog.get_logger())
        connections.changed = accepting.make_room
        try:
            yield sock, connections, accepting
        finally:
            accepting.stop()
            await connections.aclose()


def counts(connections):
    """Accepted, open, closed, errors, abandoned: and their sum is right."""
    found = connections.statistics()
    assert found.accepted == found.open + found.closed + found.errors + found.abandoned
    return found.accepted, found.open, found.closed, found.errors, found.abandoned


def test_each_has_a_handler(run):
    """Connections are handled at the same time, counted, and closed when their handler has returned."""

    async def main():
        handlers = Echo()
        async with serving(handlers) as (sock, connections, _), contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(address_of(sock))) for _ in range(5)]
            for number, client in enumerate(clients):
                assert await ask(*client, f"hello {number}") == f"hello {number}"
            assert counts(connections) == (5, 5, 0, 0, 0)
            assert connections.statistics().received_bytes == 5 * len("hello 0\n")
            clients[0][1].write(b"end\n")
            assert await clients[0][0].read() == b""
            clients[1][1].write_eof()
            assert await clients[1][0].read() == b""
            await until(lambda: connections.open == 3)
            assert counts(connections) == (5, 3, 2, 0, 0)
            assert [host for host, _ in handlers.finished] == ["127.0.0.1"]

    run(main())


def test_what_was_written_arrives(run):
    """A handler may return with its answer still on the way: it is sent before the connection is closed."""
    size = 8 << 20

    class Large(Echo):
        async def handle_stream(self, _reader, writer):
            writer.write(b"x" * size)

    async def main():
        async with serving(Large()) as (sock, connections, _), connected(address_of(sock)) as (reader, _):
            await until(lambda: connections.open == 1)
            assert len(await reader.read()) == size
            await until(lambda: counts(connections) == (1, 0, 1, 0, 0))

    run(main())


@pytest.mark.parametrize(("word", "error"), [("raise", "ValueError('as told')"), ("cancel", "CancelledError()")])
def test_a_handler_that_raises(run, logged, word, error):
    """It is counted, logged and passed on with who connected; the connection is closed, the others go on."""

    async def main():
        handlers = Echo()
        async with serving(handlers) as (sock, connections, _), connected(address_of(sock)) as other:
            async with connected(address_of(sock)) as (reader, writer):
                addr = writer.get_extra_info("sockname")
                writer.write(f"{word}\n".encode())
                assert await reader.read() == b""
            await until(lambda: connections.open == 1)
            assert counts(connections) == (2, 1, 0, 1, 0)
            assert handlers.errors == [(error, addr)]
            assert await ask(*other, "still") == "still"
        return addr

    addr = run(main())
    (event,) = logged
    assert (event["event"], event["error"], event["addr"], event["suppressed"]) == ("handler_error", error, addr, 0)


def test_many_errors_are_logged_once_a_second(run, logged):
    """Of many handlers that raise at once one is logged; all are counted and passed on."""

    async def main():
        handlers = Echo()
        async with serving(handlers) as (sock, connections, _), contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(address_of(sock))) for _ in range(20)]
            await until(lambda: connections.open == 20)
            sampled = connections._sampling
            sampled._next = float("inf")  # a second that does not end
            for _, writer in clients:
                writer.write(b"raise\n")
            await until(lambda: not connections.open)
            assert counts(connections) == (20, 0, 0, 20, 0)
            return len(handlers.errors)

    assert run(main()) == 20
    assert logged == []


def test_on_error_may_fail_itself(run, logged):
    """An exception in on_error is logged, and costs nothing else."""

    class Clumsy(Echo):
        def on_error(self, _error, _addr):
            raise KeyError("on_error")

    async def main():
        async with serving(Clumsy()) as (sock, connections, _), connected(address_of(sock)) as (reader, writer):
            writer.write(b"raise\n")
            assert await reader.read() == b""
            await until(lambda: counts(connections) == (1, 0, 0, 1, 0))

    run(main())
    assert [event["event"] for event in logged] == ["handler_error", "on_error_failed"]


def test_a_client_that_resets(run):
    """A connection that the other end breaks off is the handler's to deal with; its end is not."""

    class Patient(Echo):
        async def handle_stream(self, reader, _writer):
            with contextlib.suppress(ConnectionError):
                await reader.read()

    async def main():
        async with serving(Patient()) as (sock, connections, _):
            client = socket.create_connection(sock.getsockname())
            await until(lambda: connections.open == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends RST
            client.close()
            await until(lambda: counts(connections) == (1, 0, 1, 0, 0))

    run(main())


def test_the_bound(run):
    """No more connections are open than may be: the kernel holds the others until there is room."""

    async def main():
        async with serving(concurrency=2) as (sock, connections, _), contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(address_of(sock))) for _ in range(5)]
            for _, writer in clients:
                writer.write(b"hello\n")
            await until(lambda: connections.open == 2)
            await until(lambda: listening.waiting_connections(sock) == 3)
            for ended in range(5):
                reader, writer = clients[ended]
                assert await reader.readline() == b"hello\n"
                assert connections.open <= 2
                writer.write(b"end\n")
                assert await reader.read() == b""
            await until(lambda: counts(connections) == (5, 0, 5, 0, 0))

    run(main())


def test_stopping_in_the_middle(run):
    """Handlers are cancelled, also one that has not begun; their connections are closed and counted."""

    async def main():
        async with serving() as (sock, connections, accepting):
            async with connected(address_of(sock)) as first:
                assert await ask(*first, "here") == "here"
                async with connected(address_of(sock)) as second:
                    await until(lambda: listening.waiting_connections(sock) or connections.open == 2)
                    accepting.accept_now()
                    assert connections.stop() == 2
                    assert connections.stop() == 0
                    await connections.aclose()
                    for reader, _ in (first, second):
                        with contextlib.suppress(ConnectionError):
                            assert await reader.read() == b""
            assert counts(connections) == (2, 0, 0, 0, 2)

    run(main())


def test_draining(run):
    """All that wait are accepted, one after the other where there is room for one only, and handled."""

    async def main():
        async with serving(concurrency=1) as (sock, connections, accepting), contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(address_of(sock))) for _ in range(4)]
            for _, writer in clients:
                writer.write(b"bye\nend\n")
            await accepting.accept_all()
            await connections.drained()
            assert counts(connections) == (4, 0, 4, 0, 0)
            assert [await reader.read() for reader, _ in clients] == [b"bye\n"] * 4

    run(main())


def test_no_descriptors_left(run, logged, monkeypatch):
    """A connection that cannot be accepted waits in the kernel's queue, which is logged, and is accepted later."""
    monkeypatch.setattr(acceptor, "RETRY", 0.01)

    class Full:
        """A socket whose process has no descriptor left for a while."""

        def __init__(self, sock):
            self._sock = sock
            self.refusals = 3

        def fileno(self):
            return self._sock.fileno()

        def accept(self):
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self._sock.accept()

    async def main():
        with listening_socket() as sock:
            connections, full = Connections(Echo(), 8), Full(sock)
            accepting = Acceptor(full, connections, structlog.get_logger())
            async with connected(address_of(sock)) as client:
                assert await ask(*client, "at last") == "at last"
            accepting.stop()
            await connections.aclose()
            return full.refusals

    assert run(main()) == 0
    assert logged[0]["event"] == "accept_failed"
    assert (logged[0]["reason"], logged[0]["suppressed"]) == ("Too many open files", 0)


async def test_who_connects_and_how_long_handlers_take():
    """Each connection counts for its source, and each handler that has ended is timed, also one that raised."""
    hosts = ["127.0.0.7", "127.0.0.7", "127.0.0.8"]
    async with serving() as (sock, connections, _):
        assert sum(connections.times.buckets) == 0
        for host, line in zip(hosts, ("end", "raise", "end"), strict=True):
            async with connected(address_of(sock), host) as (reader, writer):
                writer.write(f"{line}\n".encode())
                await reader.read()
        await until(lambda: connections.open == 0)
        assert connections.senders.senders() == ({"127.0.0.7": 2, "127.0.0.8": 1}, 0)
        assert Sketch(*connections.senders.sketch) == Sketch.of(map(ip_address, hosts))
        assert sum(connections.times.buckets) == 3
        assert connections.times.total_ns > 0
