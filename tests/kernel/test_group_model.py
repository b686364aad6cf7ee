"""Ten thousand random operations on a group: the slot table and the kernel's choices stay what a model says."""

from __future__ import annotations

import select
import socket
from collections import Counter
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import hashing
from aiolb.bpf.abi import SLOT_COUNT
from aiolb.bpf.group import Group, GroupOptions, Membership
from aiolb.bpf.keys import key_of
from aiolb.errors import ConfigurationError, MemberTakenError

EXAMPLES, STEPS = 100, 100
MOST = 8
SOURCES = tuple(IPv4Address(f"127.77.0.{number}") for number in range(1, 13))
DEADLINE = 10_000

members = st.integers(0, MOST - 1)
slot_lists = st.lists(st.integers(0, SLOT_COUNT - 1), min_size=1, max_size=50)


class GroupMachine(RuleBasedStateMachine):
    """A group with real sockets, and beside it what should be true of it.

    The model knows who is alive, the count and the shares; of the slot table it knows what the last change may have
    done to the one before.
    """

    bpffs: Path

    @initialize(count=st.integers(1, MOST), seed=st.integers(0, (1 << 128) - 1))
    def create(self, count: int, seed: int) -> None:
        """A group with one live member."""
        self.members: dict[int, tuple[socket.socket, Membership]] = {}
        self.outside: dict[int, tuple[socket.socket, Membership]] = {}
        self.displaced: list[socket.socket] = []
        self.count = count
        self.weights: dict[int, int] = {}
        self.drained: set[int] = set()
        with sockets.reserved_port(Address("127.0.0.1", 0)) as self.address:
            options = GroupOptions(count=count, seed=seed, bpffs=self.bpffs)
            with Group.opened_or_created(self.address, options) as self.group:
                pass
            self._join(0)
        self.sender = {source: self._sender(source) for source in SOURCES}
        self.table = self.group.slots
        assert Counter(self.table) == Counter(slot % count for slot in range(SLOT_COUNT))

    def _sender(self, source: IPv4Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((str(source), 0))
        return sock

    def _join(self, index: int, *, takeover: bool = False) -> None:
        sock = sockets.bind_reuseport(self.address)
        sock.setblocking(False)
        try:
            membership = self.group.join(sock, index, takeover=takeover)
        except BaseException:
            sock.close()
            raise
        if index in self.members:
            self.displaced.append(self.members[index][0])
        self.members[index] = sock, membership

    # What the group should look like

    @property
    def shares(self) -> list[int]:
        """The shares of all members."""
        return [0 if index in self.drained else self.weights.get(index, 100) for index in range(self.count)]

    def _table_is_kept(self) -> None:
        assert self.group.slots == self.table

    def _table_is_dealt(self, generation: int) -> None:
        """The shares have changed: each owns its share, and nothing has moved that need not."""
        before, after = Counter(self.table), Counter(slots := self.group.slots)
        total = sum(self.shares)
        for index, share in enumerate(self.shares):
            assert abs(after[index] - SLOT_COUNT * share / total) < 1, "a member owns its share, give or take one"
        lost = Counter(old for old, new in zip(self.table, slots, strict=True) if old != new)
        for index in before.keys() | after.keys():
            assert lost[index] == max(0, before[index] - after[index]), "a slot was moved in vain"
        assert (self.group.config.generation != generation) == (slots != self.table)
        self.table = slots

    # Operations

    @rule(index=members)
    def join(self, index: int) -> None:
        """A place that is free is taken; one that is not, or that there is not, is refused."""
        if index >= self.count:
            with pytest.raises(ConfigurationError):
                self._join(index)
        elif index in self.members:
            with pytest.raises(MemberTakenError):
                self._join(index)
        else:
            self._join(index)
        self._table_is_kept()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        """A live place gets another socket; the one before goes on with its queue."""
        index = data.draw(st.sampled_from(sorted(self.members)))
        former = self.members[index][1]
        self._join(index, takeover=True)
        assert former.displaced
        assert not former.leave()
        self._table_is_kept()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Who leaves gets nothing more."""
        index = data.draw(st.sampled_from(sorted(self.members)))
        sock, membership = self.members.pop(index)
        assert membership.leave()
        self.displaced.append(sock)
        self._table_is_kept()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """Who dies says nothing to anybody."""
        self.members.pop(data.draw(st.sampled_from(sorted(self.members))))[0].close()
        self._table_is_kept()

    @rule(count=st.integers(1, MOST))
    def resize(self, count: int) -> None:
        """Another count; who is outside gets nothing, and comes back with the default weight."""
        generation, same = self.group.config.generation, count == self.count
        if not any(0 if index in self.drained else self.weights.get(index, 100) for index in range(count)):
            with pytest.raises(ConfigurationError):
                self.group.resize(count)
            return self._table_is_kept()
        self.group.resize(count)
        for index in range(count, self.count):
            self.weights.pop(index, None)
            self.drained.discard(index)
        self.count = count
        everybody = self.members | self.outside
        self.members = {index: member for index, member in everybody.items() if index < count}
        self.outside = {index: member for index, member in everybody.items() if index >= count}
        return self._table_is_kept() if same else self._table_is_dealt(generation)

    @rule(index=members, weight=st.sampled_from([0, 1, 50, 100, 100, 300, 1000]))
    def weigh(self, index: int, weight: int) -> None:
        """Another weight, unless nobody would own a slot then."""
        generation, before = self.group.config.generation, self.shares
        wanted = {**self.weights, index: weight}
        shares = [0 if i in self.drained else wanted.get(i, 100) for i in range(self.count)]
        if index >= self.count or not any(shares):
            with pytest.raises(ConfigurationError):
                self.group.set_weight(index, weight)
            return self._table_is_kept()
        self.group.set_weight(index, weight)
        self.weights = wanted
        return self._table_is_kept() if self.shares == before else self._table_is_dealt(generation)

    @rule(index=members)
    def drain(self, index: int) -> None:
        """A member gives its slots away, if somebody is there to take them."""
        generation, before = self.group.config.generation, self.shares
        takers = {i for i in range(self.count) if i != index and before[i]}
        living = takers & self.members.keys() if index in self.members else takers
        if index >= self.count or not living:
            with pytest.raises(ConfigurationError):
                self.group.drain(index)
            return self._table_is_kept()
        self.group.drain(index)
        self.drained.add(index)
        if self.shares == before:
            return self._table_is_kept()
        self._table_is_dealt(generation)
        assert index not in self.table
        return None

    @precondition(lambda self: self.drained)
    @rule(data=st.data())
    def undrain(self, data: st.DataObject) -> None:
        """A drained member gets its share again."""
        generation, before = self.group.config.generation, self.shares
        index = data.draw(st.sampled_from(sorted(self.drained)))
        self.group.undrain(index)
        self.drained.discard(index)
        return self._table_is_kept() if self.shares == before else self._table_is_dealt(generation)

    @rule(slots=slot_lists, index=members)
    def move(self, slots: list[int], index: int) -> None:
        """Slots go where they are sent, if somebody is alive there to own them, and no others move."""
        if index not in self.members or not self.shares[index]:
            with pytest.raises(ConfigurationError):
                self.group.move(slots, to=index)
            return self._table_is_kept()
        moved = self.group.move(slots, to=index)
        assert moved == {slot: index for slot in slots if self.table[slot] != index}
        for slot in slots:
            self.table[slot] = index
        return self._table_is_kept()

    # What is always true

    @invariant()
    def covers_every_slot(self) -> None:
        """Each slot is a member's; the settings are the model's."""
        assert set(self.table) <= set(range(self.count))
        assert self.group.config.count == self.count
        assert self.group.alive() == self.members.keys()
        assert list(self.group.shares) == self.shares

    @invariant()
    def steers(self) -> None:
        """The very next datagram of every source is where the twin says: at its slot's owner, or a live other."""
        if not self.members:
            return
        newest = self.group.config.newest
        expected = Counter()
        for source, sender in self.sender.items():
            choice = hashing.choose(
                self.group.config.seed, key_of(source), self.table, self.count, self.members.keys(), newest=newest
            )
            owner = self.table[choice.slot]
            assert choice.member == owner or owner not in self.members
            expected[str(source), choice.member] += 1
            sender.sendto(b"x", (self.address.host, self.address.port))
        assert self._received(len(SOURCES)) == expected
        others = [*self.displaced, *(sock for sock, _ in self.outside.values())]
        assert not any(self._drained(sock) for sock in others)

    def _received(self, number: int) -> Counter[tuple[str, int]]:
        found: Counter[tuple[str, int]] = Counter()
        poll = select.poll()
        for sock, _ in self.members.values():
            poll.register(sock, select.POLLIN)
        while found.total() < number:
            assert poll.poll(DEADLINE), f"{number - found.total()} datagrams did not arrive"
            for index, (sock, _) in self.members.items():
                found.update((source, index) for source in self._drained(sock))
        return found

    @staticmethod
    def _drained(sock: socket.socket) -> list[str]:
        sources = []
        with suppress(BlockingIOError):
            while True:
                sources.append(sock.recvfrom(16)[1][0])
        return sources

    def teardown(self) -> None:
        """Leave nothing behind."""
        if not hasattr(self, "group"):
            return
        joined = [*self.members.values(), *self.outside.values()]
        for sock in [*self.displaced, *(sock for sock, _ in joined), *self.sender.values()]:
            sock.close()
        self.group.delete()
        self.group.close()


def test_random_operations(bpffs):
    """After each of 10,000 operations every slot has an owner, sources go there or fail over, no move is in vain."""
    GroupMachine.bpffs = bpffs
    run_state_machine_as_test(
        GroupMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink real sockets' histories takes minutes
        ),
    )
