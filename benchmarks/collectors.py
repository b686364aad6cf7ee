"""The collectors of aiolb that are measured: each counts, nothing more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvloop

from aiolb import Address, Collector, ServeConfig, Server, logs
from aiolb.datagram_listener import DatagramListener
from aiolb.receive import choose

if TYPE_CHECKING:
    from meter import Meter


class Handle(Collector):
    """Counts in ``handle``."""

    def __init__(self, meter: Meter) -> None:
        self.count = 0
        meter.datagrams = lambda: self.count

    async def handle(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002 - as above
        """Count."""
        self.count += 1


class HandleBatch(Collector):
    """Counts in ``handle_batch``."""

    def __init__(self, meter: Meter) -> None:
        self.count = 0
        meter.datagrams = lambda: self.count

    async def handle_batch(self, batch: list[tuple[bytes, Any]]) -> None:
        """Count."""
        self.count += len(batch)


async def run_collector(meter: Meter, collector: Collector, *, plain: bool = False) -> None:
    """Serve a collector until this is killed."""
    if plain:
        choose.best = lambda: choose.PLAIN
    # Steering happens before the queue: the balancer has its own benchmark.
    server = Server(collector, ServeConfig(bind=(Address("127.0.0.1", 0),), balancer="none", rcvbuf=meter.rcvbuf))
    await server.start()
    listener = server.listeners[0]
    assert isinstance(listener, DatagramListener)
    meter.drops = lambda: listener.memory().drops
    meter.serve(listener.address.port, type(listener.transport.receiver).__name__)
    await meter.ticks()


def serve(name: str, meter: Meter) -> None:
    """Run one of them until this is killed."""
    logs.configure(level="error")
    collector = HandleBatch(meter) if name == "aiolb handle_batch" else Handle(meter)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_collector(meter, collector, plain=name == "aiolb plain handle"))
