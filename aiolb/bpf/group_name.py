"""What a group is called, in messages and on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from aiolb.address import Address, parse_address

PROTOCOLS = ("udp", "tcp")


@dataclass(frozen=True, slots=True, order=True)
class GroupName:
    """What tells a group from others in its network namespace; ``str()`` gives ``HOST:PORT`` or ``tcp:HOST:PORT``."""

    protocol: str
    address: Address

    @classmethod
    def parse(cls, text: str) -> GroupName:
        """Read ``HOST:PORT``, ``udp:HOST:PORT`` or ``tcp:HOST:PORT``. Raises ConfigurationError."""
        protocol, colon, rest = text.partition(":")
        if colon and protocol in PROTOCOLS:
            return cls(protocol, parse_address(rest))
        return cls("udp", parse_address(text))

    def __str__(self) -> str:
        return str(self.address) if self.protocol == "udp" else f"{self.protocol}:{self.address}"
