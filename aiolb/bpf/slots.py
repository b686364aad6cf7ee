"""Which member owns which slot; pure. Members own what their weights say, and a change moves the fewest slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice

from aiolb.bpf.abi import DEFAULT_WEIGHT, SLOT_COUNT
from aiolb.errors import ConfigurationError

MAX_WEIGHT = 1000
"""The largest weight; 0 is the smallest, and drains the member."""


def weights_of(count: int, weights: Sequence[int] | None = None) -> tuple[int, ...]:
    """The weights of all members, checked: ``weights``, or DEFAULT_WEIGHT each.

    Raises ConfigurationError when they are not one per member, when one is not 0 … MAX_WEIGHT, and when all are 0.
    """
    if weights is None:
        weights = [DEFAULT_WEIGHT] * count
    if len(weights) != count:
        raise ConfigurationError(f"a group with a count of {count} takes as many weights, not {len(weights)}")
    for member, weight in enumerate(weights):
        if not 0 <= weight <= MAX_WEIGHT:
            raise ConfigurationError(f"the weight of member {member} is 0 to {MAX_WEIGHT}, not {weight}")
    if not any(weights):
        raise ConfigurationError(
            f"none of the {count} members may own a slot: all weights are 0",
            hint="give one member a weight above 0; those with 0 are drained",
        )
    return tuple(weights)


def assign(count: int, weights: Sequence[int] | None = None) -> list[int]:
    """The slot table of a new group: every member owns its share of SLOT_COUNT slots, give or take one.

    ``weights`` are those of :func:`resize`, which says what a share is. Raises ConfigurationError.
    """
    dealt = list(islice(cycle(range(count)), SLOT_COUNT))
    for slot, member in resize(dealt, count, weights).items():
        dealt[slot] = member
    return dealt


def resize(slots: Sequence[int], count: int, weights: Sequence[int] | None = None) -> dict[int, int]:
    """The moves (slot: new member) that make a table fit ``count`` members with these weights.

    A member's share is to all slots what its weight (0 … MAX_WEIGHT, DEFAULT_WEIGHT where none are given) is to the
    sum of all. Shares are made whole by largest remainder, so each member owns its share give or take one, and one of
    weight 0 owns nothing; where remainders are equal, the slot goes to who owns most above its whole share. Only what
    a removed member owned, and what a member owns above its share, moves: no fewer moves lead to such a table.
    Raises ConfigurationError.
    """
    room = _quotas(slots, weights_of(count, weights))
    homeless = []
    for slot, member in enumerate(slots):
        if member < count and room[member]:
            room[member] -= 1
        else:
            homeless.append(slot)
    takers = [member for member, left in enumerate(room) for _ in range(left)]
    return dict(zip(homeless, takers, strict=True))


def _quotas(slots: Sequence[int], weights: Sequence[int]) -> list[int]:
    """How many slots each member is to own; equal remainders go to those who own most, so that fewest move."""
    total = sum(weights)
    shares = [divmod(len(slots) * weight, total) for weight in weights]
    quotas = [whole for whole, _ in shares]
    owned = Counter(slots)
    # Of members with equal remainders, one that owns more than its whole share keeps a slot by getting a spare one.
    by_claim = sorted(
        range(len(weights)), key=lambda member: (-shares[member][1], quotas[member] - owned[member], member)
    )
    for member in by_claim[: len(slots) - sum(quotas)]:
        quotas[member] += 1
    return quotas
