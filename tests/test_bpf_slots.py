"""The slot table: even, whole, and moved as little as possible."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolb.bpf.abi import MAX_MEMBERS, SLOT_COUNT
from aiolb.bpf.slots import assign, resize

counts = st.integers(1, MAX_MEMBERS)


def moved(table, count):
    """The table after a change of the member count."""
    moves = resize(table, count)
    return [moves.get(slot, member) for slot, member in enumerate(table)]


def is_even(table, count):
    """Whether every member owns its share, give or take one."""
    owned = Counter(table)
    shares = [owned[member] for member in range(count)]
    return set(owned) <= set(range(count)) and max(shares) - min(shares) <= 1


@given(counts)
def test_a_new_table_is_even(count):
    """Every slot has an owner, and every member as many slots as the others, give or take one."""
    table = assign(count)
    assert len(table) == SLOT_COUNT
    assert is_even(table, count)


@settings(max_examples=40)
@given(st.lists(counts, min_size=2, max_size=5))
def test_any_changes_keep_it_even(changes):
    """After whatever changes of the count, every slot has an owner and the shares are even."""
    table = assign(changes[0])
    for count in changes[1:]:
        table = moved(table, count)
        assert len(table) == SLOT_COUNT
        assert is_even(table, count)


@settings(max_examples=50)
@given(counts, counts)
def test_moves_the_fewest(before, after):
    """No fewer moves can make the table even, and none keeps a slot where it is."""
    table, moves = assign(before), resize(assign(before), after)
    owned = sorted(Counter(member for member in table if member < after).values(), reverse=True)
    share, spare = divmod(SLOT_COUNT, after)
    may_stay = sum(min(slots, share + (rank < spare)) for rank, slots in enumerate(owned))
    assert len(moves) == SLOT_COUNT - may_stay
    assert all(table[slot] != member for slot, member in moves.items())


@settings(max_examples=40)
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
