"""Addresses as text and back."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.address import (
    Address,
    as_text,
    canonical,
    parse_address,
    parse_ip,
    parse_network,
    split_host_port,
    to_send_to,
)
from aiolb.errors import AiolbError, ConfigurationError

ports = st.integers(0, 65535)


@given(st.ip_addresses(), ports)
def test_round_trip(ip, port):
    """An address written as text is read as the same address."""
    address = Address(str(canonical(ip)), port)
    assert parse_address(str(address)) == address
    assert address.ip == canonical(ip)


def test_several_as_text():
    """Several addresses are one line."""
    assert as_text(map(parse_address, ["127.0.0.1:9", "[::1]:9"])) == "127.0.0.1:9, [::1]:9"


@given(st.text())
def test_any_text_is_an_address_or_one_error(text):
    """Whatever is written, it is an address or a ConfigurationError, and nothing else."""
    try:
        address = parse_address(text)
    except ConfigurationError:
        return
    assert parse_address(str(address)) == address


@given(st.text(alphabet="[]:.%0123456789abcdef /", max_size=24))
def test_text_that_looks_like_an_address(text):
    """The same for text made of the characters of addresses."""
    try:
        address = parse_address(text)
    except ConfigurationError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000),
        ("127.0.0.1", "127.0.0.1", 10001),
        (":9000", "0.0.0.0", 9000),
        ("[::]:2055", "::", 2055),
        ("[::1]", "::1", 10001),
        (" 127.0.0.1:9 ", "127.0.0.1", 9),
        ("[fd00:0:0::0001]:9", "fd00::1", 9),
        ("[::ffff:127.0.0.1]:9", "127.0.0.1", 9),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("127.0.0.1:00009", "127.0.0.1", 9),
    ],
)
def test_what_is_read(text, host, port):
    """The ways to write an address."""
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("127.0.0.1:65536", "'65536' in '127.0.0.1:65536' is no port"),
        ("127.0.0.1:-1", "'-1' in '127.0.0.1:-1' is no port"),
        ("127.0.0.1:", "'' in '127.0.0.1:' is no port"),
        ("127.0.0.1:x", "'x' in '127.0.0.1:x' is no port"),
        ("127.0.0.1:٣", "is no port"),
        ("[::1", "'[::1' is no address"),
        ("[]:9", "'[]:9' is no address"),
        ("[::1]9", "'[::1]9' is no address"),
        ("256.0.0.1:9", "'256.0.0.1' in '256.0.0.1:9' is no IP address"),
        ("localhost:9", "'localhost' in 'localhost:9' is no IP address"),
        ("1:2:3", "'1:2:3' is no address"),
        ("::1", "'::1' is no address"),
        ("::1:5", "'::1:5' is no address"),
        ("", "'' is no address"),
        ("9000", "'9000' is no address"),
    ],
)
def test_what_is_refused(text, part):
    """What is no address is refused with the text in the message, and with a hint."""
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert part in str(caught.value)
    assert caught.value.hint
    assert isinstance(caught.value, AiolbError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("fd00::5", "write an IPv6 address in brackets, as [fd00::5]:10001"),
        ("tcp:127.0.0.1:9", "write HOST:PORT, and an IPv6 address in brackets, as [::1]:10001"),
    ],
)
def test_too_many_colons(text, hint):
    """What is put into brackets by the hint is an IPv6 address."""
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("host", "to"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.1", "192.0.2.1"), ("localhost", "localhost")],
)
def test_where_to_send_to(host, to):
    """What is bound everywhere is found on loopback, everything else where it is."""
    assert to_send_to(host) == to


def test_a_port_may_be_required():
    """Without a default, the port must be there."""
    assert split_host_port("name:9", default_port=None) == ("name", 9)
    with pytest.raises(ConfigurationError, match="'name' has no port"):
        split_host_port("name", default_port=None)


@given(st.ip_addresses(v=4))
def test_mapped_addresses_are_v4(ip):
    """An IPv4-mapped IPv6 address is its IPv4 address."""
    mapped = IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed)
    assert canonical(mapped) == canonical(ip) == ip
    assert parse_ip(str(mapped)) == ip


def test_a_wrong_ip_without_its_context():
    """The message names the text once where there is no more of it."""
    with pytest.raises(ConfigurationError, match=r"^'x' is no IP address") as caught:
        parse_ip("x", within="x")
    assert caught.value.hint == "e.g. 127.0.0.1:10001 or [::1]:10001"


def test_a_wrong_ip_where_no_port_is_wanted():
    """The hint shows an address without a port where one is asked for."""
    with pytest.raises(ConfigurationError, match=r"^'x' is no IP address") as caught:
        parse_ip("x")
    assert caught.value.hint == "e.g. 127.0.0.1 or ::1"


@pytest.mark.parametrize(
    ("address", "family"), [(Address("127.0.0.1", 1), socket.AF_INET), (Address("::1", 1), socket.AF_INET6)]
)
def test_families(address, family):
    """The socket family follows from the address."""
    assert address.family == family
    assert address.with_port(2) == Address(address.host, 2)


def test_networks():
    """A CIDR is read strictly: host bits must be zero."""
    assert parse_network("127.1.0.0/16") == ip_network("127.1.0.0/16")
    assert parse_network("fd00::/120") == ip_network("fd00::/120")
    assert parse_network("127.0.0.1") == ip_network("127.0.0.1/32")
    for text in ("127.1.0.1/16", "127.1.0.0/33", "x", ""):
        with pytest.raises(ConfigurationError, match="is no network"):
            parse_network(text)


def test_order():
    """Addresses can be sorted, and are equal by value."""
    assert sorted([Address("b", 1), Address("a", 2), Address("a", 1)]) == [
        Address("a", 1),
        Address("a", 2),
        Address("b", 1),
    ]
    assert IPv4Address("127.0.0.1") == Address("127.0.0.1", 5).ip
