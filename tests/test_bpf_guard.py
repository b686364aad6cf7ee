"""The guard's writes, one after the other: no source meets half of a set of rules, and what stays is left alone."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.bpf import abi
from aiolb.bpf.abi import FLAG_LIMIT, FLAG_LISTED_ONLY, FLAG_RULES, FLAG_STRICT, Config, Rule
from aiolb.bpf.guard import Guard
from aiolb.bpf.rules import GuardOptions, GuardRules, Limit
from aiolb.errors import GroupError, KernelError


class Table:
    """Maps in memory, which look sources up as the program does, and remember each state that they were in."""

    def __init__(self):
        nothing = Config.unpack(bytes(Config.STRUCT.size))
        self.config = replace(nothing, flags=FLAG_STRICT)
        self.rules = {}
        self.buckets = None
        self.written = []
        self.states = []

    def read_struct(self, pin, key, layout):
        """The settings."""
        assert (pin, key, layout) == ("config", 0, Config)
        return self.config

    def items(self, pin):
        """Rules; nobody was over a limit here."""
        return iter(list(self.rules.items())) if pin == "rules" else iter(())

    def sums(self, pin):
        """Counters of nothing."""
        assert pin == "group_stats"
        return [(0,) * 8]

    def write(self, pin, key, value):
        """Write one value."""
        self.written.append(pin)
        if pin == "rules":
            self.rules[key] = value
        elif pin == "config":
            self.config = Config.unpack(value)
        else:
            assert pin == "buckets"
            self.buckets = value
        self.states.append(self.decide())

    def delete(self, pin, key):
        """Remove one value."""
        assert pin == "rules"
        del self.rules[key]
        self.states.append(self.decide())

    def decide(self):
        """Whether each source passes."""
        return {source: self._passes(source) for source in SOURCES}

    def _passes(self, source):
        if not self.config.flags & FLAG_RULES:
            return True
        mapped = int(source) | 0xFFFF << 32 if source.version == 4 else int(source)
        found = None
        for key, value in sorted(self.rules.items(), key=lambda item: item[0][:4]):
            length, address = struct.unpack("=I", key[:4])[0], int.from_bytes(key[4:], "big")
            if (mapped ^ address) >> (128 - length) == 0:
                found = Rule.unpack(value)
        if found is None or (source.version == 4 and found.ipv6):
            return not self.config.flags & FLAG_LISTED_ONLY
        return bool(found.action)


SOURCES = [
    *(IPv4Address(0x0A000000 + number) for number in range(8)),
    *(IPv6Address((0xFD << 120) + number) for number in range(4)),
    ip_address("192.0.2.1"),
    ip_address("2001:db8::1"),
]
NETWORKS = [
    *(ip_network((0x0A000000 + number, 32)) for number in range(8)),
    *(ip_network((0x0A000000 + number, 30)) for number in (0, 4)),
    *map(ip_network, ("10.0.0.0/29", "0.0.0.0/0", "fd00::/127", "fd00::2", "fd00::/8", "::/0")),
]
rule_sets = st.dictionaries(st.sampled_from(NETWORKS), st.booleans(), max_size=8).map(
    lambda chosen: GuardRules.of(
        [network for network, yes in chosen.items() if yes], [network for network, yes in chosen.items() if not yes]
    )
)


def expected(rules, source):
    """Whether a source passes, by the words of the documentation."""
    inside = [network for network in rules.allowed if network.version == source.version and source in network]
    if inside:
        return rules.allowed[max(inside, key=lambda network: network.prefixlen)]
    return not rules.listed_only


@given(rule_sets, rule_sets)
def test_no_source_meets_half_of_a_set(before, after):
    """After each single write every source meets what the old rules say of it, or what the new ones do."""
    table = Table()
    guard = Guard(table)
    guard.set_rules(before)
    old = {source: expected(before, source) for source in SOURCES}
    assert table.decide() == old
    table.states.clear()
    guard.set_rules(after)
    new = {source: expected(after, source) for source in SOURCES}
    for state in table.states:
        assert {source for source in SOURCES if state[source] not in (old[source], new[source])} == set()
    assert table.decide() == new
    assert guard.rules == after
    assert table.config.flags & FLAG_STRICT


@given(rule_sets, rule_sets)
def test_rules_that_stay_are_not_written(before, after):
    """A rule that is in the old set and in the new one keeps its counters."""
    table = Table()
    guard = Guard(table)
    guard.set_rules(before)
    table.rules = {key: replace(Rule.unpack(value), packets=7).pack() for key, value in table.rules.items()}
    guard.set_rules(after)
    kept = {network for network, yes in after.allowed.items() if before.allowed.get(network) == yes}
    counted = {rule.network for rule in guard.statistics().rules if rule.packets}
    assert counted == kept


def test_the_same_rules_again():
    """To set what is set already writes no rule."""
    table = Table()
    guard = Guard(table)
    rules = GuardRules.of([ip_network("10.0.0.0/29")], [ip_network("fd00::/8")])
    guard.set_rules(rules)
    table.written.clear()
    guard.set_rules(rules)
    assert table.written == ["config"]


def test_no_room(monkeypatch):
    """Where old and new rules do not fit beside each other nothing is changed."""
    table = Table()
    guard = Guard(table)
    monkeypatch.setattr(abi, "MAX_RULES", 3)
    old, new = NETWORKS[:2], NETWORKS[1:4]
    guard.set_rules(GuardRules.of(old))
    with pytest.raises(GroupError) as caught:
        guard.set_rules(GuardRules.of(new))
    assert str(caught.value) == "the new rules and those of now are 4 together, and 3 is the most"
    assert caught.value.hint == "aiolb guard --clear removes those of now"
    assert guard.rules == GuardRules.of(old)
    guard.set_rules(GuardRules.of(new[:2]))


def test_a_kernel_that_does_not_take_rules(monkeypatch):
    """What the kernel says is told."""
    table = Table()

    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(table, "write", refuse)
    with pytest.raises(KernelError, match=r"^the kernel does not take the rules: Cannot allocate memory$") as caught:
        Guard(table).set_rules(GuardRules.of(NETWORKS[:1]))
    assert caught.value.errno == errno.ENOMEM


def test_a_limit():
    """All buckets are filled while no limit is in force; the same limit again leaves them alone."""
    table = Table()
    guard = Guard(table)
    guard.set_limit(Limit.parse("100:5"))
    assert table.written == ["config", "buckets", "config", "config"]
    assert (guard.limit, table.buckets) == (Limit(10**7, 5), bytes(abi.BUCKETS_SIZE))
    assert (table.config.limit_interval_ns, table.config.limit_burst_ns) == (10**7, 4 * 10**7)
    assert table.config.flags == FLAG_STRICT | FLAG_LIMIT
    table.written.clear()
    guard.set_limit(Limit.parse("100:5"))
    assert table.written == []
    guard.set_limit(Limit())
    assert (table.written, guard.limit, table.config.flags) == (["config"], Limit(), FLAG_STRICT)


def test_options():
    """What no option names stays as it is."""
    table = Table()
    guard = Guard(table)
    rules, limit = GuardRules.of([ip_network("10.0.0.0/29")]), Limit.parse("5")
    guard.set(GuardOptions(rules, limit))
    guard.set(GuardOptions())
    assert (guard.rules, guard.limit) == (rules, limit)
    guard.set(GuardOptions(rules=GuardRules()))
    assert (guard.rules, guard.limit) == (GuardRules(), limit)
    guard.set(GuardOptions(limit=Limit()))
    assert guard.statistics().rules == ()
    assert table.config.flags == FLAG_STRICT
