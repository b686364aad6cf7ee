"""One receiver in a process of its own: receivers.py NAME live|backlog RECEIVE_BUFFER; ``Meter`` speaks for it.

Each receiver takes the same datagrams off the same kind of socket and counts them in Python, nothing more.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import Any

from meter import ROOM, Meter
from peers import PEERS


class Callback(asyncio.DatagramProtocol):
    """Counts in the callback."""

    def __init__(self, meter: Meter) -> None:
        self.count = 0
        meter.datagrams = lambda: self.count

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 - a benchmark of receiving
        """Count."""
        self.count += 1


class TaskPerDatagram(asyncio.DatagramProtocol):
    """Starts a task for each datagram, as a protocol must whose handlers may block."""

    def __init__(self, meter: Meter) -> None:
        self.count = 0
        meter.datagrams = lambda: self.count
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Keep the task: a loop holds only a weak reference to it."""
        task = self.loop.create_task(self.handle(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def handle(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 - as above
        """Count."""
        self.count += 1


async def run_protocol(
    meter: Meter, protocol: Callable[[Meter], asyncio.DatagramProtocol], *, max_size: int | None = None
) -> None:
    """Serve an asyncio protocol until this is killed; ``max_size``: bytes for which asyncio asks at each datagram."""
    sock, loop = meter.bound_socket(), asyncio.get_running_loop()
    port = sock.getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol(meter), sock=sock)
    if max_size is not None:
        transport.max_size = max_size  # type: ignore[attr-defined]  # asyncio has no other way
    meter.serve(port, type(transport).__module__)
    await meter.ticks()


RECEIVERS: dict[str, tuple[str, Callable[[Meter], Coroutine[Any, Any, None]]]] = {
    "asyncio callback": ("asyncio", lambda meter: run_protocol(meter, Callback)),
    "asyncio, 64 KiB": ("asyncio", lambda meter: run_protocol(meter, Callback, max_size=ROOM)),
    "uvloop callback": ("uvloop", lambda meter: run_protocol(meter, Callback)),
    "uvloop task each": ("uvloop", lambda meter: run_protocol(meter, TaskPerDatagram)),
    "rloop callback": ("rloop", lambda meter: run_protocol(meter, Callback)),
}
"""Module of the event loop, and coroutine, by name."""


COLLECTORS = ("aiolb handle", "aiolb handle_batch", "aiolb plain handle")


def available() -> list[str]:
    """Names of the receivers that are installed."""
    modules = {name: module for name, (module, _) in [*RECEIVERS.items(), *PEERS.items()]}
    return [*(name for name, module in modules.items() if find_spec(module) is not None), *COLLECTORS]


def versions() -> dict[str, str]:
    """Of the packages that receivers are made of, by their module."""
    modules = {module for module, _ in [*RECEIVERS.values(), *PEERS.values()]}
    found = {
        module: distributions[0] for module, distributions in packages_distributions().items() if module in modules
    }
    return {module: version(distribution) for module, distribution in sorted(found.items())}


def main(name: str, way: str, rcvbuf: str) -> None:
    """Serve until this is killed. What a receiver does not need is not imported: it would change its heap."""
    meter = Meter(int(rcvbuf), ticking=way == "live")
    if name in PEERS:
        PEERS[name][1](meter)
    elif name in COLLECTORS:
        import collectors

        collectors.serve(name, meter)
    else:
        loop, run = RECEIVERS[name]
        with asyncio.Runner(loop_factory=import_module(loop).new_event_loop) as runner:
            runner.run(run(meter))


if __name__ == "__main__":
    main(*sys.argv[1:])
