"""Sources whose rates follow Zipf's law: the n-th sends 1/n of what the first sends; numbered datagrams."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from typing import Self

from aiolb.stamp import Stamp


def counts(sources: int, first: int) -> list[int]:
    """How many datagrams each source sends when the first one sends ``first``."""
    return [max(first // rank, 1) for rank in range(1, sources + 1)]


def schedule(each: list[int], *, seed: int = 1) -> list[int]:
    """The sources in the order of their datagrams: well mixed, the same in every run."""
    order = [source for source, number in enumerate(each) for _ in range(number)]
    random.Random(seed).shuffle(order)
    return order


class ZipfSender:
    """Sends stamped datagrams from 127.0.7.1 on, a context manager; ``sent`` is the number of each source."""

    RUN = 7

    def __init__(self, to: tuple[str, int], *, sources: int = 30) -> None:
        self.sent: Counter[int] = Counter()
        self._order = schedule(counts(sources, 300))
        self._position = 0
        self._socks = []
        for source in range(sources):
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.bind((self.address(source), 0))
            sock.connect(to)
            self._socks.append(sock)

    @staticmethod
    def address(source: int) -> str:
        """Where a source sends from."""
        return f"127.0.7.{source + 1}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            sock.close()

    def send(self, number: int) -> None:
        """Send so many datagrams."""
        for _ in range(number):
            source = self._order[self._position % len(self._order)]
            self._position += 1
            stamp = Stamp(self.RUN, source, self.sent[source], time.time_ns())
            self._socks[source].send(stamp.to_wire())
            self.sent[source] += 1

    async def send_until(self, stopping: asyncio.Event) -> None:
        """Send some thousand datagrams a second until the event is set."""
        while not stopping.is_set():
            self.send(20)
            await asyncio.sleep(0.005)
