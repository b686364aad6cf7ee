"""What follows from the death of a worker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, repeat
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.errors import ConfigurationError
from aiolb.restarts import AT_ONCE, Restart, RestartPolicy, Restarts

DEFAULT = RestartPolicy()

eighths = st.integers(1, 800).map(lambda n: n / 8)
"""Seconds that floats add without an error."""

policies = st.builds(
    lambda limit, window, first, factor, growth, settle: RestartPolicy(
        limit, window, first, factor, first * growth, settle
    ),
    st.integers(0, 8),
    eighths,
    eighths,
    st.sampled_from([1, 1.5, 2, 4]),
    st.integers(1, 100),
    eighths,
)


class Shortest(Random):
    """The randomness that makes every back-off as short as it can be."""

    def random(self):
        """The lower end, always."""
        return 0.0


@dataclass(frozen=True)
class Life:
    """What a worker does: it is ready ``startup`` seconds after its start (or never), and dies ``up`` later."""

    startup: float | None
    up: float


lives = st.lists(
    st.builds(Life, st.none() | st.sampled_from([0.0, 0.25, 3.0]), st.sampled_from([0.0, 0.125, 1.0]) | eighths),
    max_size=60,
)


@dataclass(frozen=True)
class Death:
    """What happened: when, what it was answered with, and whether the member was out until then."""

    time: float
    restart: Restart
    was_out: bool

    @property
    def start(self):
        """When the next worker is started."""
        return self.time + self.restart.delay


def simulate(restarts: Restarts, workers: list[Life], now: float = 0.0, *, prompt: bool = True) -> list[Death]:
    """Let these workers live and die one after the other, the supervisor asking in time or not at all."""
    deaths = []
    for life in workers:
        died_at = now + (life.startup or 0.0) + life.up
        if life.startup is not None:
            restarts.ready(now + life.startup)
            if prompt and restarts._settled_at is not None and restarts._settled_at <= died_at:
                assert restarts.settled(restarts._settled_at)
        was_out = restarts.out
        deaths.append(Death(died_at, restarts.died(died_at), was_out))
        now = deaths[-1].start
    return deaths


def most_with_back_off(policy: RestartPolicy, seconds: float) -> int:
    """How many deaths in a half-open time can be answered with a back-off.

    They come in runs; a run ends when a worker settles. Within a run, death k + 1 is at least half of ceiling k
    after death k; the next run begins at least that and the time to settle after the last death of this one. To
    begin with the first death of a run is best, since the ceilings only grow. Starts are no denser than deaths, for
    the same reason. What is left is how long the runs are: try all.
    """
    ceilings = accumulate(repeat(None), lambda c, _: policy.ceiling_after(c), initial=policy.first)
    offsets = [0.0]
    while offsets[-1] < seconds:
        offsets.append(offsets[-1] + next(ceilings) / 2)
    found: dict[float, int] = {}

    def most(left: float) -> int:
        if left <= 0:
            return 0
        if left not in found:
            found[left] = max(
                length + most(left - offsets[length] - policy.settle)
                for length in range(1, len(offsets))
                if offsets[length - 1] < left
            )
        return found[left]

    return most(seconds)


def most_restarts(policy: RestartPolicy, seconds: float) -> int:
    """The bound on restarts in a half-open time: those at once, as often as the window fits, and the others."""
    return policy.limit * math.ceil(seconds / policy.window) + most_with_back_off(policy, seconds)


def busiest(times: list[float], seconds: float) -> int:
    """The most of these times in any half-open time of so many seconds."""
    return max((sum(first <= time < first + seconds for time in times) for first in times), default=0)


# Never busy


@given(policies, lives, st.randoms(use_true_random=False), st.booleans())
def test_restarts_are_bounded(policy, workers, rng, prompt):
    """However the workers time their deaths, there are no more restarts in any time than the bound."""
    deaths = simulate(Restarts(policy, rng), workers, prompt=prompt)
    seconds = min(policy.window, 4 * policy.first + policy.settle)
    # The simulated times are sums of floats; the tiny slack is theirs.
    measured = seconds * (1 - 1e-9)
    assert busiest([death.time for death in deaths], measured) <= most_restarts(policy, seconds)
    assert busiest([death.start for death in deaths], measured) <= most_restarts(policy, seconds)


@given(lives, st.randoms(use_true_random=False))
def test_at_most_21_restarts_in_a_minute_with_the_defaults(workers, rng):
    """The number in the documentation of the policy is the bound of the default one."""
    assert most_with_back_off(DEFAULT, 60) == 16
    assert most_restarts(DEFAULT, 60) == 21
    deaths = simulate(Restarts(DEFAULT, rng), workers)
    assert busiest([death.start for death in deaths], 60 * (1 - 1e-9)) <= 21


def test_the_bound_can_be_reached():
    """Workers that die three times and then just settle are restarted 21 times in the first minute."""
    at_once = Life(0.0, 0.0)
    run = [at_once] * 3 + [Life(0.0, 10.0)]
    deaths = simulate(Restarts(DEFAULT, Shortest()), [at_once] * 6 + run * 4)
    assert [death.time for death in deaths if death.time < 60] == [
        *[0.0] * 6, 0.5, 1.5, 3.5,
        17.5, 18.0, 19.0, 21.0,
        35.0, 35.5, 36.5, 38.5,
        52.5, 53.0, 54.0, 56.0,
    ]  # fmt: skip


def test_a_worker_that_never_settles_backs_off_to_the_longest():
    """With the defaults an hour of dying at once takes at most 130 restarts, the last ones 30 seconds apart."""
    deaths = simulate(Restarts(DEFAULT, Shortest()), [Life(None, 0.0)] * 200)
    assert [death.restart.delay for death in deaths[:13]] == [*[0] * 5, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert sum(death.time < 3600 for death in deaths) == 130


# The back-off


@given(policies, lives, st.randoms(use_true_random=False))
def test_delays_are_in_the_upper_half_of_their_ceiling(policy, workers, rng):
    """Back-off k of a run lies between half of its ceiling and the ceiling, and none is above the longest."""
    run = 0
    for death in simulate(Restarts(policy, rng), workers):
        run = 0 if not death.restart.out else run + 1 if death.was_out else 1
        if run:
            ceiling = min(policy.first * policy.factor ** (run - 1), policy.longest)
            assert ceiling / 2 * (1 - 1e-12) <= death.restart.delay <= ceiling * (1 + 1e-12)
            assert policy.first / 2 <= death.restart.delay <= policy.longest
        else:
            assert death.restart == AT_ONCE


@given(st.integers(0, 2**32))
def test_the_jitter_comes_from_the_given_randomness(seed):
    """The same seed gives the same delays, and members do not retry in step."""
    workers = [Life(None, 0.0)] * 9
    first, again, other = (simulate(Restarts(DEFAULT, Random(s)), workers) for s in (seed, seed, seed + 1))
    assert first == again
    assert first != other


# At once


@given(policies, lives, st.randoms(use_true_random=False))
def test_a_member_is_flapping_when_more_than_the_limit_died_within_the_window(policy, workers, rng):
    """A member in the group is taken out by exactly those deaths, and any other is answered at once."""
    times = []
    for death in simulate(Restarts(policy, rng), workers):
        times.append(death.time)
        flapping = sum(death.time - time < policy.window for time in times) > policy.limit
        assert death.restart.out == (death.was_out or flapping)
        assert (death.restart.delay == 0) == (not death.restart.out)


@given(policies.filter(lambda policy: policy.limit), st.lists(eighths, max_size=60), st.randoms())
def test_a_healthy_member_restarts_at_once(policy, ups, rng):
    """Workers that live for a window's fair share never make their member leave the group."""
    workers = [Life(0.0, policy.window / policy.limit + up) for up in ups]
    assert all(death.restart == AT_ONCE for death in simulate(Restarts(policy, rng), workers))


def test_a_death_counts_for_the_window_and_no_longer():
    """The first of six deaths no longer counts at the moment at which the window is over."""
    early, late = Restarts(DEFAULT, Random(1)), Restarts(DEFAULT, Random(1))
    for restarts in (early, late):
        assert [restarts.died(now) for now in range(5)] == [AT_ONCE] * 5
    assert early.died(59.875).out
    assert late.died(60.0) == AT_ONCE


def test_without_patience_every_death_backs_off():
    """A limit of 0 takes a member out at the first death."""
    assert Restarts(RestartPolicy(limit=0), Shortest()).died(7.0) == Restart(0.5, out=True)


# Back to the group


def flapping(policy: RestartPolicy = DEFAULT, now: float = 0.0) -> Restarts:
    """A member that has just been taken out."""
    restarts = Restarts(policy, Shortest())
    while not restarts.died(now).out:
        pass
    return restarts


@given(policies, lives, st.randoms(use_true_random=False))
def test_any_member_returns_to_the_group(policy, workers, rng):
    """After whatever happened, a worker that stays up is put back once, and after the window all is forgotten."""
    restarts = Restarts(policy, rng)
    now = max((death.start for death in simulate(restarts, workers)), default=0.0)
    was_out = restarts.out
    restarts.ready(now)
    assert restarts.settled(now + policy.settle) == was_out
    assert not restarts.settled(now + policy.settle)
    assert not restarts.out
    assert restarts._settled_at is None
    assert restarts.died(now + policy.settle + 2 * policy.window).out == (policy.limit == 0)


def test_put_back_when_settled_and_not_before():
    """The time to settle starts when the worker is ready, and is over 10 seconds later."""
    restarts = flapping()
    assert restarts.out
    assert restarts._settled_at is None
    assert not restarts.settled(1000.0)
    restarts.ready(1000.0)
    assert restarts._settled_at == 1010.0
    assert not restarts.settled(1009.875)
    assert restarts.out
    assert restarts.settled(1010.0)
    assert not restarts.out


def test_the_back_off_starts_anew_only_after_settling():
    """A worker that dies just before it settled makes the back-off grow, one that settled does not."""
    restarts = flapping()
    restarts.ready(1.0)
    assert restarts.died(10.875) == Restart(1.0, out=True)
    restarts.ready(12.0)
    assert restarts.settled(22.0)
    assert restarts.died(22.0) == Restart(0.5, out=True)


def test_a_late_question_makes_no_difference():
    """A worker that stayed up has settled, even if it died before the supervisor came to ask."""
    restarts = flapping()
    restarts.ready(1.0)
    assert restarts.died(11.0) == Restart(0.5, out=True)
    restarts.ready(12.0)
    assert restarts.died(100.0) == AT_ONCE
    assert not restarts.out


def test_a_member_that_is_not_out_has_nothing_to_settle():
    """The workers of a healthy member come and go without a clock."""
    restarts = Restarts(DEFAULT, Random(1))
    restarts.ready(0.0)
    assert restarts._settled_at is None
    assert not restarts.settled(1000.0)


# By order


def test_a_stop_by_order_is_no_death():
    """However often workers are stopped by order, the next death is answered at once."""
    restarts = Restarts(DEFAULT, Random(1))
    for now in range(100):
        restarts.ready(now)
    assert [restarts.died(100.0) for _ in range(5)] == [AT_ONCE] * 5


def test_a_replacement_has_to_settle_itself():
    """When a new worker takes over from one that had not settled, the time to settle starts anew."""
    restarts = flapping()
    restarts.ready(1.0)
    restarts.ready(9.0)
    assert not restarts.settled(11.0)
    assert restarts.settled(19.0)


# The settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": -1}, "the limit is 0 to 1000 deaths, not -1"),
        ({"limit": 1001}, "the limit is 0 to 1000 deaths, not 1001"),
        ({"window": 0}, "the window of the limit is above 0 and at most 86,400 seconds, not 0"),
        ({"window": math.nan}, "the window of the limit is above 0 and at most 86,400 seconds, not nan"),
        ({"first": -1}, "the first back-off is above 0 and at most 86,400 seconds, not -1"),
        ({"longest": math.inf}, "the longest back-off is above 0 and at most 86,400 seconds, not inf"),
        ({"settle": 86_401}, "the time to settle is above 0 and at most 86,400 seconds, not 86401"),
        ({"factor": 0.5}, "a back-off grows by a factor of 1 or more, not 0.5"),
        ({"factor": math.inf}, "a back-off grows by a factor of 1 or more, not inf"),
        ({"factor": math.nan}, "a back-off grows by a factor of 1 or more, not nan"),
        ({"first": 90}, "the longest back-off of 60 s is shorter than the first of 90 s"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    """A policy that cannot work is a configuration error that names the value."""
    with pytest.raises(ConfigurationError) as caught:
        RestartPolicy(**settings)
    assert str(caught.value) == message


def test_a_huge_factor_is_the_longest_at_once():
    """No growth takes the ceiling past the longest, or out of what floats can hold."""
    restarts = Restarts(RestartPolicy(limit=0, factor=1e308), Shortest())
    assert [restarts.died(0.0).delay for _ in range(4)] == [0.5, 30, 30, 30]
