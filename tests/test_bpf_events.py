"""Decisions and filters, as the program reads and writes them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from aiolb.bpf import abi
from aiolb.bpf.abi import Event
from aiolb.bpf.events import MAX_SAMPLE, Action, Decision, EventFilter
from aiolb.errors import ConfigurationError


def words(text):
    """An IPv6 address as the two words of a struct."""
    packed = IPv6Address(text).packed
    return int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little")


def event(source, *, slot=7, member=2, action=abi.ACTION_STEER):
    """What the program writes."""
    low, high = words(source)
    return Event(1_000, low, high, 64, 5_000, slot, member, action, 0)


def test_actions():
    """Every action of the program has a name here, and those of the guard know that they are."""
    numbers = {name.removeprefix("ACTION_"): value for name, value in vars(abi).items() if name.startswith("ACTION_")}
    assert {action.name: action.value for action in Action} == numbers
    assert [action.name for action in Action if action.guards] == ["DENY", "UNLISTED", "LIMIT"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [("fd00::7", IPv6Address("fd00::7")), ("::ffff:127.1.2.3", IPv4Address("127.1.2.3"))],
)
def test_a_decision(source, expected):
    """An event is told with its source as the address that counts."""
    assert Decision.of(event(source)) == Decision(1_000, expected, 5_000, 64, 7, 2, Action.STEER)


def test_nobody_was_selected():
    """A packet that the guard dropped has neither slot nor member, and one that found nobody alive has no member."""
    denied = Decision.of(event("fd00::7", slot=0, member=abi.NO_MEMBER, action=abi.ACTION_DENY))
    assert (denied.slot, denied.member, denied.action) == (None, None, Action.DENY)
    dropped = Decision.of(event("fd00::7", slot=0, member=abi.NO_MEMBER, action=abi.ACTION_DROP))
    assert (dropped.slot, dropped.member, dropped.action) == (0, None, Action.DROP)


@pytest.mark.parametrize(
    ("network", "source", "mask"),
    [
        (None, "::", "::"),
        ("::/0", "::", "::"),
        ("fd00::/8", "fd00::", "ff00::"),
        ("0.0.0.0/0", "::ffff:0.0.0.0", "ffff:ffff:ffff:ffff:ffff:ffff::"),
        ("127.1.0.0/16", "::ffff:127.1.0.0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0"),
        ("::ffff:127.1.0.0/112", "::ffff:127.1.0.0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0"),
    ],
)
def test_a_filter(network, source, mask):
    """A network is compared as the program has sources: IPv4 ones as IPv6."""
    settings = EventFilter(None if network is None else ip_network(network), 9).settings
    assert (settings["event_source_low"], settings["event_source_high"]) == words(source)
    assert (settings["event_mask_low"], settings["event_mask_high"]) == words(mask)
    assert settings["event_sample"] == 9


@pytest.mark.parametrize(
    ("network", "passing"),
    [(None, [4, 6]), ("::/0", [6]), ("0.0.0.0/0", [4]), ("::ffff:0:0/96", [4])],
)
def test_no_ipv4_source_is_in_an_ipv6_network(network, passing):
    """What the program cannot tell apart by a mask is told apart afterwards."""
    wanted = EventFilter(None if network is None else ip_network(network))
    decisions = [Decision.of(event("::ffff:127.1.2.3")), Decision.of(event("fd00::7"))]
    assert [decision.source.version for decision in decisions if wanted.passes(decision)] == passing


@pytest.mark.parametrize("sample", [0, -1, MAX_SAMPLE + 1])
def test_no_such_sample(sample):
    """One of none, and one of more than the program counts, cannot be chosen."""
    with pytest.raises(ConfigurationError, match=f"one of {sample} cannot be chosen"):
        EventFilter(sample=sample)
