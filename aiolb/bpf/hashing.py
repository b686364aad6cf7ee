"""Key to slot, and the order in which members are tried: the pure twin of balancer.c."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from aiolb.bpf.abi import MAX_NEIGHBOURS, MAX_TRIES, SLOT_COUNT

_MASK = (1 << 64) - 1


class Choice(NamedTuple):
    """Where a key goes: its first slot, and the member (None: nobody is alive)."""

    slot: int
    member: int | None


def slot_of(seed: int, key: bytes) -> int:
    """The slot of a key under a group's 128-bit seed."""
    return siphash13(seed, key) % SLOT_COUNT


def choose(
    seed: int,
    key: bytes,
    slots: Sequence[int],
    count: int,
    alive: Container[int],
    *,
    newest: int = 0,
) -> Choice:
    """The member that the kernel's program selects for a key (:meth:`aiolb.bpf.keys.Key.bytes_of`), given who is alive.

    ``slots`` is the slot table, ``count`` the group's number of members, and ``newest`` the one that joined last.
    """
    value = siphash13(seed, key)
    for member in _order_of_tries(value, slots, count, newest):
        if member in alive:
            return Choice(value % SLOT_COUNT, member)
    return Choice(value % SLOT_COUNT, None)


def _order_of_tries(value: int, slots: Sequence[int], count: int, newest: int) -> Iterator[int]:
    for _ in range(MAX_TRIES):
        yield slots[value % SLOT_COUNT]
        value = rehash(value)
    start = value & 0xFFFFFFFF
    for step in range(min(count, MAX_NEIGHBOURS)):
        yield ((start + step) & 0xFFFFFFFF) % count
    if newest < count:
        yield newest


def rehash(value: int) -> int:
    """One step of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def siphash13(seed: int, data: bytes) -> int:
    """SipHash-1-3 (Aumasson, Bernstein: SipHash, 2012) of ``data`` under a 128-bit key; a 64-bit integer."""
    low, high = seed & _MASK, seed >> 64
    state = (
        low ^ 0x736F6D6570736575,
        high ^ 0x646F72616E646F6D,
        low ^ 0x6C7967656E657261,
        high ^ 0x7465646279746573,
    )
    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 0xFF])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3 ^ word)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _sip_round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _MASK
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = (v2 + v3) & _MASK
    v3 = _rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK
