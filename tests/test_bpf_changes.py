"""Changes of slots: who lost and who got what, and which sources that concerns."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from aiolb.address import Address
from aiolb.bpf.abi import KEY_CUSTOM, SLOT_COUNT, Config
from aiolb.bpf.changes import SlotsChange, SlotsWatch
from aiolb.bpf.hashing import slot_of
from aiolb.bpf.keys import Key
from aiolb.errors import ConfigurationError

ADDRESS, SEED = Address("127.0.0.1", 9000), 1 << 100 | 5


class Table:
    """A slot table of two members that the test changes."""

    address = ADDRESS

    def __init__(self):
        self.slots = [slot % 2 for slot in range(SLOT_COUNT)]
        settings = Key.parse("flow").settings
        empty = Config.unpack(bytes(Config.STRUCT.size))
        self.config = replace(empty, seed_low=SEED & (1 << 64) - 1, seed_high=SEED >> 64, **settings)

    def move(self, moves):
        """Move slots as a group does."""
        self.slots = [moves.get(slot, owner) for slot, owner in enumerate(self.slots)]
        self.config = replace(self.config, generation=self.config.generation + 1)


def change(key, *, left=(), came=()):
    """A change of these slots."""
    return SlotsChange(ADDRESS, frozenset(left), frozenset(came), key, SEED)


def test_nothing_has_changed():
    """Where no slot has moved there is nothing to tell."""
    watch = SlotsWatch(Table())
    assert watch.look() == watch.look() == {}


def test_what_left_came():
    """What left one member came to another; each change is told once, several moves together."""
    table = Table()
    watch, second = SlotsWatch(table), SlotsWatch(table, 1)
    table.move({0: 1, 2: 1, 3: 0})
    table.move({2: 0, 4: 2})
    key = Key.parse("flow")
    assert watch.look() == {
        0: change(key, left={0, 4}, came={3}),
        1: change(key, left={3}, came={0}),
        2: change(key, came={4}),
    }
    assert second.look() == {1: change(key, left={3}, came={0})}
    assert watch.look() == second.look() == {}


def test_moved_there_and_back():
    """A slot that is where it was is no change."""
    table = Table()
    watch = SlotsWatch(table)
    table.move({0: 1})
    table.move({0: 0})
    assert watch.look() == {}


@pytest.mark.parametrize("addr", [("127.0.0.5", 7), ("::ffff:127.0.0.5", 7, 0, 0)], ids=["v4", "mapped"])
def test_sources_are_concerned(addr):
    """A source has left, has come, or is not concerned, whatever its port; also a v4-mapped one."""
    key = Key.parse("source")
    slot = slot_of(SEED, key.bytes_of(ip_address("127.0.0.5")))
    assert change(key, left={slot}).concerns(addr) == "left"
    assert change(key, came={slot}).concerns(addr) == "came"
    assert change(key, left={slot + 1}, came={slot - 1}).concerns(addr) is None


def test_scoped_sources_are_concerned():
    """The interface of a link-local source, as the socket module may give it, does not matter."""
    key = Key.parse("source")
    slot = slot_of(SEED, key.bytes_of(ip_address("fe80::1")))
    assert change(key, left={slot}).concerns(("fe80::1%lo", 7, 0, 1)) == "left"


def test_flows_are_concerned():
    """With the key flow the port counts too."""
    key = Key.parse("flow")
    slots = {port: slot_of(SEED, key.bytes_of(ip_address("127.0.0.5"), port)) for port in (7, 8)}
    assert slots[7] != slots[8]
    moved = change(key, left={slots[7]})
    assert (moved.concerns(("127.0.0.5", 7)), moved.concerns(("127.0.0.5", 8))) == ("left", None)


@pytest.mark.parametrize("key", [Key.parse("random"), Key(KEY_CUSTOM, digest=5)], ids=str)
def test_keys_that_sources_do_not_tell(key):
    """With random, and with a key file, only the slots are known, which is said."""
    with pytest.raises(ConfigurationError, match="where it goes: the key is") as caught:
        change(key, left={1}).concerns(("127.0.0.5", 7))
    assert caught.value.hint == "only the slots are known"


def test_messages():
    """A change survives the way over a channel."""
    there = change(Key(KEY_CUSTOM, digest=5), left={1, 2}, came={16383})
    assert SlotsChange.from_message(there.as_message()) == there
