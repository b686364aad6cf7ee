"""Keys as text, as the program's settings, and as the bytes that are hashed; pure."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.bpf.abi import KEY_CUSTOM, KEY_FLOW, KEY_RANDOM, KEY_SOURCE, Config
from aiolb.bpf.keys import Key, custom_key, key_of
from aiolb.errors import ConfigurationError

EMPTY = Config.unpack(bytes(Config.STRUCT.size))
KEYS = st.one_of(
    st.builds(Key, st.just(KEY_SOURCE), st.integers(1, 32), st.integers(1, 128)),
    st.sampled_from([Key(KEY_FLOW), Key(KEY_RANDOM)]),
)
DIGESTS = st.integers(0, (1 << 64) - 1)
PORTS = st.integers(0, 65535)


@given(KEYS)
def test_text_and_back(key):
    """What a key says of itself is read as the same key."""
    assert Key.parse(str(key)) == key


@given(st.one_of(KEYS, st.builds(Key, st.just(KEY_CUSTOM), digest=DIGESTS)))
def test_settings_and_back(key):
    """The program's settings give the same key, and say so in bytes of the map too."""
    config = replace(EMPTY, **key.settings)
    assert Key.of(config) == key
    assert Key.of(Config.unpack(config.pack())) == key


@given(st.text())
def test_any_text(text):
    """Any text is a key, whose text is read again, or is refused with one error."""
    try:
        key = Key.parse(text)
    except ConfigurationError as error:
        assert repr(text) in str(error)  # noqa: PT017 - what is refused is not known before
    else:
        assert Key.parse(str(key)) == key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no key"),
        ("Source", "'Source' is no key"),
        ("file", "'file' is no key"),
        ("prefix", "'prefix' is no key"),
        ("prefix/", "'prefix/' is no key"),
        ("prefix/24", "'prefix/24' is no key"),
        ("prefix/24,64,1", "'prefix/24,64,1' is no key"),
        ("prefix/-1,64", "'prefix/-1,64' is no key"),
        ("prefix/²,64", "'prefix/²,64' is no key"),
        ("prefix/0,64", "'prefix/0,64' has no such prefixes"),
        ("prefix/33,64", "'prefix/33,64' has no such prefixes"),
        ("prefix/24,129", "'prefix/24,129' has no such prefixes"),
    ],
)
def test_no_key(text, message):
    """What is no key is refused, with what there is as a hint."""
    with pytest.raises(ConfigurationError) as caught:
        Key.parse(text)
    assert str(caught.value).startswith(message)
    assert "prefix/" in caught.value.hint


@given(st.integers(1, 32), st.ip_addresses(v=4), PORTS)
def test_prefix_of_v4(bits, ip, port):
    """The bytes are those of the network, whatever the port; a mapped address is its IPv4 address."""
    key = Key(KEY_SOURCE, bits, 128)
    expected = ip_network((ip, bits), strict=False).network_address.packed
    mapped = IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed)
    assert key.bytes_of(ip) == key.bytes_of(ip, port) == key.bytes_of(mapped) == expected


@given(st.integers(1, 128), st.ip_addresses(v=6, network=IPv6Network("fd00::/8")))
def test_prefix_of_v6(bits, ip):
    """The bytes are those of the network."""
    expected = ip_network((ip, bits), strict=False).network_address.packed
    assert Key(KEY_SOURCE, 32, bits).bytes_of(ip) == expected


@given(st.ip_addresses(), PORTS)
def test_flow(ip, port):
    """The bytes are the source's and the port's; without a port there are none."""
    assert Key(KEY_FLOW).bytes_of(ip, port) == key_of(ip) + port.to_bytes(2, "big")
    assert Key(KEY_FLOW).bytes_of(ip) is None


@given(st.ip_addresses(), PORTS)
def test_what_the_source_does_not_tell(ip, port):
    """A random key and one of a key file are not the source's."""
    assert Key(KEY_RANDOM).bytes_of(ip, port) is None
    assert Key(KEY_CUSTOM, digest=1).bytes_of(ip, port) is None


def test_custom_key():
    """A key file's two numbers are hashed as the machine keeps them, the low one first."""
    assert custom_key(1, 2) == b"\1" + bytes(7) + b"\2" + bytes(7)


def test_known_bytes():
    """Some keys written out."""
    assert Key.parse("prefix/24,64").bytes_of(IPv4Address("192.0.2.77")) == bytes([192, 0, 2, 0])
    assert Key.parse("flow").bytes_of(IPv4Address("192.0.2.77"), 0x1234) == bytes([192, 0, 2, 77, 0x12, 0x34])
    assert str(Key(KEY_CUSTOM, digest=0xABC)) == "file 0000000000000abc"


@pytest.mark.parametrize(
    ("key", "hint"), [("flow", "name the sender's port too: ADDR:PORT"), ("random", "only the slots are known")]
)
def test_a_source_that_does_not_tell(key, hint):
    """Where a source alone does not tell its place, that is said in one way, with what helps."""
    with pytest.raises(
        ConfigurationError, match=f"a source alone does not tell where it goes: the key is {key}"
    ) as found:
        Key.parse(key).told_by(IPv4Address("127.0.0.1"))
    assert found.value.hint.startswith(hint)
    assert Key.parse("flow").told_by(IPv4Address("127.0.0.1"), 258) == b"\x7f\0\0\1\1\2"
