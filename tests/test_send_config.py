"""What a publisher can be told to send."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network

import pytest

from aiolb.address import Address
from aiolb.errors import ConfigurationError
from aiolb.send.config import MAX_SIZE_V6, PublisherConfig, source_addresses
from aiolb.stamp import STAMP_SIZE

TARGET = "127.0.0.1:9"
V4 = Address("127.0.0.1", 9)
V6 = Address("::1", 9)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate": 0}, "the rate is 0"),
        ({"rate": -1.5}, "the rate is -1.5"),
        ({"rate": float("nan")}, "the rate is nan"),
        ({"count": -1}, "the count is -1"),
        ({"duration": -0.1}, "the duration is -0.1"),
        ({"size": -1}, "the size is -1"),
        ({"size": 65_508}, "65,508 bytes is over the 65,507 bytes"),
        ({"payload": bytes(65_508)}, "65,508 bytes is over the 65,507 bytes"),
        ({"size": STAMP_SIZE - 1, "stamp": True}, "31 bytes has no room for the stamp of 32 bytes"),
        ({"payload": b"short", "stamp": True}, "5 bytes has no room for the stamp"),
        ({"payload": b"", "size": 5}, "an empty payload cannot fill 5 bytes"),
        ({"sources": 0}, "0 sources"),
        ({"sources": "-3"}, "-3 sources"),
        ({"sources": 2**24}, "16777216 sources"),
        ({"sources": "many"}, "'many' is no network"),
        ({"sources": "127.1.0.1/24"}, "host bits"),
        ({"sources": "::1/128"}, "IPv6 and IPv4"),
        ({"gso": 0}, "trains of 0 datagrams"),
        ({"gso": 65}, "trains of 65 datagrams"),
        ({"gso": -1}, "trains of -1 datagrams"),
        ({"gso": "often"}, "trains of 'often' datagrams"),
        ({"gso": 64, "size": 1024}, "64 datagrams of 1,024 bytes .* 65,507 bytes"),
        ({"gso": 2, "size": 32_754}, "2 datagrams of 32,754 bytes"),
        ({"gso": 2, "size": 0}, "2 datagrams of 0 bytes"),
        ({"worker": 2, "workers": 2}, "worker 2 of 2"),
        ({"worker": -1}, "worker -1 of 1"),
        ({"workers": 0}, "worker 0 of 0"),
    ],
)
def test_settings_that_cannot_work(settings, says):
    """A setting that cannot work is found before anything is opened, with a hint."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        PublisherConfig(TARGET, **settings)
    assert caught.value.hint


@pytest.mark.parametrize("target", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:http", "[::1:9", ""])
def test_targets_that_cannot_be(target):
    """A target is a host and a port that somebody can listen on."""
    with pytest.raises(ConfigurationError) as caught:
        PublisherConfig(target)
    assert caught.value.hint


def test_several_sources_need_the_ipv4_loopback():
    """Only in 127.0.0.0/8 do sources exist without asking; the hint names the way for other targets."""
    for target in ("192.0.2.1:9", "[::1]:9"):
        with pytest.raises(ConfigurationError, match="2 sources") as caught:
            PublisherConfig(target, sources=2)
        assert "--sources 10.1.0.0/24" in caught.value.hint


def test_the_size_limit_of_ipv6():
    """IPv6 does not count its header: 20 bytes more than IPv4."""
    assert PublisherConfig("[::1]:9", size=MAX_SIZE_V6).datagram_size == MAX_SIZE_V6
    with pytest.raises(ConfigurationError, match="65,527"):
        PublisherConfig("[::1]:9", size=MAX_SIZE_V6 + 1)


@pytest.mark.parametrize(
    ("settings", "datagram"),
    [
        ({"payload": b"abc"}, b"abc"),
        ({"payload": b"abc", "size": 8}, b"abcabcab"),
        ({"payload": b"abc", "size": 2}, b"ab"),
        ({"payload": b""}, b""),
        ({"size": 0}, b""),
        ({"size": 20}, b"aiolb says hello aio"),
    ],
)
def test_the_datagram(settings, datagram):
    """The payload, or the default text, repeated or cut to the size."""
    assert PublisherConfig(TARGET, **settings).datagram == datagram


def test_the_default_datagram_is_64_bytes():
    """Without size and payload a datagram is 64 bytes of text."""
    assert len(PublisherConfig(TARGET).datagram) == 64
    assert PublisherConfig(TARGET).datagram.decode().isprintable()


def test_the_settings_are_frozen():
    """A configuration cannot be changed after it was checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        PublisherConfig(TARGET).rate = 5


@pytest.mark.parametrize(
    ("sources", "target", "addresses"),
    [
        (1, V4, [None]),
        (1, V6, [None]),
        (3, V4, ["127.0.0.2", "127.0.0.3", "127.0.0.4"]),
        (ip_network("127.1.0.0/30"), V4, ["127.1.0.1", "127.1.0.2"]),
        (ip_network("127.1.0.0/31"), V4, ["127.1.0.0", "127.1.0.1"]),
        (ip_network("127.1.0.7/32"), V4, ["127.1.0.7"]),
        (ip_network("fd00::/126"), V6, ["fd00::1", "fd00::2", "fd00::3"]),
        (ip_network("fd00::/127"), V6, ["fd00::", "fd00::1"]),
        (ip_network("::1/128"), V6, ["::1"]),
    ],
)
def test_source_addresses(sources, target, addresses):
    """A number takes the addresses after 127.0.0.1, a network its host addresses; both are counted ahead."""
    number, found = source_addresses(sources, target)
    assert (number, list(found)) == (len(addresses), addresses)


@pytest.mark.parametrize(("target", "reaches"), [("0.0.0.0:9", V4), (":9", V4), ("[::]:9", V6)])
def test_the_unspecified_address_is_this_host(target, reaches):
    """The address that a collector was told to bind can be given to the publisher as it is."""
    assert PublisherConfig(target).numeric_target == reaches


@pytest.mark.parametrize(
    ("settings", "may", "train"),
    [
        ({}, True, 1),
        ({"size": 0}, False, 1),
        ({"size": 32_753}, True, 1),
        ({"size": 32_754}, False, 1),
        ({"gso": "off"}, False, 1),
        ({"gso": 1}, False, 1),
        ({"gso": 1, "size": 0}, False, 1),
        ({"gso": 2, "size": 32_753}, True, 2),
        ({"gso": 64}, True, 64),
    ],
)
def test_trains(settings, may, train):
    """Trains of two datagrams or more that fit 65,507 bytes can be; a number is what each train must have."""
    config = PublisherConfig(TARGET, **settings)
    assert (config.may_send_trains, config.train) == (may, train)
