"""What a group is called, in messages and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiolb.address import PROTOCOLS, Address, parse_address


@dataclass(frozen=True, slots=True, order=True)
class GroupName:
    """What tells a group from others in its network namespace; ``str()`` gives ``HOST:PORT`` or ``tcp:HOST:PORT``."""

    protocol: str
    address: Address

    @classmethod
    def parse(cls, text: str, *, protocol: str = "udp", resolve: Callable[[str], Address] = parse_address) -> GroupName:
        """Read ``HOST:PORT``, ``udp:HOST:PORT`` or ``tcp:HOST:PORT``; the first is one of ``protocol``.

        ``resolve`` reads the address; the default takes no names. Raises ConfigurationError.
        """
        told, colon, rest = text.partition(":")
        if colon and told in PROTOCOLS:
            return cls(told, resolve(rest))
        return cls(protocol, resolve(text))

    def __str__(self) -> str:
        return str(self.address) if self.protocol == "udp" else f"{self.protocol}:{self.address}"
