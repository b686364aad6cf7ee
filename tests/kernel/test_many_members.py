"""A group of 1,024: even by slots, even by sources once rebalanced, quick to join; `pytest -rP` has the numbers."""

from __future__ import annotations

import select
import statistics
import struct
import time
from collections import Counter
from contextlib import ExitStack

import pytest

import aiolb
from aiolb import sockets
from aiolb.bpf import hashing, rebalancing, spec
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.keys import key_of
from aiolb.bpf.members import join_all
from aiolb.bpf.steering import JoinOptions

MEMBERS = 1024
SOURCES = 100_000
CHUNK = 4000  # datagrams sent before they are taken out of the queues again
JOINS = 9
SEED = 0x0123456789ABCDEF_FEDCBA9876543210
NUMBER = struct.Struct("=I")


@pytest.fixture
def many(bpffs, address):
    """So many members with real sockets in this process: ``many(1024)``."""
    with ExitStack() as stack:

        def make(count):
            group = GroupOptions(count=count, seed=SEED, program=spec.shipped(), bpffs=bpffs)
            members = join_all(address, sockets.bind_reuseport, JoinOptions(balancer="ebpf", group=group))
            stack.callback(members.close, forget=True)
            return members

        yield make


class Receivers:
    """The sockets of all members, and which of them got each numbered datagram."""

    def __init__(self, socks):
        self._socks = {sock.fileno(): (index, sock) for index, sock in enumerate(socks)}
        self._poll = select.epoll()
        for descriptor in self._socks:
            self._poll.register(descriptor, select.EPOLLIN)

    def route(self, sender, sources, to):
        """Send a datagram from each source, each once; the member that got each."""
        owners = [None] * len(sources)
        for start in range(0, len(sources), CHUNK):
            chunk = range(start, min(start + CHUNK, len(sources)))
            for number in chunk:
                sender.send(sources[number], to, NUMBER.pack(number))
            left = len(chunk)
            while left:
                left -= self._take(owners)
        return owners

    def _take(self, owners):
        ready = self._poll.poll(10)
        assert ready, "datagrams did not arrive"
        taken = 0
        for descriptor, _ in ready:
            index, sock = self._socks[descriptor]
            while True:
                try:
                    (number,) = NUMBER.unpack(sock.recv(NUMBER.size))
                except BlockingIOError:
                    break
                assert owners[number] is None, "received twice"
                owners[number] = index
                taken += 1
        return taken

    def close(self):
        """Stop watching."""
        self._poll.close()


def test_even_for_many_sources(many, sender, sources_v4):
    """By hash alone members differ as a Poisson process does; after a rebalance each is within 5 % of the mean."""
    members, sources = many(MEMBERS), sources_v4(SOURCES)
    group = members[0].place.group
    assert Counter(group.slots) == dict.fromkeys(range(MEMBERS), 16)
    mean = SOURCES / MEMBERS
    receivers = Receivers([joined.sock for joined in members])
    try:
        owners = receivers.route(sender, sources, members.address)
        before = Counter(owners)
        # The kernel did as the pure twin says.
        slots, slot_of = group.slots, [hashing.slot_of(SEED, key_of(source)) for source in sources]
        assert owners == [slots[slot] for slot in slot_of]
        deviation = statistics.pstdev(before[index] for index in range(MEMBERS)) / mean
        print(f"by hash alone: deviation {deviation:.1%}, max/mean {max(before.values()) / mean:.2f}")  # noqa: T201 - measured
        # Poisson: the square root of the mean, 10.1 % of it; that of 1,024 samples is known to 2.2 % of itself.
        assert deviation == pytest.approx(mean**-0.5, rel=0.1)

        plan = rebalancing.plan(slots, group.slot_packets(), MEMBERS, bound=1.05, floor=0.95)
        group.move_slots(plan.moves)
        after = receivers.route(sender, sources, members.address)
    finally:
        receivers.close()
    counts = Counter(after)
    extremes = min(counts.values()) / mean, max(counts.values()) / mean
    print(f"{len(plan.moves)} slots moved: {extremes[0]:.3f} to {extremes[1]:.3f}")  # noqa: T201 - measured
    assert all(0.95 * mean <= counts[index] <= 1.05 * mean for index in range(MEMBERS))
    stayed = [number for number, slot in enumerate(slot_of) if slot not in plan.moves]
    assert [number for number in stayed if after[number] != owners[number]] == []
    assert sum(member.packets for member in group.statistics().members) == 2 * SOURCES


def test_the_last_one_joins(many, bpffs):
    """The 1,024th member takes 16 slots and no more from the others; how long that takes is measured."""
    members = many(MEMBERS - 1)
    group = members[0].place.group
    seconds = []
    for _ in range(JOINS):
        before = group.slots
        with aiolb.bind(members.address) as sock:
            start = time.perf_counter()
            place = aiolb.join(sock, index=MEMBERS - 1, count=MEMBERS, balancer="ebpf", bpffs=bpffs)
            seconds.append(time.perf_counter() - start)
            after = group.slots
            assert place.others == ()
            assert {new for old, new in zip(before, after, strict=True) if old != new} == {MEMBERS - 1}
            assert Counter(after) == dict.fromkeys(range(MEMBERS), 16)
            assert place.group.locate("127.0.0.1").alive
            assert sum(member.alive for member in place.group.statistics().members) == MEMBERS
            place.close()
        group.resize(MEMBERS - 1)
    print(f"the last join: {statistics.median(seconds) * 1000:.0f} ms, median of {JOINS}")  # noqa: T201 - measured


def test_a_thousand_and_twenty_five(many):
    """There is no place for one more."""
    with pytest.raises(aiolb.ConfigurationError, match="a group has 1 to 1024 members, not 1025"):
        many(MEMBERS + 1)
