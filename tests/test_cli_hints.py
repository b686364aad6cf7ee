"""What `aiolb status` and `aiolb top` tell first of a group: what is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_top import group, member

from aiolb.bpf import snapshot
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.snapshot import State
from aiolb.cli.hints import Hint, hints


def told(*members, **kernel):
    """The hints of a group of these members, looked at once."""
    look = group(*members)
    look = replace(look, kernel=replace(look.kernel, **kernel))
    return hints(look, look.members)


def between(before, after, second=1):
    """The hints after two looks."""
    first, last = group(*before), group(*after, second=second)
    return hints(last, last.members, snapshot.rates(first, last))


def test_nothing_is_wrong():
    """Of a group that is well nothing is said."""
    assert told(member(0), member(1)) == []
    assert between([member(0), member(1)], [member(0, second=1, received=500), member(1, second=1, received=500)]) == []


def test_dead_members():
    """Each is named, and how to start one in its place; of many the first ones."""
    assert told(member(0), member(1, cookie=False)) == [
        Hint("member 1 is dead, others get the sources", "aiolb serve APP --bind 127.0.0.1:9000 --index 1")
    ]
    (many,) = told(member(0), *(member(index, cookie=False) for index in range(1, 128)))
    assert many.what == "members 1, 2, 3, 4, 5 and 122 more are dead, others get the sources"
    (stale,) = told(member(0, cookie=False))
    assert (stale.what, "aiolb group delete --stale" in stale.fix) == ("nobody is alive", True)
    look = replace(group(member(0, cookie=False)), prepared="nobody")
    assert hints(look, look.members) == [
        Hint(
            "nobody is alive",
            "start a collector as nobody; or, to forget the group: aiolb group delete 127.0.0.1:9000",
        )
    ]


def test_where_the_group_is():
    """Commands name the BPF file system, unless it is the usual one."""
    look = group(member(0), member(1, cookie=False))
    look = replace(look, kernel=replace(look.kernel, denied=1))
    assert [hint.fix for hint in hints(look, look.members, bpffs=Path("/mnt/b p f"))] == [
        "aiolb serve APP --bind 127.0.0.1:9000 --index 1 --bpffs '/mnt/b p f'",
        "aiolb guard --group 127.0.0.1:9000 --bpffs '/mnt/b p f' says whose",
    ]


def test_silent_members():
    """Who hangs is named."""
    (hint,) = told(replace(member(0), state=State.SILENT), replace(member(1), state=State.SILENT), member(2))
    assert (hint.what, hint.fix) == ("members 0 and 1 are silent", "the collector hangs or was killed: see its log")


def test_drops_in_bursts():
    """Drops of a member whose queue has room now call for more of it."""
    (hint,) = told(member(0, kernel_drops=7), member(1))
    assert hint.what == "the kernel dropped packets of member 0"
    assert hint.fix.startswith("--rcvbuf 1M")
    (hint,) = between([member(0)], [member(0, second=1, kernel_drops=9)])
    assert hint.what == "the kernel drops packets of member 0"


def test_a_member_that_cannot_keep_up():
    """Drops of now with a full queue are not cured by a larger one."""
    after = [member(0, second=2, kernel_drops=2468, queued_bytes=900), member(1, second=2)]
    (hint,) = between([member(0), member(1)], after, second=2)
    assert hint == Hint(
        "member 0 cannot keep up, and the kernel drops 1,234 packets/s",
        "a faster handler, a higher --concurrency if it waits, or more members",
    )


def test_errors_and_the_guard():
    """Handlers that raise, and packets that the guard drops, are told of, and where to read more."""
    errors, guard = told(member(0, errors=1), limited=1)
    assert errors.what == "handlers of member 0 raise"
    assert guard == Hint("the guard drops packets", "aiolb guard --group 127.0.0.1:9000 says whose")


@pytest.mark.parametrize(("rate", "uneven"), [(1000, True), (5, False)])
def test_an_uneven_group(rate, uneven):
    """A member that gets much more than its slots are is told of, unless there is too little to say so."""
    halves = [8192, 8192]

    def both(second):
        made = member(0, second=second, received=second * rate * 9), member(1, second=second, received=second * rate)
        return [replace(one, kernel=replace(one.kernel, slots=slots)) for one, slots in zip(made, halves, strict=True)]

    found = between(both(0), both(1))
    assert bool(found) == uneven
    if uneven:
        assert found[0].what == "member 0 gets 1.8 times its part of the datagrams"
        assert found[0].fix.startswith("aiolb rebalance --group 127.0.0.1:9000 --dry-run")


def test_an_uneven_group_of_connections():
    """Of TCP it is connections that are told of."""
    before, after = (
        replace(
            group(*(member(index, second=second, received=second * 900 * (1 - index)) for index in (0, 1))),
            name=GroupName.parse("tcp:127.0.0.1:9000"),
            taken=50.0 + second,
        )
        for second in (0, 1)
    )
    (hint,) = hints(after, after.members, snapshot.rates(before, after))
    assert hint.what == "member 0 gets 2.0 times its part of the connections"
