"""Sources whose rates follow Zipf's law: the n-th sends 1/n of what the first sends; numbered datagrams."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter, defaultdict
from ipaddress import IPv4Address
from typing import Self

from aiolb.stamp import Stamp

MEMBERS, SOURCES = 4, 30
FIRST = 2000
"""Datagrams of the busiest source in one interval."""


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


class Numbered:
    """Sends numbered datagrams from Zipf sources to a cluster, and keeps who received which number, in order."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.sent = [0] * SOURCES
        self.received = defaultdict(list)  # source -> (member, number), in the order of sending

    @staticmethod
    def address(source):
        """The address of a source: these are spread unevenly by the hash."""
        return IPv4Address("127.77.0.1") + source

    def send(self, sources):
        """Send the next number of each."""
        for source in sources:
            self.cluster.send([self.address(source)], f"{source} {self.sent[source]}".encode())
            self.sent[source] += 1

    def receive(self):
        """Take all that is queued."""
        for member, sock in self.cluster.sockets.items():
            while True:
                try:
                    source, number = map(int, sock.recv(100).split())
                except BlockingIOError:
                    break
                self.received[source].append((member, number))

    def interval(self, *, each=None, seed=1):
        """One interval's datagrams: the load of each member."""
        before = {source: len(self.received[source]) for source in range(SOURCES)}
        order = schedule(each or counts(SOURCES, FIRST), seed=seed)
        for start in range(0, len(order), 500):
            self.send(order[start : start + 500])
            self.receive()
        loads = [0] * MEMBERS
        for source in range(SOURCES):
            for member, _ in self.received[source][before[source] :]:
                loads[member] += 1
        assert sum(loads) == len(order)
        return loads

    def owners(self, source):
        """The members that had a source, one after the other, each with its first number and its last."""
        runs = []
        for member, number in sorted(self.received[source], key=lambda entry: entry[1]):
            if not runs or runs[-1][0] != member:
                runs.append([member, number, number])
            assert number in (runs[-1][1], runs[-1][2] + 1), f"source {source}: {number} is missing"
            runs[-1][2] = number
        return runs
