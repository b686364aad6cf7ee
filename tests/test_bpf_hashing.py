"""The hash twin: SipHash-1-3 against independent sources, keys, and the order of tries."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.bpf import hashing
from aiolb.bpf.abi import MAX_NEIGHBOURS, MAX_TRIES, SLOT_COUNT
from aiolb.bpf.keys import key_of

KEY = int.from_bytes(bytes(range(16)), "little")

ips = st.ip_addresses()


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes bytes otherwise")
def test_siphash13_is_that_of_python():
    """Under the key zero, SipHash-1-3 gives what Python's own hash(bytes) gives without a random seed."""
    generator = random.Random(3)
    texts = [generator.randbytes(length) for length in range(1, 65)]
    code = "import json, sys; print([hash(bytes.fromhex(text)) for text in json.load(sys.stdin)])"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([text.hex() for text in texts]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # hash() is signed, and never -1.
    assert [value % 2**64 for value in json.loads(child.stdout)] == [hashing.siphash13(0, text) for text in texts]


@pytest.mark.parametrize(
    ("length", "value"),
    [
        (0, 0xABAC0158050FC4DC),
        (3, 0x8BF80AB8E7DDF7FB),
        (4, 0xCF75576088D38328),
        (8, 0x369095118D299A8E),
        (15, 0xD320D86D2A519956),
        (16, 0xCC4FDD1A7D908B66),
    ],
)
def test_siphash13_vectors(length, value):
    """Vectors under the key 00 01 … 0f for the texts 00 01 02 …, from C that also gives the paper's SipHash-2-4 one."""
    assert hashing.siphash13(KEY, bytes(range(length))) == value


def test_siphash13_is_keyed_by_all_128_bits():
    """Every bit of the seed changes the hash."""
    text = bytes(range(16))
    assert len({hashing.siphash13(1 << bit, text) for bit in range(128)}) == 128


@pytest.mark.parametrize(
    ("value", "following"),
    [
        (0x0000000000000000, 0xE220A8397B1DCDAF),
        (0x9E3779B97F4A7C15, 0x6E789E6AA1B965F4),
        (0x3C6EF372FE94F82A, 0x06C45D188009454F),
    ],
)
def test_rehash_is_splitmix64(value, following):
    """The first three numbers of SplitMix64 from the state 0, which moves by a constant from each to the next."""
    assert hashing.rehash(value) == following


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=50, unique=True))
def test_rehash_loses_nothing(values):
    """Different hashes stay different: the step is a bijection."""
    assert len({hashing.rehash(value) for value in values}) == len(values)


def test_keys():
    """An IPv4 source is 4 bytes, mapped into IPv6 too; an IPv6 source is 16."""
    assert key_of(IPv4Address("127.1.2.3")) == bytes([127, 1, 2, 3])
    assert key_of(IPv6Address("::ffff:127.1.2.3")) == bytes([127, 1, 2, 3])
    assert key_of(IPv6Address("::127.1.2.3")) == bytes(12) + bytes([127, 1, 2, 3])
    assert key_of(IPv6Address("fd00::1")) == bytes([0xFD, *bytes(14), 1])


@given(ips, st.integers(0, 2**128 - 1))
def test_slots_are_in_the_table(ip, seed):
    """Whatever the seed, a source's slot is in the table."""
    assert 0 <= hashing.slot_of(seed, key_of(ip)) < SLOT_COUNT


@given(ips, st.integers(0, 2**128 - 1), st.integers(1, 40), st.data())
def test_choice(ip, seed, count, data):
    """Whoever is alive: the owner of the slot if it is, else somebody who is, and nobody only if nobody is."""
    slots = [slot % count for slot in range(SLOT_COUNT)]
    alive = data.draw(st.sets(st.integers(0, count - 1)))
    choice = hashing.choose(seed, key_of(ip), slots, count, alive)
    assert choice.slot == hashing.slot_of(seed, key_of(ip))
    owner = slots[choice.slot]
    assert choice.member == owner if owner in alive else choice.member in (alive or {None})


@given(ips, st.integers(0, 2**128 - 1), st.integers(2, 40), st.data())
def test_only_the_dead_move(ip, seed, count, data):
    """A source whose member lives does not move when others die."""
    slots = [slot % count for slot in range(SLOT_COUNT)]
    alive = data.draw(st.sets(st.integers(0, count - 1), min_size=2))
    before = hashing.choose(seed, key_of(ip), slots, count, alive).member
    dead = data.draw(st.sampled_from(sorted(alive - {before})))
    assert hashing.choose(seed, key_of(ip), slots, count, alive - {dead}).member == before


def test_looks_at_members_in_turn():
    """Behind the tries by hash come members in turn, from one that the hash names, and the newest last."""
    slots = [0] * SLOT_COUNT
    order = list(hashing._order_of_tries(7, slots, 5, newest=3))
    assert order[:MAX_TRIES] == [0] * MAX_TRIES
    *turn, newest = order[MAX_TRIES:]
    assert turn == [(turn[0] + step) % 5 for step in range(5)]
    assert newest == 3
    assert len(list(hashing._order_of_tries(7, slots, 1024, newest=0))) == MAX_TRIES + MAX_NEIGHBOURS + 1
