"""The guard of one group: what is dropped before any member; written to its maps, and read from them, while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import nlargest
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from types import MappingProxyType

from aiolb.address import IPAddress, IPNetwork
from aiolb.bpf import abi, syscall
from aiolb.bpf.abi import FLAG_LIMIT, FLAG_LISTED_ONLY, FLAG_RULES, RULE_ALLOW, U32, U64, Config, GroupStats, Rule
from aiolb.bpf.maps import Maps
from aiolb.bpf.rules import GuardOptions, GuardRules, Limit
from aiolb.errors import GroupError, KernelError

TOP = 10
"""Offenders that are told of."""

_MAPPED = bytes(10) + b"\xff\xff"
_V4_BITS = 8 * len(_MAPPED)
_LIMITED_BITS = 64


@dataclass(frozen=True, slots=True)
class RuleStatistics:
    """A rule, and the packets that it decided about; ``bytes`` is their UDP payload. A train is one packet."""

    network: IPNetwork
    allowed: bool
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Offender:
    """Who sent more than the limit: an IPv4 address, or an IPv6 /64; ``packets`` were dropped for that."""

    source: IPAddress | IPNetwork
    packets: int


@dataclass(frozen=True, slots=True)
class GuardStatistics:
    """The guard at one moment. ``denied`` packets met a rule, ``unlisted`` ones none, ``limited`` ones the limit.

    The counters count since the group's creation, and a rule's since it is there. A train is one packet.
    """

    rules: tuple[RuleStatistics, ...]
    limit: Limit
    listed_only: bool
    denied: int
    unlisted: int
    limited: int
    offenders: tuple[Offender, ...]


class Guard:
    """What a group's maps hold for the guard. Change it under the group's lock; borrows the maps."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps

    @property
    def _config(self) -> Config:
        return self._maps.read_struct("config", 0, Config)

    def _write_config(self, *, clear: int = 0, flags: int = 0, **changes: int) -> None:
        config = self._config
        self._maps.write("config", 0, replace(config, flags=config.flags & ~clear | flags, **changes).pack())

    @property
    def rules(self) -> GuardRules:
        """The rules as they stand."""
        return GuardRules(MappingProxyType({network: rule.action == RULE_ALLOW for network, rule in self._rules()}))

    def _rules(self) -> Iterator[tuple[IPNetwork, Rule]]:
        for key, value in self._maps.items("rules"):
            yield _network_of(key), Rule.unpack(value)

    @property
    def limit(self) -> Limit:
        """The limit as it stands."""
        config = self._config
        if not config.flags & FLAG_LIMIT:
            return Limit()
        return Limit(config.limit_interval_ns, config.limit_burst_ns // config.limit_interval_ns + 1)

    def set(self, options: GuardOptions) -> None:
        """Make what is asked for the group's. Raises KernelError."""
        if options.rules is not None:
            self.set_rules(options.rules)
        if options.limit is not None:
            self.set_limit(options.limit)

    def set_rules(self, rules: GuardRules) -> None:
        """Replace the rules; those that stay go on counting. Raises GroupError without room for both, KernelError.

        While it goes on each source meets either what the old rules say of it or what the new ones say, nothing else:
        new rules come first, from the longest prefix on, then what becomes of those without a rule, and then old rules
        go, from the shortest on.
        """
        before = self.rules
        together = len(before.allowed.keys() | rules.allowed.keys())
        if together > abi.MAX_RULES:
            raise GroupError(
                f"the new rules and those of now are {together:,} together, and {abi.MAX_RULES:,} is the most",
                hint="aiolb guard --clear removes those of now",
            )
        added = [(network, action) for network, action in rules if before.allowed.get(network) != bool(action)]
        gone = [network for network in before.allowed if network not in rules.allowed]
        try:
            for network, action in sorted(added, key=lambda rule: _length(rule[0]), reverse=True):
                ipv6 = isinstance(network, IPv6Network)
                self._maps.write("rules", _key_of(network), Rule(action, ipv6, 0, 0).pack())
        except OSError as error:
            raise KernelError(f"the kernel does not take the rules: {error.strerror}", errno=error.errno) from error
        wanted = FLAG_RULES * bool(rules) | FLAG_LISTED_ONLY * rules.listed_only
        self._write_config(clear=FLAG_RULES | FLAG_LISTED_ONLY, flags=wanted)
        for network in sorted(gone, key=_length):
            self._maps.delete("rules", _key_of(network))

    def set_limit(self, limit: Limit) -> None:
        """Begin, change or end the limit; all buckets are full then. Raises KernelError.

        What the old limit took from a bucket says nothing under a new one: so the limit is off until no packet can meet
        the old one any more (10 ms), and the buckets are filled.
        """
        if limit == self.limit:
            return
        self._write_config(clear=FLAG_LIMIT)
        if not limit:
            return
        # A grace period, as aiolb.bpf.steering.wait_for_packets_in_flight() has it. Where membarrier(2) cannot, the
        # system calls that follow are longer than a packet's way through the program.
        with suppress(OSError):
            syscall.membarrier()
        self._maps.write("buckets", 0, bytes(abi.BUCKETS_SIZE))
        self._write_config(limit_interval_ns=limit.interval, limit_burst_ns=(limit.burst - 1) * limit.interval)
        self._write_config(flags=FLAG_LIMIT)

    def statistics(self, *, top: int = TOP) -> GuardStatistics:
        """Rules in order of their networks, counters, and the ``top`` offenders, the worst first."""
        # Rules first: what they have dropped is in the group's counters then.
        rules = sorted(self._rules(), key=lambda rule: (rule[0].version, rule[0]))
        (counters,) = self._maps.sums("group_stats")
        group, config = GroupStats(*counters), self._config
        offenders = ((U64.unpack(value)[0], key) for key, value in self._maps.items("offenders"))
        return GuardStatistics(
            tuple(RuleStatistics(net, rule.action == RULE_ALLOW, rule.packets, rule.bytes) for net, rule in rules),
            self.limit,
            bool(config.flags & FLAG_LISTED_ONLY),
            group.denied,
            group.unlisted,
            group.limited,
            tuple(Offender(_limited_source(key), packets) for packets, key in nlargest(top, offenders)),
        )


def _length(network: IPNetwork) -> int:
    """The bits of a rule's prefix in the map."""
    return network.prefixlen + (_V4_BITS if isinstance(network, IPv4Network) else 0)


def _key_of(network: IPNetwork) -> bytes:
    mapped = _MAPPED if isinstance(network, IPv4Network) else b""
    return U32.pack(_length(network)) + mapped + network.network_address.packed


def _network_of(key: bytes) -> IPNetwork:
    (length,), address = U32.unpack_from(key), key[U32.size :]
    if length >= _V4_BITS and address.startswith(_MAPPED):
        return IPv4Network((address[len(_MAPPED) :], length - _V4_BITS))
    return IPv6Network((address, length))


def _limited_source(key: bytes) -> IPAddress | IPNetwork:
    if key.startswith(_MAPPED):
        return IPv4Address(key[len(_MAPPED) :])
    return IPv6Network((key, _LIMITED_BITS))
