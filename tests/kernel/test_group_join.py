"""Joining and leaving a group: who holds an index, takeover, leaving, and groups that do not meet."""

from __future__ import annotations

import os
import time
from contextlib import closing
from datetime import UTC, datetime

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import Group, GroupOptions
from aiolb.errors import ConfigurationError, GroupError, GroupNotFoundError, KernelError, MemberTakenError


def test_a_held_index_is_refused(cluster):
    """A live index is not taken silently: the error names the holder's pid, and since when."""
    before = time.time_ns() // 10**9
    group = cluster(2)
    since = [datetime.fromtimestamp(before + second, tz=UTC).astimezone() for second in range(2 + before % 1)]
    with pytest.raises(MemberTakenError) as caught:
        group.group.join(group.bind("late"), 1)
    assert str(caught.value) in {
        f"index 1 of the group at {group.address} is held by pid {os.getpid()} since {moment:%F %T}" for moment in since
    }
    assert caught.value.hint == "choose another --index, or replace it with --takeover"


@pytest.mark.parametrize("pinned", [True, False])
def test_the_name_of_a_group_of_tcp(bpffs, address, pinned):
    """A group of TCP is named as a command takes it: on the same port there may be one of UDP too."""
    options = GroupOptions(protocol="tcp", bpffs=bpffs if pinned else None)
    with Group.opened_or_created(address, options) as group, closing(group):
        with pytest.raises(ConfigurationError, match=f"^index 5 is outside of the group at tcp:{address}, which has"):
            group.check_vacant(5)
        with pytest.raises(ConfigurationError, match=f"^the group at tcp:{address} has no member 5: it has"):
            group.check_index(5)
        group.delete()


def test_a_dead_index_is_free(cluster, sources_v4):
    """The index of a closed socket is taken without takeover."""
    group = cluster(2)
    group.kill(1)
    group.join(1)
    sources = sources_v4(200)
    assert group.route(sources) == group.predict(sources, {0, 1})


def test_takeover(cluster, sources_v4):
    """Takeover replaces the holder: the new socket gets its sources, and the old one sees that it was displaced."""
    group, sources = cluster(2), sources_v4(500)
    before = group.route(sources)
    old = group.memberships[1]
    new = group.group.join(group.bind("new"), 1, takeover=True)
    assert (old.displaced, new.displaced, group.memberships[0].displaced) == (True, False, False)
    assert group.route(sources) == {source: "new" if member == 1 else member for source, member in before.items()}
    assert group.statistics.members[1].cookie == new.cookie


def test_the_queue_of_a_displaced_socket_stays(cluster, sources_v4):
    """What the old socket had queued before the takeover is still its to read."""
    group, sources = cluster(1), sources_v4(300)
    group.send(sources)
    group.group.join(group.bind("new"), 0, takeover=True)
    assert group.receive(300) == dict.fromkeys(sources, 0)


def test_leaving(cluster):
    """Leaving empties the place once; a second time there is nothing to leave."""
    group = cluster(2)
    member = group.memberships[1]
    assert (member.leave(), member.leave()) == (True, False)
    assert group.group.alive() == {0}
    assert not member.displaced


def test_leaving_after_the_socket_was_closed(cluster):
    """The kernel has emptied the place of a closed socket: nothing to leave, no error."""
    group = cluster(1)
    group.kill(0)
    assert not group.memberships[0].leave()


def test_a_displaced_member_leaves_its_successor_alone(cluster, sources_v4):
    """When the displaced socket leaves, the new one stays."""
    group = cluster(1)
    old = group.memberships[0]
    group.group.join(group.bind("new"), 0, takeover=True)
    assert not old.leave()
    assert set(group.route(sources_v4(100)).values()) == {"new"}


@pytest.mark.parametrize("index", [-1, 3, 1023, 1024])
def test_an_index_outside_of_the_group(cluster, index):
    """An index outside of the group is refused, with the range that there is."""
    group = cluster(3, members=())
    with pytest.raises(ConfigurationError, match=rf"^index {index} is outside of the group at .* has 3 members"):
        group.group.join(group.bind("late"), index)
    assert group.group.alive() == set()


def test_a_socket_that_cannot_join(cluster):
    """A socket that is not bound is refused by the kernel, and the index goes on as it was."""
    group = cluster(1)
    member = group.statistics.members[0]
    with sockets._socket(group.address, "udp") as unbound, pytest.raises(KernelError, match="cannot join the group"):
        group.group.join(unbound, 0, takeover=True)
    assert group.statistics.members[0] == member


def test_a_socket_joins_once(cluster):
    """One socket cannot hold two places; the refused join leaves no trace of it at either index."""
    group = cluster(3, members=[0, 1])
    before = group.statistics
    for index in (1, 2):
        with pytest.raises(KernelError, match="cannot join the group"):
            group.group.join(group.sockets[0], index, takeover=True)
    assert group.statistics == before


def test_two_ports_are_two_groups(cluster, sources_v4):
    """Groups on two ports do not share members, counters or slots."""
    first, second, sources = cluster(2), cluster(3), sources_v4(300)
    first.route(sources)
    assert second.route(sources) == second.predict(sources, range(3))
    assert [sum(m.packets for m in group.statistics.members) for group in (first, second)] == [300, 300]


def test_two_addresses_are_two_groups(netns, cluster, sources_v4):
    """The same port on another address is another group."""
    first, sources = netns.call(cluster, 2, host="127.0.0.1"), sources_v4(300)
    second = netns.call(cluster, 3, host="127.0.0.2", port=first.address.port)
    for group in (first, second):
        netns.call(group.route, sources)
    assert [sum(m.packets for m in group.statistics.members) for group in (first, second)] == [300, 300]


def test_two_namespaces_are_two_groups(make_netns, cluster, sources_v4, bpffs):
    """The same address and port in two network namespaces are two groups, in two folders."""
    (here, there), sources = (make_netns(), make_netns()), sources_v4(300)
    first = here.call(cluster, 2)
    second = there.call(cluster, 3, port=first.address.port)
    assert first.address == second.address
    assert len(list(bpffs.glob("aiolb/*/*"))) == 2
    for namespace, group, count in ((here, first, 2), (there, second, 3)):
        assert namespace.call(group.route, sources) == group.predict(sources, range(count))
    assert [sum(m.packets for m in group.statistics.members) for group in (first, second)] == [300, 300]
    with pytest.raises(GroupNotFoundError):
        Group.open(first.address, bpffs=bpffs)


def test_open_finds_the_group(cluster, bpffs):
    """Whoever opens a group by its address sees the same members, seed and slots."""
    group = cluster(3)
    found = Group.open(group.address, bpffs=bpffs)
    assert found.statistics() == group.statistics
    found.close()
    found.close()


def test_open_without_a_group(bpffs):
    """Without a group at the address there is an error that names it, and nothing is created."""
    with pytest.raises(GroupNotFoundError, match=r"^there is no group at 127\.0\.0\.1:9"):
        Group.open(Address("127.0.0.1", 9), bpffs=bpffs)
    assert list(bpffs.glob("*/*")) == []


def test_an_existing_group_keeps_its_seed(cluster, program, bpffs):
    """Who asks for another seed than the group has is refused; who asks for none, or for the same, is not."""
    group = cluster(1, seed=5)
    with (
        pytest.raises(GroupError, match="has the seed 5, not 6"),
        Group.opened_or_created(group.address, GroupOptions(seed=6, program=program, bpffs=bpffs)),
    ):
        pytest.fail("opened")
    for seed in (None, 5):
        options = GroupOptions(seed=seed, program=program, bpffs=bpffs)
        with Group.opened_or_created(group.address, options) as again:
            assert again.config.seed == 5
        again.close()
    assert group.group.alive() == {0}


def test_a_new_groups_seed_is_random(bpffs, program):
    """Without a seed every new group gets another one, of 128 bits."""
    seeds = set()
    for port in range(1, 5):
        options = GroupOptions(program=program, bpffs=bpffs)
        with Group.opened_or_created(Address("127.0.0.1", port), options) as group:
            seeds.add(group.config.seed)
        group.delete_if_empty()
        group.close()
    assert len(seeds) == 4
    assert max(seeds) > 2**100


def test_strict_can_be_changed(cluster, program, bpffs):
    """Whoever asks for strict, or for not strict, changes the group; whoever does not ask leaves it."""
    group, found = cluster(1, strict=True), []
    for number, strict in enumerate((None, False, None, True)):
        options = GroupOptions(strict=strict, program=program, bpffs=bpffs)
        with Group.opened_or_created(group.address, options) as again:
            again.join(group.bind(f"joiner {number}"), 0, takeover=True)
            found.append(again.config.strict)
        again.close()
    assert found == [True, False, False, True]


def test_a_refused_join_changes_no_setting(cluster, compiled_debug, bpffs):
    """A join that is refused leaves strictness and program as they were."""
    group = cluster(1)
    before = group.group.config
    options = GroupOptions(strict=True, program=compiled_debug, bpffs=bpffs)
    with pytest.raises(MemberTakenError), Group.opened_or_created(group.address, options) as again:
        again.join(group.bind("late"), 0)
    assert group.group.config == before


def test_the_taker_dies(cluster, sources_v4):
    """A member whose place was taken over by a socket that died takes it back, once, and gets its sources again."""
    group, sources = cluster(2), sources_v4(300)
    before, old = group.route(sources), group.memberships[0]
    assert not old.restore()
    taker = group.bind("taker")
    group.group.join(taker, 0, takeover=True)
    assert old.displaced
    assert not old.restore()
    group.kill("taker")
    assert not old.displaced
    assert old.restore()
    assert not old.restore()
    assert group.route(sources) == before


def test_a_failure_inside_removes_a_new_group(bpffs, program):
    """When bind or join fails, a group that was made for it goes again, and one that was there stays."""
    address, options = Address("127.0.0.1", 9), GroupOptions(program=program, bpffs=bpffs)
    with pytest.raises(ZeroDivisionError), Group.opened_or_created(address, options):
        raise ZeroDivisionError
    assert list(bpffs.glob("aiolb")) == []
    with Group.opened_or_created(address, options) as group:
        pass
    with pytest.raises(ZeroDivisionError), Group.opened_or_created(address, options):
        raise ZeroDivisionError
    assert Group.open(address, bpffs=bpffs).close() is None
    group.delete_if_empty()
    group.close()


def test_a_group_is_forgotten_when_it_is_empty(cluster, bpffs):
    """A group with a live member keeps its pins; the last one to go may take them along."""
    group = cluster(2)
    group.group.delete_if_empty()
    assert Group.open(group.address, bpffs=bpffs).close() is None
    group.kill(0, 1)
    group.group.delete_if_empty()
    assert list(bpffs.glob("aiolb")) == []
    group.group.delete_if_empty()


def test_members_go_on_without_pins(cluster, sources_v4, bpffs):
    """When the pins are deleted, live members go on as they are, and leave without an error."""
    group, sources = cluster(3), sources_v4(300)
    before = group.route(sources)
    group.group.delete()
    assert list(bpffs.glob("aiolb")) == []
    assert group.route(sources) == before
    assert group.memberships[1].leave()
    assert group.route(sources) == group.predict(sources, {0, 2})


def test_locate(cluster, sources_v4):
    """`locate` answers what the kernel does, failover included; None when nobody is alive."""
    group, sources = cluster(3), sources_v4(30)
    assert {source: group.group.locate(source) for source in sources} == group.route(sources)
    group.kill(0)
    assert {source: group.group.locate(source) for source in sources} == group.route(sources)
    group.kill(1, 2)
    assert group.group.locate(sources[0]) is None


@pytest.mark.parametrize("options", [{"count": 0}, {"count": -1}, {"count": 1025}, {"seed": -1}, {"seed": 1 << 128}])
def test_options_that_cannot_work(options):
    """A count or a seed out of range is refused before anything is made."""
    with pytest.raises(ConfigurationError):
        GroupOptions(**options)
