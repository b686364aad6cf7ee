"""One listening socket of a member: what it says of the kernel, and how it is drained, handed over and closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import pytest
from events import until
from streams import LOCAL, address_of, ask, connected, listening_socket

from aiolb import listening, sockets
from aiolb.bpf import syscall
from aiolb.bpf.steering import Joined, UnmanagedPlace
from aiolb.config import ServeConfig
from aiolb.listener import DROPS_LOG_INTERVAL
from aiolb.remarks import AGAINST_FULL_QUEUES
from aiolb.stream_listener import StreamListener
from aiolb.tally import Tally

pytestmark = pytest.mark.usefixtures("nothing_left")


class Echo:
    """Answers line by line."""

    async def handle_stream(self, reader, writer):
        """Answer each line with itself."""
        async for line in reader:
            writer.write(line)

    def on_error(self, error, addr):
        """Nothing is raised."""


@contextlib.asynccontextmanager
async def listener(sock, **settings):
    """A listener on a copy of the socket, as a worker has one."""
    config = ServeConfig(protocol="tcp", bind=(LOCAL,), **settings)
    joined = Joined(sock.dup(), UnmanagedPlace(2), "ebpf")
    joined.sock.setblocking(False)
    made = StreamListener.inherited(address_of(sock), joined, Echo(), config)
    try:
        yield made
    finally:
        await made.close()


def test_handing_over(run):
    """Another owner of the socket accepts as soon as it is released; what is open ends where it began."""

    async def main():
        with listening_socket() as sock:
            async with listener(sock) as old, connected(address_of(sock)) as first:
                assert await ask(*first, "old") == "old"
                assert old.release()
                assert old.release()
                async with listener(sock) as new, connected(address_of(sock)) as second:
                    assert await ask(*second, "new") == "new"
                    assert await ask(*first, "still") == "still"
                    first[1].write_eof()
                    await old.hand_over()
                    assert [made.statistics().closed for made in (old, new)] == [1, 0]
                    assert [made.statistics().accepted for made in (old, new)] == [1, 1]
                    assert await old.close() == 0
                    second[1].write_eof()
                    await new.drain()
                    assert await new.close() == 0

    run(main())


def test_draining(run):
    """What waits is accepted and handled, and the port is closed for every owner of the socket meanwhile."""

    async def main():
        with listening_socket() as sock:
            async with listener(sock, concurrency=1) as made, contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(address_of(sock))) for _ in range(3)]
                for _, writer in clients:
                    writer.write(b"bye\n")
                    writer.write_eof()
                await made.drain()
                assert [await reader.read() for reader, _ in clients] == [b"bye\n"] * 3
                assert (made.statistics().closed, made.statistics().abandoned) == (3, 0)
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(sock.getsockname()).close()

    run(main())


def test_draining_without_a_filter(run, monkeypatch):
    """Where the kernel lets this user filter no TCP socket, a drain handles what waits, and ends, all the same."""

    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscall, "attach_filter", refused)

    async def main():
        with listening_socket() as sock:
            async with listener(sock) as made, connected(address_of(sock)) as (reader, writer):
                writer.write(b"bye\n")
                writer.write_eof()
                await made.drain()
                assert await reader.read() == b"bye\n"
                assert (made.statistics().closed, made.statistics().abandoned) == (1, 0)
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(sock.getsockname()).close()

    run(main())


@pytest.mark.parametrize("refused_before", [True, False])
def test_who_comes_after_the_last_look(run, monkeypatch, refused_before):
    """Who may set no filter loses who comes after its last look, unless the socket's owner has set one."""
    stop, late = listening.stop_listening, socket.socket()
    late.setblocking(False)

    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def stop_late(sock):
        if late.fileno() >= 0 and sock.fileno() >= 0:
            late.connect_ex(sock.getsockname())  # on loopback it is established, or dropped, when this returns
        return stop(sock)

    async def main():
        with listening_socket() as sock, late:
            async with listener(sock) as made:
                if refused_before:
                    listening.refuse_connections(sock)
                monkeypatch.setattr(syscall, "attach_filter", refused)
                monkeypatch.setattr(listening, "stop_listening", stop_late)
                await made.drain()
                assert made.statistics().abandoned == (0 if refused_before else 1)

    run(main())


def test_closing_at_once(run):
    """What is open is cut, what waits is lost, and both are told as abandoned."""

    async def main():
        with listening_socket() as sock:
            async with listener(sock, concurrency=1) as made, contextlib.AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(connected(address_of(sock)))
                await until(lambda: made.held() == 1)
                await until(lambda: listening.waiting_connections(sock) == 3)
                assert await made.close() == 4
                assert await made.close() == 0
                statistics = made.statistics()
                assert (statistics.accepted, statistics.abandoned, statistics.open) == (4, 4, 0)

    run(main())


def test_the_tally(run):
    """Who outlives the process can read how many connections were open."""

    async def main():
        with listening_socket() as sock, contextlib.closing(Tally.create(1)) as tally:
            async with listener(sock) as made:
                made.tell(tally, 0)
                async with connected(address_of(sock)) as client:
                    await ask(*client, "hello")
                    assert tally.total == made.held() == 1
                await until(lambda: not made.held())
                assert tally.total == 0

    run(main())


def test_connections_that_wait(run, logged):
    """That connections wait for lack of room is told at once, and then now and again."""

    async def main():
        with listening_socket() as sock:
            async with listener(sock, concurrency=1) as made, connected(address_of(sock)):
                await until(lambda: made.held() == 1)
                made.watch(100.0)
                assert logged == []
                async with connected(address_of(sock)):
                    await until(lambda: listening.waiting_connections(sock) == 1)
                    for now in (100.25, 100.5, 100.25 + DROPS_LOG_INTERVAL):
                        made.watch(now)

    run(main())
    assert [(event["event"], event["log_level"], event["waiting"], event["open"]) for event in logged[:2]] == [
        ("connections_wait", "warning", 1, 1)
    ] * 2
    assert logged[0]["hint"] == "raise --concurrency, or add members"
    assert [event["event"] for event in logged].count("connections_wait") == 2


def test_drops_are_told(run, logged):
    """Attempts to connect that a full queue dropped are told, also at the end."""

    async def main():
        with listening_socket(backlog=1) as sock:
            async with listener(sock, concurrency=1) as made, contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(connected(address_of(sock)))
                await until(lambda: made.held() == 1)
                for _ in range(2):
                    await stack.enter_async_context(connected(address_of(sock)))
                late = stack.enter_context(socket.socket())
                late.setblocking(False)
                assert late.connect_ex(sock.getsockname())
                await until(lambda: sockets.memory(sock).drops)
                made.watch(100.0)
                return made.statistics().kernel_drops

    drops = run(main())
    events = [event for event in logged if event["event"] == "kernel_drops"]
    assert sum(event["packets"] for event in events) >= drops > 0
    assert {event["hint"] for event in events} == {AGAINST_FULL_QUEUES}
