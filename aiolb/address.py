"""Socket addresses and sources as text and back; pure, nothing here resolves a name."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiolb.errors import ConfigurationError

PROTOCOLS = ("udp", "tcp")
DEFAULT_PORT = 10001
MAX_PORT = 65535

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A numeric IP address and a UDP or TCP port; ``str()`` gives ``host:port`` or ``[host]:port``.

    ``host`` is the canonical text of the address. An IPv4-mapped IPv6 address is kept as IPv4.
    """

    host: str
    port: int

    @property
    def ip(self) -> IPAddress:
        """The address without its port."""
        return ip_address(self.host)

    @property
    def family(self) -> socket.AddressFamily:
        """``AF_INET`` or ``AF_INET6``."""
        return socket.AF_INET6 if self.ip.version == 6 else socket.AF_INET  # noqa: PLR2004 - the IP version

    def with_port(self, port: int) -> Address:
        """The same host with another port."""
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def as_text(addresses: Iterable[Address]) -> str:
    """Addresses for people: ``127.0.0.1:9000, [::1]:9000``."""
    return ", ".join(map(str, addresses))


def to_send_to(host: str) -> str:
    """The host where a sender of this machine finds who is bound to ``host``: loopback, if it is bound everywhere."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def split_host_port(text: str, *, default_port: int | None = DEFAULT_PORT) -> tuple[str, int]:
    """Split ``HOST``, ``HOST:PORT``, ``[V6]``, ``[V6]:PORT`` or ``:PORT``; an empty host is ``0.0.0.0``.

    Raises ConfigurationError when the port is missing without a default, or not in 0 … 65535.
    """
    host, port_text = _partition(text.strip())
    # getaddrinfo(3) would take a lone number for an IPv4 address.
    if not text.strip() or host.isdigit():
        raise ConfigurationError(f"{text!r} is no address", hint=f"write HOST:PORT, or :{host or DEFAULT_PORT}")
    if port_text is None:
        if default_port is None:
            raise ConfigurationError(f"{text!r} has no port", hint="write HOST:PORT, e.g. 127.0.0.1:10001")
        return host or "0.0.0.0", default_port
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= MAX_PORT):
        raise ConfigurationError(f"{port_text!r} in {text!r} is no port", hint="a port is a number from 0 to 65535")
    return host or "0.0.0.0", int(port_text)


def _partition(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ConfigurationError(
                f"{text!r} is no address", hint="write an IPv6 address and its port as [::1]:10001"
            )
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        # ::1:5 may be an address, or ::1 and a port.
        raise ConfigurationError(f"{text!r} is no address", hint=_hint_of_colons(text))
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _hint_of_colons(text: str) -> str:
    with suppress(ValueError):
        return f"write an IPv6 address in brackets, as [{ip_address(text)}]:{DEFAULT_PORT}"
    return f"write HOST:PORT, and an IPv6 address in brackets, as [::1]:{DEFAULT_PORT}"


def parse_address(text: str, *, default_port: int | None = DEFAULT_PORT) -> Address:
    """Read a numeric address such as ``127.0.0.1:9000``, ``[::]:2055``, ``[::1]`` or ``:9000``.

    Raises ConfigurationError when it is none; names are not resolved (see :func:`aiolb.sockets.resolve`).
    """
    host, port = split_host_port(text, default_port=default_port)
    return Address(str(parse_ip(host, within=text)), port)


def parse_ip(host: str, *, within: str | None = None) -> IPAddress:
    """Read an IP address; IPv4-mapped IPv6 becomes IPv4. Raises ConfigurationError."""
    try:
        return canonical(ip_address(host))
    except ValueError:
        where = f" in {within!r}" if within not in (None, host) else ""
        example = "127.0.0.1 or ::1" if within is None else "127.0.0.1:10001 or [::1]:10001"
        raise ConfigurationError(f"{host!r}{where} is no IP address", hint=f"e.g. {example}") from None


def canonical(ip: IPAddress) -> IPAddress:
    """The address that counts as the source: an IPv4-mapped IPv6 address is its IPv4 address."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def parse_network(text: str) -> IPNetwork:
    """Read a CIDR such as ``127.1.0.0/16`` or ``fd00::/120``; host bits must be zero. Raises ConfigurationError."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no network: {error}", hint="e.g. 127.1.0.0/16") from None


def parse_source(
    addr: str | Address | IPAddress | tuple[str, int] | tuple[str, int, int, int],
) -> tuple[IPAddress, int | None]:
    """The source, and the port where it is told: of an IP address, ``HOST:PORT``, or a socket's address.

    An IPv6 address alone may do without brackets. Raises ConfigurationError.
    """
    if isinstance(addr, tuple):
        return parse_ip(addr[0]), addr[1]
    if isinstance(addr, Address):
        return addr.ip, addr.port
    if not isinstance(addr, str):
        return canonical(addr), None
    with suppress(ValueError):
        return canonical(ip_address(addr)), None
    host, port = split_host_port(addr, default_port=0)
    return parse_ip(host, within=addr), port or None
