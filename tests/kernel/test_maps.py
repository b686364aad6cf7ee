"""The maps of a group: reading and writing them whole, and closing them once."""

from __future__ import annotations

import errno
import os
from array import array
from pathlib import Path

import pytest

from aiolb.bpf import abi, syscall
from aiolb.bpf import maps as maps_module
from aiolb.bpf.maps import Maps, possible_cpus


@pytest.fixture
def maps():
    """A group's maps, not pinned."""
    made = Maps.create("udp")
    yield made
    made.close()


def test_plain_values(maps):
    """A value is written and read back; what is not written is zero."""
    value = bytes(range(32))
    maps.write("members", 5, value)
    assert maps.read("members", 5) == value
    assert maps.read("members", 6) == bytes(32)
    assert maps.read("members", abi.MAX_MEMBERS) is None


def test_many_values(maps):
    """Many values are written in one call, and all are read in one."""
    wanted = [bytes([index % 251]) * 32 for index in range(abi.MAX_MEMBERS)]
    maps.write_many("members", dict(enumerate(wanted)))
    assert maps.read_all("members") == b"".join(wanted)
    maps.write_many("members", {})
    maps.write_many("members", {3: bytes(32)})
    assert maps.read("members", 3) == bytes(32)


def test_slots(maps):
    """The slot table is the map's own memory: what is written there the kernel reads, and the other way round."""
    table = array("H", [slot * 3 % 1024 for slot in range(abi.SLOT_COUNT)]).tobytes()
    maps.slots[:] = table
    assert maps.read("slots", 0) == table
    maps.write("slots", 0, table[::-1])
    assert maps.slots[:] == table[::-1]


@pytest.mark.parametrize("pin", ["member_stats", "slot_stats", "group_stats", "members"])
def test_without_batch_operations(maps, monkeypatch, pin):
    """Where the kernel reads no batches of a map, its values are read one by one, to the same result."""
    if pin == "members":
        maps.write_many(pin, {index: bytes([index % 251]) * 32 for index in range(abi.MAX_MEMBERS)})
    whole = maps.read_all(pin)

    def unsupported(*_):
        raise OSError(524, "Unknown error 524", "BPF_MAP_LOOKUP_BATCH")

    monkeypatch.setattr(syscall, "map_lookup_batch", unsupported)
    assert maps.read_all(pin) == whole


def test_structs(maps):
    """A struct is read from its map; where nothing was written, all its fields are zero."""
    member = abi.Member(1, 2, 3, 4, 5, 6)
    maps.write("members", 9, member.pack())
    assert maps.read_struct("members", 9, abi.Member) == member
    assert maps.read_struct("members", 8, abi.Member) == abi.Member(0, 0, 0, 0, 0, 0)


def test_sums(maps):
    """A per-CPU value is the sum over all CPUs."""
    per_cpu = b"".join(abi.MemberStats(cpu, 10 * cpu, 100).pack() for cpu in range(possible_cpus()))
    maps.write("member_stats", 3, per_cpu)
    total = sum(range(possible_cpus()))
    sums = maps.sums("member_stats")
    assert sums[3] == (total, 10 * total, 100 * possible_cpus())
    assert sums[:3] + sums[4:] == [(0, 0, 0)] * (abi.MAX_MEMBERS - 1)


@pytest.mark.parametrize(("text", "cpus"), [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 8), ("0-127\n", 128)])
def test_possible_cpus(monkeypatch, text, cpus):
    """The kernel's list of CPUs is counted, ranges and single ones."""
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert possible_cpus.__wrapped__() == cpus


def test_nothing_to_delete(maps):
    """Removing a member that is not there is no error."""
    assert not maps.delete("targets", 0)


def test_closing_twice(maps):
    """Closing is idempotent."""
    maps.close()
    maps.close()


def test_placeholders(maps):
    """Every map of the program has its own descriptor; `members` is user space's alone."""
    assert sorted(maps.by_placeholder()) == list(range(1, 11))
    assert len(set(maps.by_placeholder().values())) == 10


@pytest.mark.parametrize("failing", range(len(abi.MAPS)))
def test_a_creation_that_fails(monkeypatch, failing):
    """When any map cannot be created, those that were are closed again."""
    create, opened, calls = syscall.map_create, [], iter(range(100))

    def fail(*arguments, **named):
        if next(calls) == failing:
            raise OSError(errno.ENOMEM, "Cannot allocate memory", "BPF_MAP_CREATE")
        opened.append(create(*arguments, **named))
        return opened[-1]

    monkeypatch.setattr(maps_module.syscall, "map_create", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Maps.create("udp")
    assert len(opened) == failing
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
