"""Which slots have come to a member and left it, seen by looking at the group's table again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiolb.address import Address, parse_address, parse_ip
from aiolb.bpf.hashing import slot_of
from aiolb.bpf.keys import Key
from aiolb.bpf.table import SlotTable


@dataclass(frozen=True, slots=True)
class SlotsChange:
    """Slots of the group at ``address`` that another member has from now on, and ones that were another member's.

    Every slot holds many possible sources: ``concerns()`` tells of one. Datagrams that were steered before the change
    still come from the queue.
    """

    address: Address
    left: frozenset[int]
    came: frozenset[int]
    key: Key
    """What the group hashes."""
    seed: int = field(repr=False)

    def concerns(self, addr: Sequence[Any]) -> Literal["left", "came"] | None:
        """Whether the source ``addr``, a tuple as handlers get it, has ``left`` or ``came``; None: neither.

        Raises ConfigurationError where address and port do not tell the slot: with ``random``, and with a key file.
        """
        key = self.key.told_by(parse_ip(addr[0].partition("%")[0]), addr[1])
        slot = slot_of(self.seed, key)
        if slot in self.left:
            return "left"
        return "came" if slot in self.came else None

    def as_message(self) -> dict[str, Any]:
        """For a channel: what JSON can say."""
        key = self.key
        return {
            "address": str(self.address),
            "left": sorted(self.left),
            "came": sorted(self.came),
            "key": [key.kind, key.prefix4, key.prefix6, key.digest],
            "seed": self.seed,
        }

    @classmethod
    def from_message(cls, content: Mapping[str, Any]) -> Self:
        """Read what ``as_message`` made."""
        return cls(
            parse_address(content["address"]),
            frozenset(content["left"]),
            frozenset(content["came"]),
            Key(*content["key"]),
            content["seed"],
        )


class SlotsWatch:
    """Remembers a group's table, and says what has changed since; one member's changes, or everybody's."""

    def __init__(self, table: SlotTable, index: int | None = None) -> None:
        self._table = table
        self._index = index
        self._generation = table.config.generation
        self._owners = table.slots

    def look(self) -> dict[int, SlotsChange]:
        """What has changed for each member since the last look; costs one look-up when nothing has."""
        config = self._table.config
        if config.generation == self._generation:
            return {}
        self._generation = config.generation
        former, self._owners = self._owners, self._table.slots
        left: defaultdict[int, set[int]] = defaultdict(set)
        came: defaultdict[int, set[int]] = defaultdict(set)
        for slot, (old, new) in enumerate(zip(former, self._owners, strict=True)):
            if old != new:
                left[old].add(slot)
                came[new].add(slot)
        members = left.keys() | came.keys()
        wanted = members if self._index is None else members & {self._index}
        return {
            member: SlotsChange(
                self._table.address, frozenset(left[member]), frozenset(came[member]), Key.of(config), config.seed
            )
            for member in sorted(wanted)
        }
