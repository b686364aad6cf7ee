"""Frames of each link type give their datagram; all others give the reason why they have none."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import captures
import pytest
from captures import ethernet, ipv4, ipv6, udp
from hypothesis import given
from hypothesis import strategies as st

from aiolb import frames
from aiolb.frames import Datagram, datagram_of

V4 = Datagram(ip_address("10.0.0.1").packed, 2055, b"payload")
V6 = Datagram(ip_address("2001:db8::1").packed, 2055, b"payload")
FRAGMENT_HEADER = "!BBHI"


@pytest.mark.parametrize(
    ("link", "wrap"),
    [
        (captures.ETHERNET, ethernet),
        (captures.SLL, captures.sll),
        (captures.SLL2, captures.sll2),
        (captures.RAW, bytes),
        (12, bytes),
        (captures.NULL, lambda packet: struct.pack("<I", 2 if packet[0] >> 4 == 4 else 10) + packet),
        (captures.NULL, lambda packet: struct.pack(">I", 2 if packet[0] >> 4 == 4 else 30) + packet),
        (captures.LOOP, lambda packet: struct.pack(">I", 2 if packet[0] >> 4 == 4 else 24) + packet),
    ],
)
def test_link_types(link, wrap):
    """Each link type that is understood carries IPv4 and IPv6."""
    assert datagram_of(link, wrap(ipv4())) == V4
    assert datagram_of(link, wrap(ipv6())) == V6


def test_link_types_of_one_ip_version():
    """Raw IPv4 and raw IPv6 have link types of their own."""
    assert (datagram_of(captures.IPV4, ipv4()), datagram_of(captures.IPV6, ipv6())) == (V4, V6)


@pytest.mark.parametrize("tags", [[(0x8100, 5)], [(0x88A8, 7), (0x8100, 5)], [(0x8100, 7), (0x8100, 5)]])
def test_vlan_tags(tags):
    """One VLAN tag or two are passed over, on Ethernet and in a cooked frame."""
    for packet, wanted in ((ipv4(), V4), (ipv6(), V6)):
        frame = ethernet(packet, tags=tags)
        assert datagram_of(captures.ETHERNET, frame) == wanted
        assert datagram_of(captures.SLL, bytes(14) + frame[12:]) == wanted
        assert datagram_of(captures.SLL2, frame[12:14] + bytes(18) + frame[14:]) == wanted


def test_padding_is_no_payload():
    """What Ethernet adds to reach its shortest frame, or after it, belongs to no datagram."""
    short = ipv4(data=udp(b"x"))
    assert datagram_of(captures.ETHERNET, ethernet(short) + bytes(17)).payload == b"x"
    assert datagram_of(captures.RAW, ipv6(data=udp(b"x") + b"tail", length=13)).payload == b"x"


def test_a_payload_may_be_empty():
    """A datagram without payload is one."""
    assert datagram_of(captures.RAW, ipv4(data=udp(b""))).payload == b""


def test_ip_options_are_passed_over():
    """The header of an IPv4 packet may be longer."""
    assert datagram_of(captures.RAW, ipv4(options=b"\x01" * 8)) == V4


def test_extension_headers_are_passed_over():
    """Hop-by-hop and destination options stand before UDP."""
    options = bytes([60, 0, 1, 4, 0, 0, 0, 0]) + bytes([17, 0, 1, 4, 0, 0, 0, 0])
    assert datagram_of(captures.RAW, ipv6(data=options + udp(), following=0)) == V6


def test_mapped_addresses_count_as_ipv4():
    """An IPv4-mapped source is the IPv4 one."""
    assert datagram_of(captures.RAW, ipv6("::ffff:10.0.0.1")) == V4


def test_a_jumbogram_says_nothing_of_its_length():
    """A UDP length of 0 means all that the packet has."""
    assert datagram_of(captures.RAW, ipv6(data=udp(length=0))) == V6


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ethernet(bytes(28), kind=0x0806), frames.NOT_IP),
        (ethernet(bytes(40), kind=40), frames.NOT_IP),
        (ethernet(ipv4(protocol=captures.TCP, data=bytes(20))), frames.NOT_UDP),
        (ethernet(ipv4(protocol=captures.TCP, data=b"")), frames.NOT_UDP),
        (ethernet(ipv6(following=58)), frames.NOT_UDP),
        (ethernet(ipv6(following=50)), frames.NOT_UDP),
        (ethernet(ipv4(fragment=0x2000)), frames.FRAGMENT),
        (ethernet(ipv4(fragment=0x0010, data=bytes(64))), frames.FRAGMENT),
        (ethernet(ipv6(data=struct.pack(FRAGMENT_HEADER, 17, 0, 1, 9) + udp(), following=44)), frames.FRAGMENT),
        (ethernet(ipv6(data=struct.pack(FRAGMENT_HEADER, 17, 0, 8, 9) + udp(), following=44)), frames.FRAGMENT),
        (ethernet(ipv4())[:-1], frames.CUT_SHORT),
        (ethernet(ipv6())[:-1], frames.CUT_SHORT),
        (ethernet(ipv4())[: 14 + 20 + 5], frames.CUT_SHORT),
        (ethernet(ipv4())[: 14 + 12], frames.CUT_SHORT),
        (ethernet(ipv6())[: 14 + 12], frames.CUT_SHORT),
        (ethernet(ipv4())[:10], frames.CUT_SHORT),
        (ethernet(ipv4(), tags=[(0x8100, 5)])[:16], frames.CUT_SHORT),
        (b"", frames.CUT_SHORT),
        (ethernet(ipv4(data=udp(length=7))), frames.MALFORMED),
        (ethernet(b"\x41" + ipv4()[1:]), frames.MALFORMED),
    ],
)
def test_reasons(frame, reason):
    """A frame without a whole datagram says why."""
    assert datagram_of(captures.ETHERNET, frame) == reason


def test_an_unfragmented_fragment():
    """An IPv6 packet with a fragment header that is whole all the same is taken (RFC 6946)."""
    header = struct.pack(FRAGMENT_HEADER, 17, 0, 0, 9)
    assert datagram_of(captures.RAW, ipv6(data=header + udp(), following=44)) == V6


def test_another_link_type():
    """A link type that is not understood is a reason."""
    assert datagram_of(captures.WIFI, ethernet(ipv4())) == frames.OTHER_LINK


@given(st.sampled_from(sorted(frames.LINK_TYPES)), st.binary(max_size=120))
def test_any_bytes(link, frame):
    """Whatever a frame holds, it is a datagram or has a reason."""
    assert isinstance(datagram_of(link, frame), Datagram | str)


@given(st.sampled_from([ipv4(), ipv6(), ipv6(following=0), ipv6(following=43), ipv6(following=44)]), st.data())
def test_damaged_packets(packet, data):
    """A packet with some bytes changed, or cut, is a datagram or has a reason."""
    damaged = bytearray(packet)
    for place in data.draw(st.lists(st.integers(0, len(packet) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    frame = ethernet(packet)[:14] + bytes(damaged[: data.draw(st.integers(0, len(packet)))])
    assert isinstance(datagram_of(captures.ETHERNET, frame), Datagram | str)
