"""Weights, drain, undrain and moves by hand: only what must move moves, and what cannot be changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from aiolb.errors import ConfigurationError

SLOTS = 16_384


def owned(group):
    """How many slots each member owns."""
    return [member.slots for member in group.statistics.members]


def differing(before, after):
    """The slots that have another owner: slot -> old and new one."""
    pairs = enumerate(zip(before, after, strict=True))
    return {slot: owners for slot, owners in pairs if owners[0] != owners[1]}


def test_weights_are_shares(cluster, sources_v4):
    """A member of weight 300 beside one of 100 has three times its slots, and about three times its sources."""
    group, sources = cluster(2), sources_v4(1_000)
    before, slots = group.route(sources), group.group.slots
    moved = group.group.set_weight(1, 300)
    assert owned(group) == [SLOTS // 4, SLOTS * 3 // 4]
    assert differing(slots, group.group.slots) == dict.fromkeys(moved, (0, 1))
    assert len(moved) == SLOTS // 4
    after = group.route(sources)
    assert after == group.predict(sources, range(2))
    assert {(before[source], after[source]) for source in sources if before[source] != after[source]} == {(0, 1)}
    assert 700 <= Counter(after.values())[1] <= 800
    assert [member.weight for member in group.statistics.members] == [100, 300]


def test_weight_of_a_member_that_joins(cluster):
    """A weight that is given when joining is the member's from then on, also with another count; the newest wins."""
    group = cluster(2)
    group.memberships[2] = group.group.join(group.bind(2), 2, count=3, weight=200)
    assert owned(group) == [SLOTS // 4, SLOTS // 4, SLOTS // 2]
    group.kill(2)
    group.memberships[2] = group.group.join(group.bind("again"), 2)
    assert owned(group) == [SLOTS // 4, SLOTS // 4, SLOTS // 2]
    group.kill("again")
    group.memberships[2] = group.group.join(group.bind("once more"), 2, weight=0)
    assert owned(group) == [SLOTS // 2, SLOTS // 2, 0]
    assert (group.memberships[2].weight, group.memberships[2].drained) == (0, False)


def test_a_place_that_is_taken_away_forgets(cluster):
    """Who comes to a place that a smaller count had taken away is another member: of weight 100, and not drained."""
    group = cluster(4)
    group.group.set_weight(3, 300)
    group.group.drain(3)
    group.group.resize(3)
    group.group.resize(4)
    assert owned(group) == [SLOTS // 4] * 4


@pytest.mark.parametrize("weight", [-1, 1001])
def test_weights_that_cannot_be(cluster, weight):
    """A weight outside of 0 to 1000 is refused, for a drained member too, and a join with it changes nothing."""
    group = cluster(2)
    with pytest.raises(ConfigurationError, match=f"weight of member 0 is 0 to 1000, not {weight}"):
        group.group.set_weight(0, weight)
    group.group.drain(0)
    with pytest.raises(ConfigurationError, match="is 0 to 1000"):
        group.group.set_weight(0, weight)
    group.kill(1)
    with pytest.raises(ConfigurationError, match="is 0 to 1000"):
        group.group.join(group.bind("late"), 1, weight=weight)
    assert (group.group.alive(), group.group.weights) == ({0}, ((100, True), (100, False)))


def test_somebody_must_own_the_slots(cluster):
    """The last member that may own slots keeps its weight, and so does the group its count."""
    group = cluster(3)
    group.group.set_weight(0, 0)
    group.group.drain(1)
    before = group.group.slots
    with pytest.raises(ConfigurationError, match=r"no member of the group .* would own a slot"):
        group.group.set_weight(2, 0)
    with pytest.raises(ConfigurationError, match="would own a slot") as refused:
        group.group.resize(2)
    assert refused.value.hint == "aiolb undrain INDEX, or aiolb weight INDEX 100, of one of them first"
    assert (group.group.slots, group.group.config.count, group.group.shares) == (before, 3, (0, 0, 100))


def test_drain_and_undrain(cluster, sources_v4):
    """A drained member gets nothing, alive as it is, and its sources go to all others; then it has its share again."""
    group, sources = cluster(4), sources_v4(1_000)
    before, slots = group.route(sources), group.group.slots
    moved = group.group.drain(1)
    drained = group.group.slots
    assert differing(slots, drained).keys() == moved.keys() == {slot for slot in range(SLOTS) if slots[slot] == 1}
    assert owned(group)[1] == 0
    during = group.route(sources)
    assert Counter(during.values())[1] == 0
    assert {source for source in sources if before[source] != during[source]} == {
        source for source in sources if before[source] == 1
    }
    assert group.statistics.failovers == 0
    assert group.group.drain(1) == {}
    back = group.group.undrain(1)
    assert set(back.values()) == {1}
    assert owned(group) == [SLOTS // 4] * 4
    assert differing(drained, group.group.slots).keys() == back.keys()
    assert group.group.undrain(1) == {}


def test_a_drain_that_was_cut_off(cluster, monkeypatch):
    """Who is killed after some slots of a drain have moved has changed no share: the same drain moves the others."""
    group = cluster(3)
    before = group.group.slots

    def killed(**_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(group.group, "_write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            group.group.drain(1)
    assert not group.memberships[1].drained
    group.group.move_slots({slot: 1 for slot, owner in enumerate(before) if owner == 1 and slot % 2})
    moved = group.group.drain(1)
    assert moved.keys() == {slot for slot, owner in enumerate(before) if owner == 1 and slot % 2}
    assert owned(group)[1] == 0
    assert max(owned(group)) - min(owned(group)[::2]) <= 1


def test_a_drained_member_stays_drained(cluster):
    """Another count and another process in its place leave a member drained."""
    group = cluster(3)
    group.group.drain(0)
    group.join(3, count=4)
    group.kill(0)
    group.join(0)
    assert owned(group)[0] == 0
    assert sum(owned(group)) == SLOTS
    assert group.memberships[0].drained


def test_the_last_one_is_not_drained(cluster):
    """A member is drained only when another one is alive that may have its slots."""
    group = cluster(3)
    group.kill(2)
    group.group.drain(0)
    before = group.group.slots
    with pytest.raises(ConfigurationError, match=r"member 1 of the group .* cannot be drained") as refused:
        group.group.drain(1)
    assert refused.value.hint == "start another member, or undrain one, first"
    assert group.group.slots == before
    group.group.drain(2)  # dead, and the others go on without it
    assert owned(group) == [0, SLOTS, 0]


def test_moves_by_hand(cluster, sources_v4):
    """The slots of sources move, with all that is in them, and nothing else; what is there already does not count."""
    group, sources = cluster(3), sources_v4(1_000)
    before = group.route(sources)
    chosen = [source for source in sources if before[source] == 0][:5]
    slots = {group.group.slot_of(source) for source in chosen}
    there = next(group.group.slot_of(source) for source in sources if before[source] == 2)
    assert group.group.move([*slots, there], to=2) == dict.fromkeys(slots, 2)
    after = group.route(sources)
    assert {source for source in sources if after[source] != before[source]} == {
        source for source in sources if group.group.slot_of(source) in slots
    }
    assert {after[source] for source in chosen} == {2}


def test_moves_that_are_refused(cluster):
    """Slots and members that do not exist, and members that are drained, weigh nothing or are dead, get nothing."""
    group = cluster(4)
    group.kill(3)
    group.group.drain(2)
    group.group.set_weight(1, 0)
    before = group.group.slots
    refused = [
        ([5, SLOTS], 0, "16384 is no slot"),
        ([-1], 0, "-1 is no slot"),
        ([5], 4, "has no member 4: it has 4 members, 0 to 3"),
        ([5], -1, "has no member -1"),
        ([5], 3, "member 3 is dead"),
        ([5], 2, "member 2 is drained"),
        ([5], 1, "member 1 has the weight 0"),
    ]
    for slots, to, message in refused:
        with pytest.raises(ConfigurationError, match=message):
            group.group.move(slots, to=to)
    assert group.group.slots == before


def test_a_table_that_has_changed_is_left_alone(cluster):
    """What was planned for another table is not carried out."""
    group = cluster(3)
    generation = group.group.config.generation
    assert group.group.move_slots_since(generation, {5: 0})
    assert not group.group.move_slots_since(generation, {6: 0, 7: 1})
    assert group.group.config.generation == generation + 1


def test_what_changes_is_told(cluster):
    """A member is told of slots that left and came since it joined, and of no others."""
    group = cluster(3)
    assert [membership.slots_change() for membership in group.memberships.values()] == [None] * 3
    slots = [slot for slot, owner in enumerate(group.group.slots) if owner == 0][:2]
    group.group.move(slots, to=1)
    left, came, none = (membership.slots_change() for membership in group.memberships.values())
    assert (left.left, left.came, came.left, came.came, none) == (set(slots), set(), set(), set(slots), None)
    assert (came.address, came.seed, came.key) == (group.address, group.group.config.seed, group.group.key)
    assert [membership.slots_change() for membership in group.memberships.values()] == [None] * 3
