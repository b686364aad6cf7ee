"""What the guard lets pass: rules by network, and a limit for each source; read from text, and what holds of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Self

from aiolb.address import IPAddress, IPNetwork, parse_network
from aiolb.address import canonical as canonical_address
from aiolb.bpf.abi import MAX_RULES, RULE_ALLOW, RULE_DENY
from aiolb.errors import ConfigurationError

MIN_PPS, MAX_PPS = 0.001, 1e9
MAX_BURST = 10**9
MAX_FILL = 86_400
"""Seconds that an empty bucket may take until it is full."""

_MAPPED = IPv6Network("::ffff:0:0/96")
_SECOND = 10**9
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class GuardRules:
    """Networks that are allowed (True) or denied (False). Of those that a source is in, the longest prefix decides.

    A source that is in none passes, unless at least one network is allowed.
    """

    allowed: Mapping[IPNetwork, bool] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, allow: Iterable[IPNetwork] = (), deny: Iterable[IPNetwork] = ()) -> Self:
        """Rules of these networks. Raises ConfigurationError for one that is allowed and denied, and for too many."""
        allowed = dict.fromkeys(map(canonical, allow), True)
        denied = dict.fromkeys(map(canonical, deny), False)
        if both := sorted(map(str, allowed.keys() & denied.keys())):
            raise ConfigurationError(f"{', '.join(both)} is allowed and denied", hint="leave one of them out")
        return cls(MappingProxyType(allowed | denied))

    def __post_init__(self) -> None:
        if len(self.allowed) > MAX_RULES:
            raise ConfigurationError(f"a group has at most {MAX_RULES:,} rules, not {len(self.allowed):,}")

    def with_rules(self, more: GuardRules) -> GuardRules:
        """These, and ``more``: the newer rule for a network counts. Raises ConfigurationError for too many."""
        return GuardRules(MappingProxyType({**self.allowed, **more.allowed}))

    def without(self, networks: Iterable[IPNetwork]) -> GuardRules:
        """These without the rules for the networks. Raises ConfigurationError for one that has no rule."""
        gone = dict.fromkeys(map(canonical, networks))
        if missing := [str(network) for network in gone if network not in self.allowed]:
            raise ConfigurationError(f"there is no rule for {', '.join(missing)}", hint="aiolb guard shows the rules")
        return GuardRules(MappingProxyType({net: yes for net, yes in self.allowed.items() if net not in gone}))

    @property
    def listed_only(self) -> bool:
        """Whether a source that is in no network is dropped."""
        return any(self.allowed.values())

    def dropped_by(self, source: IPAddress) -> str | None:
        """The rule that drops what the source sends, or that no rule allows it; None where it passes."""
        source = canonical_address(source)
        found = [net for net in self.allowed if net.version == source.version and source in net]
        if not found:
            return "no rule allows it" if self.listed_only else None
        longest = max(found, key=lambda net: net.prefixlen)
        return None if self.allowed[longest] else f"deny {longest}"

    def __bool__(self) -> bool:
        return bool(self.allowed)

    def __iter__(self) -> Iterator[tuple[IPNetwork, int]]:
        """Each network with its RULE_…."""
        return ((network, RULE_ALLOW if yes else RULE_DENY) for network, yes in self.allowed.items())


def canonical(network: IPNetwork) -> IPNetwork:
    """The network that counts: one of IPv4-mapped IPv6 addresses is an IPv4 network."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((network.network_address.packed[-4:], network.prefixlen - _MAPPED.prefixlen))
    return network


def networks(texts: Iterable[str]) -> Iterator[IPNetwork]:
    """Read networks: an address, a CIDR, or ``@FILE`` with one a line and comments after ``#``.

    Raises ConfigurationError, which names the file and the line.
    """
    for text in texts:
        if text.startswith("@"):
            yield from _networks_in(Path(text[1:]))
        else:
            yield parse_network(text)


def _networks_in(path: Path) -> Iterator[IPNetwork]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigurationError(
            f"{str(path)!r} cannot be read: {reason}", hint="@FILE has a network a line; # begins a comment"
        ) from None
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                yield parse_network(text)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}:{number}: {error}", hint=error.hint) from None


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket for each source: ``interval`` ns that a token takes, ``burst`` tokens in a full one.

    False when there is no limit. ``str()`` gives what :meth:`parse` reads.
    """

    interval: int = 0
    burst: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``PPS`` or ``PPS:BURST``, packets a second and packets at once (default: those of a second), or ``off``.

        Raises ConfigurationError.
        """
        if text == "off":
            return cls()
        pps_text, colon, burst_text = text.partition(":")
        try:
            pps = float(pps_text)
            burst = int(burst_text) if colon else max(1, math.ceil(pps))
        except (ValueError, OverflowError):
            raise ConfigurationError(f"{text!r} is no limit", hint="PPS or PPS:BURST, e.g. 1000 or 1000:5000") from None
        if not MIN_PPS <= pps <= MAX_PPS:
            raise ConfigurationError(
                f"a limit is {MIN_PPS:g} to {MAX_PPS:,.0f} packets a second, not {pps_text}",
                hint="--limit-source off ends the limit; --deny drops all that a network sends",
            )
        if not 1 <= burst <= MAX_BURST:
            raise ConfigurationError(
                f"a burst is 1 to {MAX_BURST:,} packets, not {burst_text}",
                hint="leave :BURST out",
            )
        if burst / pps > MAX_FILL:
            raise ConfigurationError(
                f"with {text} a bucket takes {burst / pps:,.0f} s until it is full, and {MAX_FILL:,} s is the most",
                hint="a smaller BURST, or a larger PPS",
            )
        return cls(round(_SECOND / pps), burst)

    def __bool__(self) -> bool:
        return self.interval > 0

    @property
    def pps(self) -> float:
        """Packets a second: of all numbers with this interval, which is in whole nanoseconds, the shortest one."""
        if not self:
            return math.inf
        rounded = (float(f"{_SECOND / self.interval:.{digits}g}") for digits in range(1, _DIGITS))
        return next((pps for pps in rounded if round(_SECOND / pps) == self.interval), _SECOND / self.interval)

    def __str__(self) -> str:
        return f"{self.pps:.12g}:{self.burst}" if self else "off"


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What to make of a group's guard; each None leaves it as it is."""

    rules: GuardRules | None = None
    limit: Limit | None = None

    @classmethod
    def parse(cls, allow: Iterable[str] = (), deny: Iterable[str] = (), limit: str | None = None) -> Self:
        """Read networks, for which see :func:`networks`, and a limit. Without networks the rules stay."""
        rules = GuardRules.of(networks(allow), networks(deny)) if (*allow, *deny) else None
        return cls(rules, None if limit is None else Limit.parse(limit))

    def __bool__(self) -> bool:
        return self.rules is not None or self.limit is not None
