"""What steering looks at: the key of a packet, as text, as the program's settings, and as the bytes that are hashed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from aiolb.bpf.abi import KEY_CUSTOM, KEY_FLOW, KEY_RANDOM, KEY_SOURCE, U32, U64, Config
from aiolb.errors import ConfigurationError

TCP_HAS_NO_PAYLOAD = "a key file is for UDP: the first packet of a TCP connection has no payload"
"""Why a key file is refused."""

_WORDS = struct.Struct("=QQ")
_PREFIX = "prefix/"
_CHOICES = "source, flow, random, or prefix/BITS,BITS for IPv4 and IPv6, e.g. prefix/24,64"


@dataclass(frozen=True, slots=True)
class Key:
    """A group's key. ``kind`` is KEY_…; the prefixes are bits of IPv4 and IPv6 sources.

    ``digest`` tells the key file of a KEY_CUSTOM from others: the first 8 bytes of its SHA-256.
    """

    kind: int = KEY_SOURCE
    prefix4: int = 32
    prefix6: int = 128
    digest: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``source``, ``prefix/24,64``, ``flow`` or ``random``. Raises ConfigurationError."""
        kinds = {"source": KEY_SOURCE, "flow": KEY_FLOW, "random": KEY_RANDOM}
        if text in kinds:
            return cls(kinds[text])
        bits = text.removeprefix(_PREFIX).split(",")
        if text.startswith(_PREFIX) and len(bits) == 2 and all(part.isascii() and part.isdigit() for part in bits):  # noqa: PLR2004 - IPv4 and IPv6
            prefix4, prefix6 = map(int, bits)
            if 1 <= prefix4 <= 32 and 1 <= prefix6 <= 128:  # noqa: PLR2004 - bits of an address
                return cls(KEY_SOURCE, prefix4, prefix6)
            raise ConfigurationError(
                f"{text!r} has no such prefixes: IPv4 has 1 to 32 bits, IPv6 1 to 128", hint=f"{_PREFIX}24,64"
            )
        raise ConfigurationError(f"{text!r} is no key", hint=_CHOICES)

    @classmethod
    def of(cls, config: Config) -> Self:
        """The key of a group."""
        mask6 = _WORDS.pack(config.mask6_low, config.mask6_high)
        return cls(config.key, _bits(U32.pack(config.mask4)), _bits(mask6), config.key_digest)

    def __str__(self) -> str:
        if self.kind == KEY_CUSTOM:
            return f"file {self.digest:016x}"
        if (self.prefix4, self.prefix6) != (32, 128):
            return f"{_PREFIX}{self.prefix4},{self.prefix6}"
        return {KEY_SOURCE: "source", KEY_FLOW: "flow", KEY_RANDOM: "random"}[self.kind]

    @property
    def mask4(self) -> bytes:
        """What is looked at of an IPv4 source, in network byte order."""
        return IPv4Network((0, self.prefix4)).netmask.packed

    @property
    def mask6(self) -> bytes:
        """What is looked at of an IPv6 source, in network byte order."""
        return IPv6Network((0, self.prefix6)).netmask.packed

    @property
    def settings(self) -> dict[str, int]:
        """The fields of ``struct config`` that are the key's."""
        (mask4,) = U32.unpack(self.mask4)
        mask6_low, mask6_high = _WORDS.unpack(self.mask6)
        return {
            "key": self.kind,
            "mask4": mask4,
            "mask6_low": mask6_low,
            "mask6_high": mask6_high,
            "key_digest": self.digest,
        }

    def bytes_of(self, ip: IPv4Address | IPv6Address, port: int | None = None) -> bytes | None:
        """What is hashed for a source; None where the source does not tell it: random, a key file, flow without port.

        ``port`` is the sender's.
        """
        if self.kind in (KEY_RANDOM, KEY_CUSTOM) or (self.kind == KEY_FLOW and port is None):
            return None
        source = key_of(ip)
        network: type[IPv4Network | IPv6Network] = IPv4Network if len(source) == U32.size else IPv6Network
        bits = self.prefix4 if network is IPv4Network else self.prefix6
        masked = network((source, bits), strict=False).network_address.packed
        return masked + port.to_bytes(2, "big") if self.kind == KEY_FLOW and port is not None else masked

    def told_by(self, ip: IPv4Address | IPv6Address, port: int | None = None) -> bytes:
        """What is hashed for a source. Raises ConfigurationError where it does not tell that."""
        if (found := self.bytes_of(ip, port)) is not None:
            return found
        hint = "name the sender's port too: ADDR:PORT" if self.kind == KEY_FLOW else "only the slots are known"
        raise ConfigurationError(f"a source alone does not tell where it goes: the key is {self}", hint=hint)


def key_of(ip: IPv4Address | IPv6Address) -> bytes:
    """The bytes of a source: 4 for IPv4 and IPv4-mapped IPv6, else 16."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.packed
    return ip.packed


def custom_key(low: int, high: int) -> bytes:
    """What is hashed for the two 64-bit numbers that a key file gives."""
    return U64.pack(low) + U64.pack(high)


def _bits(mask: bytes) -> int:
    return int.from_bytes(mask, "big").bit_count()
