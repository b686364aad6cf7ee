"""Peers on event loops of their own, or on none: each counts in the way that is natural to it, and fastest."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Callable
from typing import Any

from meter import ROOM, TICK, Meter


def run_gevent(meter: Meter) -> None:
    """A greenlet that calls recvfrom, which waits only where the queue is empty."""
    import gevent
    from gevent.socket import socket as green_socket

    count = 0

    def tick() -> None:
        while True:
            meter.tick()
            gevent.sleep(TICK)

    bound = meter.bound_socket()
    sock = green_socket(fileno=bound.detach())
    meter.datagrams = lambda: count
    if meter.ticking:
        gevent.spawn(tick)
        gevent.sleep(0)
    meter.serve(sock.getsockname()[1], "gevent")
    while True:
        sock.recvfrom(ROOM)
        count += 1


def run_twisted(meter: Meter) -> None:
    """A DatagramProtocol on the reactor that Twisted chooses, which is epoll."""
    from twisted.internet import protocol, reactor, task

    class Counter(protocol.DatagramProtocol):
        def __init__(self) -> None:
            self.count = 0

        def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002, N802 - Twisted's names
            self.count += 1

    counter, chosen = Counter(), _any(reactor)
    sock = meter.bound_socket()
    meter.datagrams = lambda: counter.count
    chosen.adoptDatagramPort(sock.fileno(), socket.AF_INET, counter, maxPacketSize=ROOM)
    if meter.ticking:
        task.LoopingCall(meter.tick).start(TICK)
    chosen.callWhenRunning(meter.serve, sock.getsockname()[1], type(chosen).__module__)
    chosen.run(installSignalHandlers=False)


def run_trio(meter: Meter) -> None:
    """A task that awaits recvfrom."""
    import trio

    count = 0

    async def tick() -> None:
        while True:
            meter.tick()
            await trio.sleep(TICK)

    async def receive() -> None:
        nonlocal count
        bound = meter.bound_socket()
        meter.datagrams = lambda: count
        sock = trio.socket.from_stdlib_socket(bound)
        async with trio.open_nursery() as nursery:
            if meter.ticking:
                nursery.start_soon(tick)
            meter.serve(bound.getsockname()[1], "trio")
            while True:
                await sock.recvfrom(ROOM)
                count += 1

    trio.run(receive)


def run_anyio(meter: Meter, backend: str, options: dict[str, Any]) -> None:
    """A task that iterates over anyio's UDPSocket."""
    import anyio
    from anyio.abc import SocketAttribute

    count = 0

    async def tick() -> None:
        while True:
            meter.tick()
            await anyio.sleep(TICK)

    async def receive() -> None:
        nonlocal count
        udp = await anyio.create_udp_socket(local_host="127.0.0.1", local_port=0)
        sock = udp.extra(SocketAttribute.raw_socket)  # noqa: S610 - not that of Django
        meter.watch(sock)
        meter.datagrams = lambda: count
        async with anyio.create_task_group() as group:
            if meter.ticking:
                group.start_soon(tick)
            meter.serve(sock.getsockname()[1], type(udp).__module__)
            async for _ in udp:
                count += 1

    anyio.run(receive, backend=backend, backend_options=options)


def run_socketserver(meter: Meter) -> None:
    """The standard library's UDPServer with a handler for each datagram. It has no timers."""
    count = 0

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal count
            count += 1

    class Server(socketserver.UDPServer):
        max_packet_size = ROOM

    with Server(("127.0.0.1", 0), Handler) as server:
        meter.watch(server.socket)
        meter.datagrams = lambda: count
        meter.serve(server.server_address[1], "socketserver")
        server.serve_forever()


def _any(value: Any) -> Any:
    """Twisted's reactor is a module to a type checker."""
    return value


PEERS: dict[str, tuple[str, Callable[[Meter], None]]] = {
    "gevent": ("gevent", run_gevent),
    "Twisted": ("twisted", run_twisted),
    "trio": ("trio", run_trio),
    "anyio on trio": ("anyio", lambda meter: run_anyio(meter, "trio", {})),
    "anyio on uvloop": ("anyio", lambda meter: run_anyio(meter, "asyncio", {"use_uvloop": True})),
    "socketserver": ("socketserver", run_socketserver),
}
"""Module that it needs, and what serves until it is killed, by name."""
