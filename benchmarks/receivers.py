"""One receiver under a flood, in a process of its own: prints its port, then what a datagram cost, as JSON lines.

Each receiver takes the same datagrams off the same kind of socket and counts them in Python, nothing more.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop

from aiolb import Address, Collector, ServeConfig, Server, logs, sockets

RCVBUF = 4 << 20
"""Bytes of receive buffer, the same for all."""

ADDRESS = Address("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class Moment:
    """What had been used and lost when it was taken: seconds, packets."""

    wall: float
    cpu: float
    page_faults: int
    drops: int


class Meter:
    """Counts datagrams; takes the time when the warm-up is over, and again ``count`` datagrams later."""

    def __init__(self, warmup: int, count: int) -> None:
        self.drops: Callable[[], int] = int
        self.done = asyncio.Event()
        self.moments: list[Moment] = []
        self._count = count
        self._left = warmup

    def datagram(self) -> None:
        """Count one; every receiver pays for this call."""
        self._left -= 1
        if not self._left:
            self._turn()

    def batch(self, number: int) -> None:
        """Count many."""
        for _ in range(number):
            self.datagram()

    def _turn(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime
        self.moments.append(Moment(time.perf_counter(), cpu, usage.ru_minflt, self.drops()))
        self._left = self._count
        if len(self.moments) == 2:  # noqa: PLR2004 - start and end
            self.done.set()

    def result(self) -> dict[str, Any]:
        """Per datagram: CPU microseconds, page faults; overall: share of a CPU that was used, packets dropped."""
        start, end = self.moments[:2]
        return {
            "microseconds": (end.cpu - start.cpu) / self._count * 1e6,
            "cpu_share": (end.cpu - start.cpu) / (end.wall - start.wall),
            "page_faults": (end.page_faults - start.page_faults) / self._count,
            "drops": end.drops - start.drops,
        }


def say(**content: Any) -> None:
    """Tell the parent."""
    print(json.dumps(content), flush=True)


class Callback(asyncio.DatagramProtocol):
    """Counts in the callback."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 - a benchmark of receiving
        """Count."""
        self.meter.datagram()


class TaskPerDatagram(asyncio.DatagramProtocol):
    """Starts a task for each datagram, as a protocol must whose handlers may block."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Keep the task: a loop holds only a weak reference to it."""
        task = self.loop.create_task(self.handle(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def handle(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 - as above
        """Count."""
        self.meter.datagram()


async def run_protocol(meter: Meter, protocol: Callable[[Meter], asyncio.DatagramProtocol]) -> None:
    """Serve an asyncio protocol until the meter has what it wants."""
    with sockets.reserved_port(ADDRESS) as address:
        sock = sockets.bind_reuseport(address)
    sockets.set_receive_buffer(sock, RCVBUF)
    meter.drops = lambda: sockets.memory(sock).drops
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol(meter), sock=sock)
    say(port=address.port, receiver=type(transport).__module__)
    await meter.done.wait()
    transport.close()


class Handle(Collector):
    """Counts in ``handle``."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    async def handle(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002 - as above
        """Count."""
        self.meter.datagram()


class HandleBatch(Collector):
    """Counts in ``handle_batch``."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    async def handle_batch(self, batch: list[tuple[bytes, Any]]) -> None:
        """Count."""
        self.meter.batch(len(batch))


async def run_collector(meter: Meter, collector: Collector) -> None:
    """Serve a collector until the meter has what it wants."""
    # Steering happens before the queue: the balancer has its own benchmark.
    server = Server(collector, ServeConfig(bind=(ADDRESS,), balancer="none", rcvbuf=RCVBUF))
    await server.start()
    listener = server.listeners[0]
    meter.drops = lambda: listener.memory().drops
    say(port=listener.address.port, receiver=type(listener.transport.receiver).__name__)
    await meter.done.wait()
    await server.stop()


RECEIVERS: dict[str, tuple[str, Callable[[Meter], Coroutine[Any, Any, None]]]] = {
    "asyncio callback": ("asyncio", lambda meter: run_protocol(meter, Callback)),
    "uvloop callback": ("uvloop", lambda meter: run_protocol(meter, Callback)),
    "uvloop task each": ("uvloop", lambda meter: run_protocol(meter, TaskPerDatagram)),
    "aiolb handle": ("uvloop", lambda meter: run_collector(meter, Handle(meter))),
    "aiolb handle_batch": ("uvloop", lambda meter: run_collector(meter, HandleBatch(meter))),
}
"""Event loop and coroutine by name."""


async def main(name: str, warmup: int, count: int) -> None:
    """Run one receiver and print what it cost."""
    meter = Meter(warmup, count)
    await RECEIVERS[name][1](meter)
    say(**meter.result())


if __name__ == "__main__":
    logs.configure(level="error")
    factory = asyncio.new_event_loop if RECEIVERS[sys.argv[1]][0] == "asyncio" else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
