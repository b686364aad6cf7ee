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
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aiolb import Address, Collector, ServeConfig, Server, logs, sockets
from aiolb.receive import choose

RCVBUF = 4 << 20
"""Bytes of receive buffer, the same for all."""

ADDRESS = Address("127.0.0.1", 0)

TICK = 0.01
"""Seconds that the task sleeps whose lateness is measured."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What had been used, received and lost when it was taken: seconds, datagrams, packets."""

    wall: float
    cpu: float
    page_faults: int
    datagrams: int
    drops: int


class Meter:
    """Takes the time when the warm-up is over and again ``seconds`` later.

    A receiver counts in an attribute of its own, which is as cheap as it can be, and says here how to read it.
    """

    def __init__(self, seconds: float) -> None:
        self.datagrams: Callable[[], int] = int
        self.drops: Callable[[], int] = int
        self._seconds = seconds

    async def measure(self) -> dict[str, Any]:
        """Per datagram: CPU microseconds, page faults; overall: share of a CPU that was used, packets dropped.

        ``gap`` is how late, in milliseconds, the latest turn of a task came that sleeps for 10 ms.
        """
        while not self.datagrams():  # noqa: ASYNC110 - an event would cost each datagram a call
            await asyncio.sleep(0.01)
        await asyncio.sleep(self._seconds / 2)
        start, gaps = self._now(), [0.0]
        while (last := time.perf_counter()) < start.wall + self._seconds:
            await asyncio.sleep(TICK)
            gaps.append(time.perf_counter() - last)
        end = self._now()
        datagrams = max(end.datagrams - start.datagrams, 1)
        return {
            "microseconds": (end.cpu - start.cpu) / datagrams * 1e6,
            "cpu_share": (end.cpu - start.cpu) / (end.wall - start.wall),
            "page_faults": (end.page_faults - start.page_faults) / datagrams,
            "drops": end.drops - start.drops,
            "datagrams": datagrams,
            "gap": max(gaps) * 1e3,
        }

    def _now(self) -> Moment:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime
        return Moment(time.perf_counter(), cpu, usage.ru_minflt, self.datagrams(), self.drops())


def say(**content: Any) -> None:
    """Tell the parent."""
    print(json.dumps(content), flush=True)


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


async def run_protocol(meter: Meter, protocol: Callable[[Meter], asyncio.DatagramProtocol]) -> None:
    """Serve an asyncio protocol until the meter has what it wants."""
    with sockets.reserved_port(ADDRESS) as address:
        sock = sockets.bind_reuseport(address)
    sockets.set_receive_buffer(sock, RCVBUF)
    seen = sock.dup()  # some event loops take the socket away from its object
    meter.drops = lambda: sockets.memory(seen).drops
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol(meter), sock=sock)
    say(port=address.port, receiver=type(transport).__module__)
    say(**await meter.measure())
    transport.close()
    seen.close()


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
    """Serve a collector until the meter has what it wants."""
    if plain:
        choose.best = lambda: choose.PLAIN
    # Steering happens before the queue: the balancer has its own benchmark.
    server = Server(collector, ServeConfig(bind=(ADDRESS,), balancer="none", rcvbuf=RCVBUF))
    await server.start()
    listener = server.listeners[0]
    meter.drops = lambda: listener.memory().drops
    say(port=listener.address.port, receiver=type(listener.transport.receiver).__name__)
    say(**await meter.measure())
    await server.stop()


RECEIVERS: dict[str, tuple[str, Callable[[Meter], Coroutine[Any, Any, None]]]] = {
    "asyncio callback": ("asyncio", lambda meter: run_protocol(meter, Callback)),
    "uvloop callback": ("uvloop", lambda meter: run_protocol(meter, Callback)),
    "uvloop task each": ("uvloop", lambda meter: run_protocol(meter, TaskPerDatagram)),
    "rloop callback": ("rloop", lambda meter: run_protocol(meter, Callback)),
    "aiolb handle": ("uvloop", lambda meter: run_collector(meter, Handle(meter))),
    "aiolb handle_batch": ("uvloop", lambda meter: run_collector(meter, HandleBatch(meter))),
    "aiolb plain handle": ("uvloop", lambda meter: run_collector(meter, Handle(meter), plain=True)),
}
"""Module of the event loop, and coroutine, by name."""


def available() -> list[str]:
    """Names of the receivers whose event loop is installed."""
    return [name for name, (loop, _) in RECEIVERS.items() if find_spec(loop) is not None]


async def main(name: str, seconds: float) -> None:
    """Run one receiver and print what it cost."""
    await RECEIVERS[name][1](Meter(seconds))


if __name__ == "__main__":
    logs.configure(level="error")
    loop = import_module(RECEIVERS[sys.argv[1]][0])
    with asyncio.Runner(loop_factory=loop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], float(sys.argv[2])))
