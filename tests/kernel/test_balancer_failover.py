"""Failover: a dead member's sources go where the pure twin says, nobody else's move, and all come back."""

from __future__ import annotations

import pytest


def of(received, *members):
    """The sources that reached one of these members."""
    return {source for source, member in received.items() if member in members}


def test_only_the_dead_members_sources_move(cluster, sources_v4):
    """One of three dies: its sources are on both survivors at the next datagram, and no other source moves."""
    group, sources = cluster(3), sources_v4(1_000)
    before = group.route(sources)
    group.kill(1)
    after = group.route(sources)
    assert after == group.predict(sources, {0, 2})
    assert {source for source in sources if before[source] != after[source]} == of(before, 1)
    moved = of(before, 1)
    shares = [len(of(after, survivor) & moved) for survivor in (0, 2)]
    assert sum(shares) == len(moved)
    assert min(shares) > len(moved) * 0.4


def test_counts_every_failover(cluster, sources_v4):
    """The group counts each packet that went elsewhere, and each member those that it took over."""
    group, sources = cluster(3), sources_v4(1_000)
    before = group.route(sources)
    assert group.statistics.failovers == 0
    group.kill(1)
    after = group.route(sources)
    found = group.statistics
    assert found.failovers == len(of(before, 1))
    assert [member.failovers for member in found.members] == [
        len(of(before, 1) & of(after, index)) for index in range(3)
    ]
    assert (found.unsteered, found.dropped) == (0, 0)


def test_sources_return_to_the_member_that_is_back(cluster, sources_v4):
    """The index is taken again: exactly the old sources return, and failovers are no longer counted."""
    group, sources = cluster(3), sources_v4(1_000)
    before = group.route(sources)
    group.kill(1)
    group.route(sources)
    failovers = group.statistics.failovers
    group.join(1)
    assert group.route(sources) == before
    assert group.statistics.failovers == failovers


def test_leaving_fails_over_like_dying(cluster, sources_v4):
    """A member that left gets nothing, with its socket still open; its sources go where they go when it dies."""
    group, sources = cluster(3), sources_v4(1_000)
    assert group.memberships[1].leave()
    assert group.route(sources) == group.predict(sources, {0, 2})


def test_v6_sources_fail_over(netns, cluster, sources_v6):
    """IPv6 sources fail over as the pure twin says."""
    netns.add_local("fd00::/8")
    group, sources = netns.call(cluster, 3, host="::1"), sources_v6(1_000)
    before = netns.call(group.route, sources)
    group.kill(0)
    after = netns.call(group.route, sources)
    assert after == group.predict(sources, {1, 2})
    assert {source for source in sources if before[source] != after[source]} == of(before, 0)


@pytest.mark.parametrize("survivor", [0, 17, 31])
def test_one_of_thirty_two_is_left(cluster, sources_v4, survivor):
    """With 31 of 32 members dead, every source reaches the one that lives."""
    group, sources = cluster(32), sources_v4(1_000)
    before = group.route(sources)
    group.kill(*(member for member in range(32) if member != survivor))
    assert set(group.route(sources).values()) == {survivor}
    found = group.statistics
    assert found.failovers == len(sources) - len(of(before, survivor))
    assert (found.unsteered, found.dropped) == (0, 0)


@pytest.mark.parametrize(("count", "members"), [(1024, [1023]), (1024, [0]), (1024, [5, 700, 1022]), (64, [5, 40])])
def test_few_have_joined_yet(cluster, sources_v4, count, members):
    """In a group where one to three of very many members have joined, every source goes where the pure twin says."""
    group, sources = cluster(count, members=members), sources_v4(1_000)
    received = group.route(sources)
    assert received == group.predict(sources, set(members))
    assert set(received.values()) == set(members)
    assert group.statistics.unsteered == 0


def test_few_of_a_thousand_are_left(cluster, sources_v4):
    """When most of 1,024 members died, the newest among them, the kernel chooses where no try finds a live one."""
    group, sources = cluster(1024, members=[5, 700, 1023]), sources_v4(1_000)
    group.kill(1023)
    received, predicted = group.route(sources), group.predict(sources, {5, 700})
    found = {source: member for source, member in predicted.items() if member is not None}
    assert {source: received[source] for source in found} == found
    assert set(received.values()) == {5, 700}
    assert group.statistics.unsteered == len(sources) - len(found) > 0


def test_nobody_is_alive(cluster, sources_v4):
    """Without a live member the kernel chooses among the sockets on the port, and each packet counts as unsteered."""
    group, sources = cluster(3), sources_v4(500)
    group.bind("outside")
    assert "outside" not in group.route(sources).values()
    group.kill(0, 1, 2)
    assert set(group.route(sources).values()) == {"outside"}
    found = group.statistics
    assert (found.unsteered, found.dropped, found.failovers) == (500, 0, 0)
    assert group.predict(sources, ()) == dict.fromkeys(sources)


def test_nobody_is_alive_in_a_strict_group(cluster, sources_v4, wait_until):
    """A strict group drops what no member can take, counts each packet, and goes on when a member is back."""
    group, sources = cluster(3, strict=True), sources_v4(500)
    group.bind("outside")
    group.kill(0, 1, 2)
    group.send(sources)
    wait_until(lambda: group.statistics.dropped >= 500, "500 packets counted as dropped")
    group.join(2)
    assert set(group.route(sources).values()) == {2}
    found = group.statistics
    assert (found.unsteered, found.dropped) == (0, 500)
