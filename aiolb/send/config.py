"""What a publisher is to send, from which sources, checked; pure."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network

from aiolb.address import Address, IPNetwork, parse_ip, parse_network, split_host_port, to_send_to
from aiolb.errors import ConfigurationError
from aiolb.pacing import validate_rate
from aiolb.send import gso
from aiolb.stamp import STAMP_SIZE

DEFAULT_SIZE = 64
DEFAULT_TEXT = b"aiolb says hello "

MAX_SIZE_V4 = 65_507
"""Bytes: 65,535 less 20 of IPv4 header and 8 of UDP header (RFC 768, RFC 791)."""

MAX_SIZE_V6 = 65_527
"""Bytes: 65,535 less 8 of UDP header; the IPv6 header is not counted (RFC 8200)."""

MAX_LOOPBACK_SOURCES = 2**24 - 3
"""The addresses of 127.0.0.0/8 less its first, its last, and 127.0.0.1, which is for collectors."""

LOOPBACK = ip_network("127.0.0.0/8")
_FIRST_LOOPBACK_SOURCE = IPv4Address("127.0.0.2")


@dataclass(frozen=True, slots=True)
class PublisherConfig:
    """What to send where, checked.

    ``target`` is an Address or ``HOST:PORT``; ``rate`` is in datagrams per second, None for as fast as
    possible; ``count`` datagrams or ``duration`` seconds end a run. ``size`` is in bytes: the payload is
    repeated or cut to it, and with ``stamp`` its first STAMP_SIZE bytes become the stamp. Without a size it
    is the payload's length, or 64 when there is no payload either. ``sources`` is a number of sources in
    127.0.0.0/8, or a network (CIDR) each host address of which sends. ``gso`` is the number of datagrams in
    a train; ``off``, or ``auto``: trains where several datagrams of a source are due at once and the kernel
    and the route can. ``worker`` of ``workers`` publishers that send a run together sends its share of it: of
    the sources, and so of rate and count. Raises ConfigurationError.
    """

    target: Address | str
    rate: float | None = None
    count: int | None = None
    duration: float | None = None
    size: int | None = None
    payload: bytes | None = None
    sources: int | str | IPNetwork = 1
    stamp: bool = False
    gso: str | int = "auto"
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        validate_rate(self.rate)
        _check_not_negative("count", self.count)
        _check_not_negative("duration", self.duration)
        _check_not_negative("size", self.size)
        self._check_size()
        self._check_gso()
        if not 0 <= self.worker < self.workers:
            raise ConfigurationError(f"worker {self.worker} of {self.workers} cannot be", hint="count workers from 0")
        if not self.host_port[1]:
            raise ConfigurationError(
                f"{str(self.target)!r} has port 0, which nobody can listen on", hint="write HOST:PORT"
            )
        if self.numeric_target is not None:
            source_addresses(self.source_set, self.numeric_target)

    def _check_size(self) -> None:
        limit = MAX_SIZE_V4
        if self.numeric_target is not None and self.numeric_target.family == socket.AF_INET6:
            limit = MAX_SIZE_V6
        size = self.datagram_size
        if size > limit:
            raise ConfigurationError(
                f"a datagram of {size:,} bytes is over the {limit:,} bytes that UDP carries",
                hint=f"give a size of at most {limit}",
            )
        if self.stamp and size < STAMP_SIZE:
            raise ConfigurationError(
                f"a datagram of {size} bytes has no room for the stamp of {STAMP_SIZE} bytes",
                hint=f"give a size of {STAMP_SIZE} or more",
            )
        if self.payload == b"" and size:
            raise ConfigurationError(
                f"an empty payload cannot fill {size} bytes",
                hint="give a payload, or none for the default text",
            )

    def _check_gso(self) -> None:
        if self.gso in {"auto", "off"}:
            return
        if not isinstance(self.gso, int) or not 1 <= self.gso <= gso.MAX_TRAIN:
            raise ConfigurationError(
                f"trains of {self.gso!r} datagrams cannot be",
                hint=f"give a number from 1 to {gso.MAX_TRAIN}, auto or off",
            )
        if self.gso > 1 and not 0 < self.gso * self.datagram_size <= gso.MAX_TRAIN_BYTES:
            raise ConfigurationError(
                f"a train of {self.gso} datagrams of {self.datagram_size:,} bytes cannot be: it has from 1 to "
                f"{gso.MAX_TRAIN_BYTES:,} bytes",
                hint=f"make trains of at most {gso.longest(self.datagram_size)} datagrams"
                if self.datagram_size
                else "give a size",
            )

    @property
    def train(self) -> int:
        """The datagrams that every train must have; 1 where that is left to the publisher."""
        return self.gso if isinstance(self.gso, int) else 1

    @property
    def may_send_trains(self) -> bool:
        """Whether trains are wanted and can be."""
        if self.gso == "auto":
            return self.datagram_size > 0 and gso.longest(self.datagram_size) > 1
        return self.train > 1

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port of the target; the unspecified addresses mean this host, as they do to the kernel."""
        if isinstance(self.target, Address):
            host, port = self.target.host, self.target.port
        else:
            host, port = split_host_port(self.target, default_port=None)
        return to_send_to(host), port

    @property
    def numeric_target(self) -> Address | None:
        """The target when it is an IP address, None when it is a name."""
        host, port = self.host_port
        try:
            return Address(str(parse_ip(host)), port)
        except ConfigurationError:
            return None

    @property
    def source_set(self) -> int | IPNetwork:
        """``sources`` as a number or a network."""
        if not isinstance(self.sources, str):
            return self.sources
        text = self.sources.strip()
        return int(text) if text.lstrip("-").isdecimal() else parse_network(text)

    @property
    def datagram_size(self) -> int:
        """The length of every datagram in bytes."""
        if self.size is not None:
            return self.size
        return DEFAULT_SIZE if self.payload is None else len(self.payload)

    @property
    def datagram(self) -> bytes:
        """A whole datagram; where a stamp is asked for, it still has to be written over the start."""
        text = DEFAULT_TEXT if self.payload is None else self.payload
        return (text * (self.datagram_size // max(len(text), 1) + 1))[: self.datagram_size]


def _check_not_negative(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:
        raise ConfigurationError(f"the {name} is {value}", hint=f"give a {name} of 0 or more, or none")


def source_addresses(sources: int | IPNetwork, target: Address) -> tuple[int, Iterable[str | None]]:
    """How many sources there are, and their addresses; None leaves the choice to the kernel.

    Raises ConfigurationError when such sources cannot reach the target.
    """
    if isinstance(sources, int):
        return _loopback_sources(sources, target)
    if sources.version != target.ip.version:
        raise ConfigurationError(
            f"sources in {sources} cannot reach {target}: IPv{sources.version} and IPv{target.ip.version}",
            hint="give sources and target of one IP version",
        )
    number = sources.num_addresses
    if sources.prefixlen < sources.max_prefixlen - 1:
        number -= 2 if isinstance(sources, IPv4Network) else 1
    return number, map(str, sources.hosts())


def _loopback_sources(number: int, target: Address) -> tuple[int, Iterable[str | None]]:
    if number == 1:
        return 1, [None]
    if not 1 <= number <= MAX_LOOPBACK_SOURCES:
        raise ConfigurationError(
            f"{number} sources are not from 1 to {MAX_LOOPBACK_SOURCES:,}", hint="give a number or a network"
        )
    if target.ip not in LOOPBACK:
        raise ConfigurationError(
            f"{number} sources exist without asking on IPv4 loopback only, and the target is {target}",
            hint="name addresses of this host as a network, e.g. --sources 10.1.0.0/24",
        )
    return number, (str(_FIRST_LOOPBACK_SOURCE + n) for n in range(number))
