"""The number of members changes: only what must move moves, and the shares stay even."""

from __future__ import annotations

from collections import Counter

import pytest

from aiolb.errors import MemberTakenError


def shares(group):
    """How many slots each member owns."""
    return [member.slots for member in group.statistics.members]


def test_three_to_four(cluster, sources_v4):
    """Between 20 % and 30 % of 1,000 sources move, all of them to the new member; the shares stay even."""
    group, sources = cluster(3), sources_v4(1_000)
    before = group.route(sources)
    group.join(3, count=4)
    after = group.route(sources)
    moved = [source for source in sources if before[source] != after[source]]
    assert 200 <= len(moved) <= 300
    assert {after[source] for source in moved} == {3}
    assert after == group.predict(sources, range(4))
    assert shares(group) == [4096] * 4


def test_four_to_three(cluster, sources_v4):
    """Only the sources of the member that goes move, and it gets nothing any more, alive as it is."""
    group, sources = cluster(4), sources_v4(1_000)
    before = group.route(sources)
    group.kill(0)
    group.join(0, count=3)
    after = group.route(sources)
    assert {source for source in sources if before[source] != after[source]} == {
        source for source in sources if before[source] == 3
    }
    assert set(after.values()) == {0, 1, 2}
    assert max(shares(group)) - min(shares(group)) == 1
    assert group.statistics.failovers == 0


def test_there_and_back(cluster, sources_v4):
    """After 3, 4 and 3 again the shares are even, and the sources that moved are those of the member that went."""
    group, sources = cluster(3), sources_v4(1_000)
    group.join(3, count=4)
    four = group.route(sources)
    group.kill(2)
    group.join(2, count=3)
    three = group.route(sources)
    assert {source for source in sources if three[source] != four[source]} == {
        source for source in sources if four[source] == 3
    }
    assert sum(shares(group)) == 16_384
    assert max(shares(group)) - min(shares(group)) == 1


def test_the_newest_count_wins(cluster):
    """Every member sees the count that was asked for last; who asks for none gets the group's."""
    group = cluster(3, members=[0])
    group.join(1)
    assert group.memberships[1].count == 3
    group.join(4, count=5)
    assert [member.count for member in group.memberships.values()] == [5, 5, 5]


def test_a_refused_join_changes_no_count(cluster):
    """A join that is refused leaves the count and the slots as they were."""
    group = cluster(2)
    before = group.group.slots
    with pytest.raises(MemberTakenError):
        group.group.join(group.bind("late"), 1, count=7)
    assert (group.group.config.count, group.group.slots) == (2, before)


def test_up_to_the_limit(cluster, sources_v4):
    """A group grows from one member to 1,024 and back to one, with even shares."""
    group, sources = cluster(1), sources_v4(500)
    group.join(1023, count=1024)
    assert Counter(shares(group)) == {16: 1024}
    assert group.memberships[0].count == 1024
    group.kill(0)
    group.join(0, count=1)
    assert shares(group) == [16_384]
    assert set(group.route(sources).values()) == {0}


def test_moved_slots(cluster, sources_v4):
    """Slots given to another member by hand take their sources along, and nothing else moves."""
    group, sources = cluster(3), sources_v4(1_000)
    before = group.route(sources)
    slots = {slot: 2 for slot, owner in enumerate(group.group.slots) if owner == 0 and slot < 8_000}
    group.group.move_slots(slots)
    after = group.route(sources)
    assert after == group.predict(sources, range(3))
    assert {(before[source], after[source]) for source in sources if before[source] != after[source]} == {(0, 2)}
