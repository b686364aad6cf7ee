"""The slot table: even, whole, and moved as little as possible."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolb.bpf.abi import DEFAULT_WEIGHT, MAX_MEMBERS, SLOT_COUNT
from aiolb.bpf.slots import MAX_WEIGHT, assign, resize
from aiolb.errors import ConfigurationError

counts = st.integers(1, MAX_MEMBERS)
# Few different weights make equal remainders likely, which is where a slot may go to one or the other.
weights = st.lists(
    st.sampled_from([0, 1, DEFAULT_WEIGHT, MAX_WEIGHT]) | st.integers(0, 6) | st.integers(0, MAX_WEIGHT),
    min_size=1,
    max_size=6,
).filter(any)
tables = st.lists(st.integers(0, 7), min_size=1, max_size=40)


def moved(table, count, weights=None):
    """The table after a change of the member count, or of the weights."""
    moves = resize(table, count, weights)
    return [moves.get(slot, member) for slot, member in enumerate(table)]


def is_even(table, count):
    """Whether every member owns its share, give or take one."""
    owned = Counter(table)
    shares = [owned[member] for member in range(count)]
    return set(owned) <= set(range(count)) and max(shares) - min(shares) <= 1


@settings(max_examples=30)
@given(counts)
def test_a_new_table_is_even(count):
    """Every slot has an owner, and every member as many slots as the others, give or take one."""
    table = assign(count)
    assert len(table) == SLOT_COUNT
    assert is_even(table, count)


@settings(max_examples=20)
@given(st.lists(counts, min_size=2, max_size=5))
def test_any_changes_keep_it_even(changes):
    """After whatever changes of the count, every slot has an owner and the shares are even."""
    table = assign(changes[0])
    for count in changes[1:]:
        table = moved(table, count)
        assert len(table) == SLOT_COUNT
        assert is_even(table, count)


@settings(max_examples=25)
@given(counts, counts)
def test_moves_the_fewest(before, after):
    """No fewer moves can make the table even, and none keeps a slot where it is."""
    table, moves = assign(before), resize(assign(before), after)
    owned = sorted(Counter(member for member in table if member < after).values(), reverse=True)
    share, spare = divmod(SLOT_COUNT, after)
    may_stay = sum(min(slots, share + (rank < spare)) for rank, slots in enumerate(owned))
    assert len(moves) == SLOT_COUNT - may_stay
    assert all(table[slot] != member for slot, member in moves.items())


@settings(max_examples=20)
@given(st.integers(), st.integers(1, 40), st.integers(1, 40))
def test_evens_out_any_table(seed, owners, count):
    """A table that an operator moved about, or with owners that are gone, becomes even too."""
    table = random.Random(seed).choices(range(owners), k=SLOT_COUNT)
    assert is_even(moved(table, count), count)


def test_growing_moves_slots_to_the_new_member_only():
    """From three to four, a quarter of the slots move, all of them to the new member."""
    moves = resize(assign(3), 4)
    assert set(moves.values()) == {3}
    assert len(moves) == SLOT_COUNT // 4


def test_shrinking_moves_the_slots_of_the_one_that_goes():
    """From four to three, the slots of the fourth move, and no others."""
    table = assign(4)
    assert set(resize(table, 3)) == {slot for slot, member in enumerate(table) if member == 3}


@pytest.mark.parametrize("count", [1, 3, MAX_MEMBERS])
def test_the_same_count_moves_nothing(count):
    """A table that is even already stays."""
    assert resize(assign(count), count) == {}


def roundings(size, weights):
    """Every way to make the shares of ``size`` slots whole by largest remainder."""
    total = sum(weights)
    whole, remainders = zip(*(divmod(size * weight, total) for weight in weights), strict=True)
    spare = size - sum(whole)
    for lucky in combinations(range(len(weights)), spare):
        others = [remainders[member] for member in range(len(weights)) if member not in lucky]
        if min((remainders[member] for member in lucky), default=total) >= max(others, default=0):
            yield [quota + (member in lucky) for member, quota in enumerate(whole)]


@given(tables, weights)
def test_weights_are_met_with_the_fewest_moves(table, weights):
    """The shares are those of a largest remainder, and no such shares can be had with fewer moves."""
    after, moves = moved(table, len(weights), weights), resize(table, len(weights), weights)
    owned, had = Counter(after), Counter(table)
    all_quotas = list(roundings(len(table), weights))
    assert [owned[member] for member in range(len(weights))] in all_quotas
    assert set(owned) <= set(range(len(weights)))
    # What is above its quota must leave, whichever way the shares are made whole.
    surpluses = [
        len(table) - sum(min(had[member], quota) for member, quota in enumerate(quotas)) for quotas in all_quotas
    ]
    assert len(moves) == min(surpluses)
    assert all(table[slot] != member for slot, member in moves.items())


@given(tables, weights)
def test_a_table_that_fits_its_weights_stays(table, weights):
    """Once a table fits, the same weights move nothing."""
    assert resize(moved(table, len(weights), weights), len(weights), weights) == {}


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(1, MAX_WEIGHT))
def test_equal_weights_are_no_weights(count, weight):
    """Any weight that all members have makes the table that they have without any."""
    assert assign(count, [weight] * count) == assign(count)
    assert resize(assign(3), count, [weight] * count) == resize(assign(3), count)


def test_a_member_of_twice_the_weight_owns_twice_the_slots():
    """The shares are to each other as the weights are."""
    owned = Counter(assign(3, [100, 200, 100]))
    assert owned == {0: SLOT_COUNT // 4, 1: SLOT_COUNT // 2, 2: SLOT_COUNT // 4}


def test_a_drained_member_loses_its_slots_and_no_other_does():
    """Weight 0 takes all slots of one member, evenly to the others, and its old weight takes as many back."""
    table = assign(4)
    drained = moved(table, 4, [100, 0, 100, 100])
    assert {slot for slot in range(SLOT_COUNT) if drained[slot] != table[slot]} == {
        slot for slot, member in enumerate(table) if member == 1
    }
    shares = Counter(drained)
    assert sorted(shares.values()) == [5461, 5461, 5462]
    assert set(resize(drained, 4).values()) == {1}
    assert len(resize(drained, 4)) == SLOT_COUNT // 4


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (2, [0, 0], "none of the 2 members may own a slot: all weights are 0"),
        (2, [1], "a group with a count of 2 takes as many weights, not 1"),
        (2, [1, -1], "the weight of member 1 is 0 to 1000, not -1"),
        (2, [1001, 1], "the weight of member 0 is 0 to 1000, not 1001"),
    ],
)
def test_weights_that_cannot_be(count, weights, message):
    """Weights of another count, out of range or all 0 are refused with what they are."""
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        resize([0, 1], count, weights)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        assign(count, weights)
