"""Who sends, as the plain receiver notes it: datagrams by host, and a sketch of all hosts, in bounded memory."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from operator import itemgetter
from random import random
from typing import TYPE_CHECKING

from aiolb import sketch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiolb.receive.contract import Datagram

MOST = 4096
"""Addresses that are told apart until ``senders()``, as in the compiled receiver."""

FEW = 8
"""Datagrams of a batch below which every batch is looked at; of others only one of so many."""

_ADDRESS = itemgetter(1)


class PlainSenders:
    """Counts the datagrams of each host."""

    def __init__(self) -> None:
        self._sketch = sketch.Sketch()
        self._counts: Counter[object] = Counter()
        self._hosts: Counter[str] = Counter()
        self._missed = 0
        self._noted: set[str] = set()

    def note(self, batch: Sequence[Datagram]) -> None:
        """Count a batch; one of those that come in a flood may be left out, for a look costs a datagram 5 %."""
        if len(batch) >= FEW and random() * FEW >= 1:  # noqa: S311 - a sample is no secret
            self._missed += len(batch)
            return
        self._counts.update(map(_ADDRESS, batch))
        if len(self._counts) > MOST:
            self._fold()

    def senders(self) -> tuple[dict[str, int], int]:
        """See :meth:`aiolb.receive.contract.Receiver.senders`."""
        self._fold()
        hosts, missed = self._hosts, self._missed
        self._hosts, self._missed = Counter(), 0
        return hosts, missed

    @property
    def sketch(self) -> tuple[frozenset[int] | None, bytes]:
        """See :meth:`aiolb.receive.contract.Receiver.sketch`."""
        self._fold()
        return self._sketch.marks, self._sketch.registers

    def _fold(self) -> None:
        counts, self._counts = self._counts, Counter()
        for addr, count in counts.items():
            if isinstance(addr, tuple):  # of a socket of IPv4 or IPv6
                self._hosts[addr[0]] += count
        if new := self._hosts.keys() - self._noted:
            self._sketch = sketch.union(self._sketch, sketch.Sketch.of(map(ip_address, new))).fitted()
            self._noted |= new
        if len(self._noted) > MOST:
            self._noted.clear()
        if len(self._hosts) > MOST:
            kept = Counter(dict(self._hosts.most_common(MOST // 2)))
            self._missed += self._hosts.total() - kept.total()
            self._hosts = kept
