"""The classic program as data, and its twin; pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.bpf import classic
from aiolb.bpf.keys import Key
from aiolb.errors import ConfigurationError

KEYS = st.sampled_from(["source", "flow", "random", "prefix/24,64", "prefix/1,127"]).map(Key.parse)


@given(st.ip_addresses(), st.integers(1, 1024), st.integers(0, 2**32 - 1))
def test_every_source_has_a_socket(ip, count, seed):
    """The number of the socket is below the count."""
    assert 0 <= classic.choose(ip, count, seed) < count


@given(st.ip_addresses(v=4), st.integers(0, 2**32 - 1))
def test_mapped_sources_are_v4_sources(ip, seed):
    """An IPv4-mapped IPv6 address counts as its IPv4 address."""
    mapped = IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed)
    assert classic.choose(mapped, 64, seed) == classic.choose(ip, 64, seed)


def test_the_seed_decides():
    """Another seed chooses otherwise."""
    sources = [IPv4Address(0x7F000001 + number) for number in range(100)]
    assert [classic.choose(ip, 64, 1) for ip in sources] != [classic.choose(ip, 64, 2) for ip in sources]


@given(st.integers(1, 1024), st.integers(0, 2**32 - 1), KEYS)
def test_the_program_ends_and_jumps_inside(count, seed, key):
    """Every jump of the program lands inside it, and its last instruction returns."""
    code = list(struct.iter_unpack("=HBBI", classic.program(count, seed, key)))
    assert code[-1][0] == 0x16
    for at, (opcode, if_true, if_false, constant) in enumerate(code):
        if opcode == 0x15:
            assert at + 1 + max(if_true, if_false) < len(code)
        if opcode == 0x05:
            assert at + 1 + constant < len(code)


@given(st.ip_addresses(), st.integers(1, 1024), st.integers(0, 2**32 - 1), KEYS, st.integers(0, 65535))
def test_every_key_has_a_socket(ip, count, seed, key, port):
    """The number of the socket is below the count; a random key tells none."""
    if str(key) == "random":
        with pytest.raises(ConfigurationError, match="where it goes: the key is random"):
            classic.choose(ip, count, seed, key, port)
    else:
        assert 0 <= classic.choose(ip, count, seed, key, port) < count


def test_the_key_decides():
    """Sources of one prefix share a socket, flows of one source do not."""
    sources = [IPv4Address(0xC0000200 + number) for number in range(256)]
    prefix, flow = Key.parse("prefix/24,64"), Key.parse("flow")
    assert len({classic.choose(ip, 64, 1, prefix) for ip in sources}) == 1
    assert len({classic.choose(sources[0], 64, 1, flow, port) for port in range(1_000)}) == 64
