"""When slots move, and when they do not."""

from __future__ import annotations

import random
from itertools import cycle, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolb.bpf import shortening
from aiolb.bpf.rebalancing import FIRST_REST, LONGEST_REST, WRAP, Rebalancer
from aiolb.errors import ConfigurationError

steady = st.lists(st.integers(0, 20_000), min_size=4, max_size=16)


class Loop:
    """A group whose slots get packets, and a loop that does what the rebalancer says, every 10 seconds."""

    def __init__(self, slots, count, *, start=0, weights=None, **settings):
        self.slots, self.count, self.weights = list(slots), count, weights
        self.counters = [start % WRAP] * len(self.slots)
        self.rebalancer = Rebalancer(**settings)
        self.now = 1000.0
        self.moved = []  # in which interval which slots moved
        self.step()

    def step(self, packets=None, *, apply=True, seconds=10.0):
        """One interval in which each slot got so many packets."""
        for slot, more in enumerate(packets or ()):
            self.counters[slot] = (self.counters[slot] + more) % WRAP
        plan = self.rebalancer.step(self.now, self.slots, self.counters, self.count, self.weights)
        self.now += seconds
        if plan is not None and apply:
            assert plan.moves
            for slot, member in plan.moves.items():
                self.slots[slot] = member
        self.moved.append(set() if plan is None else set(plan.moves))
        return plan

    def held(self, packets):
        """What each member gets of these packets."""
        return [
            sum(more for more, owner in zip(packets, self.slots, strict=True) if owner == member)
            for member in range(self.count)
        ]


def poisson(rng, mean):
    """A number of packets as chance makes it; the normal distribution is near enough for large means."""
    if mean > 500:
        return max(round(rng.gauss(mean, mean**0.5)), 0)
    arrived, time = 0, rng.expovariate(1.0)
    while time < mean:
        arrived, time = arrived + 1, time + rng.expovariate(1.0)
    return arrived


def test_the_first_reading_moves_nothing():
    """Counters alone say nothing; the difference of two readings does."""
    loop = Loop([0, 0, 1, 1], 2, start=123)
    assert loop.moved == [set()]
    assert loop.rebalancer.loads == ()
    plan = loop.step([5000, 5000, 0, 0])
    assert len(plan.moves) == 1
    assert loop.held([5000, 5000, 0, 0]) == [5000, 5000]


def test_counters_wrap():
    """A counter that passed 2**32 between two readings grew by the little that it did."""
    loop = Loop([0, 0, 1, 1], 2, start=-100)
    loop.step([200, 300, 50, 0])
    assert loop.rebalancer.loads == (200, 300, 50, 0)


def test_loads_are_smoothed():
    """The loads are of an interval as long as the last, the last reading counting most."""
    loop = Loop([0, 1], 2)
    loop.step([100, 100])
    loop.step([400, 100])
    assert loop.rebalancer.loads == pytest.approx((300, 100))
    loop.now += 10  # an interval of 20 seconds
    loop.step([600, 200])
    assert loop.rebalancer.loads == pytest.approx((20 * (600 + 200 + 25) / (20 + 5 + 2.5), 200))


@settings(max_examples=25)
@given(
    steady, st.integers(0, 2**16), st.integers(1, 4), st.none() | st.integers(1, 3), st.sampled_from([1.02, 1.1, 1.5])
)
def test_steady_loads_converge(loads, seed, count, limit, bound):
    """With loads that stay the same every slot comes to rest, and no move follows, ever."""
    rng = random.Random(seed)
    loop = Loop([rng.randrange(count) for _ in loads], count, bound=bound, limit=limit)
    with pytest.MonkeyPatch.context() as patch:
        # Where the bound cannot be reached, the look for fewer moves is most of the time, in every step anew.
        patch.setattr(shortening, "PATIENCE", 200)
        for _ in range(20 * len(loads)):
            loop.step(loads)
            assert limit is None or len(loop.moved[-1]) <= limit
    assert not any(loop.moved[-5 * len(loads) :])


def test_steady_loads_are_even_at_once():
    """Where the bound can be reached, one plan does it, and it is the only one."""
    loop = Loop([0] * 12 + [1] * 4 + [2] * 4, 3)
    for _ in range(50):
        loop.step([1000] * 20)
    assert [len(moved) for moved in loop.moved if moved] == [5]
    assert max(loop.held([1000] * 20)) == 7000


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 3, 30, 300, 3000]), st.integers(2, 12))
def test_chance_moves_nothing(seed, mean, count):
    """Members that are even but for chance stay as they are, with few packets and with many."""
    rng = random.Random(seed)
    loop = Loop([slot % count for slot in range(4 * count)], count)
    for _ in range(60):
        loop.step([poisson(rng, mean) for _ in loop.slots])
    assert not any(loop.moved)


def test_too_few_packets_to_tell():
    """A handful of packets on one member alone is no reason to move anything; the same in thousands is."""
    few, many = Loop([0, 0, 1, 1], 2), Loop([0, 0, 1, 1], 2)
    assert few.step([4, 4, 1, 1]) is None
    assert many.step([4000, 4000, 1000, 1000]) is not None


def test_noise_does_not_swap_what_cannot_be_even():
    """Three equal slots on two members cannot be even; chance makes them no reason to change places."""
    rng = random.Random(1)
    loop = Loop([0, 0, 1], 2)
    for _ in range(300):
        loop.step([poisson(rng, 3000) for _ in range(3)])
    assert not any(loop.moved)


@settings(max_examples=10)
@given(steady, st.data(), st.integers(2, 4), st.integers(1, 20), st.sampled_from([1, 2, 5]))
def test_alternating_loads_move_each_slot_ever_more_rarely(loads, data, count, period, limit):
    """Between two moves of one slot twice as many intervals pass as before its last, so the moves are bounded."""
    other = data.draw(st.permutations(loads))
    loop = Loop([slot % count for slot in range(len(loads))], count, limit=limit)
    steps = 300
    for _, now in zip(range(steps), cycle([loads] * period + [other] * period), strict=False):
        loop.step(now)
    for slot in range(len(loads)):
        times = [step for step, moved in enumerate(loop.moved) if slot in moved]
        for turn, (first, second) in enumerate(pairwise(times)):
            assert second - first > min(FIRST_REST * 2**turn, LONGEST_REST)
        assert len(times) <= 6  # 8 + 16 + 32 + 64 + 128 intervals, and then 256 that do not fit any more


def test_a_plan_that_nobody_applied_rests_nothing():
    """Looking without touching changes nothing: the same plan comes again."""
    loop = Loop([0, 0, 0, 1], 2)
    first = loop.step([3000, 1000, 1000, 1000], apply=False)
    again = loop.step([3000, 1000, 1000, 1000], apply=False)
    assert first.moves == again.moves


def test_goes_on_with_the_table_it_is_given():
    """When somebody else moved slots, the plan is for the table that there is now."""
    loads = [2000, 2000, 2000, 2000]
    loop = Loop([0, 0, 1, 1], 2)
    assert loop.step(loads) is None
    loop.slots = [1, 1, 1, 1]
    assert len(loop.step(loads).moves) == 2
    assert loop.held(loads) == [4000, 4000]
    loop.slots, loop.count = [0, 1, 2, 2], 3
    assert loop.step([2000, 2000, 1000, 1000]) is None


def test_a_drained_member_is_emptied_though_nothing_is_uneven():
    """With weight 0 a member gives all its slots with load at once, and the others keep theirs."""
    loop = Loop([0, 1, 1, 2], 3, weights=[0, 100, 100])
    plan = loop.step([3, 2, 2, 0])
    assert plan.moves == {0: 2}
    assert loop.step([3, 2, 2, 0]) is None


def test_what_a_member_outside_of_the_group_has_moves_in():
    """A slot of a member that is gone is given to one that is there."""
    loop = Loop([0, 1, 7], 2)
    assert set(loop.step([10, 3, 5]).moves) == {2}
    assert loop.slots == [0, 1, 1]


def test_a_limit_takes_several_intervals():
    """With a limit an uneven table comes under the bound a few moves at a time, and then stays."""
    loads = [1000] * 20
    loop = Loop([0] * 20, 2, limit=3)
    for _ in range(40):
        loop.step(loads)
    assert [len(moved) for moved in loop.moved if moved] == [3, 3, 3]
    assert loop.held(loads) == [11_000, 9000]


def test_counters_of_another_group_start_afresh():
    """Counters that went back, or of another number of slots, are a first reading again."""
    loop = Loop([0, 0, 1, 1], 2, start=10**6)
    loop.step([10, 10, 10, 10])
    loop.counters = [0, 0, 0, 0]
    assert loop.step() is None
    assert loop.rebalancer.loads == ()
    assert loop.step([5000, 5000, 0, 0]) is not None


def test_a_clock_that_stands_still_is_no_interval():
    """A second reading at the same moment changes nothing, and its packets count in the next."""
    loop = Loop([0, 1], 2)
    loop.step([100, 100], seconds=0)
    assert loop.rebalancer.loads == (100, 100)
    assert loop.step([50, 50]) is None
    assert loop.rebalancer.loads == (100, 100)
    loop.step([50, 50])
    assert loop.rebalancer.loads == pytest.approx((100, 100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": 1.0}, "the bound is above 1.0 times the mean, not 1"),
        ({"limit": 0}, "the limit is 1 move or more, not 0"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    """A setting out of range is refused with its value."""
    with pytest.raises(ConfigurationError, match=message):
        Rebalancer(**arguments)


def test_counters_must_be_of_the_table():
    """As many counters as slots are needed."""
    with pytest.raises(ConfigurationError, match="there are counters of 1 slots, and 2 slots"):
        Rebalancer().step(0.0, [0, 1], [5], 2)
