"""A group's slot table: which member owns which slot, and by which weights; read, and changed under the lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from aiolb.address import IPAddress
from aiolb.bpf import abi, slots
from aiolb.bpf.abi import Config, Member
from aiolb.bpf.hashing import slot_of
from aiolb.bpf.keys import Key
from aiolb.bpf.maps import Maps
from aiolb.bpf.pins import Pins
from aiolb.bpf.unpinned import Unpinned
from aiolb.errors import ConfigurationError


class SlotTable:
    """The settings and the slots of a group; the maps and the pins are the caller's.

    What changes slots here moves no more of them than it must, and every change of the table makes the group's
    ``config.generation`` another number.
    """

    def __init__(self, pins: Pins | Unpinned, maps: Maps) -> None:
        self.name = pins.name
        self.address = pins.name.address
        self._pins = pins
        self._maps = maps

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the group's lock; re-entrant. A group whose pins were deleted needs none."""
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(self._pins.locked())
            yield

    @property
    def config(self) -> Config:
        """The group's settings as they stand."""
        return self._maps.read_struct("config", 0, Config)

    @property
    def key(self) -> Key:
        """What is hashed; a group keeps the one that it was made with."""
        return Key.of(self.config)

    @property
    def slots(self) -> list[int]:
        """The slot table: the owner of each of the 16,384 slots."""
        return list(memoryview(self._maps.slots[:]).cast("H"))

    def slot_of(self, source: IPAddress, port: int | None = None) -> int:
        """The slot of a source, which it has in common with many others.

        ``port`` is the sender's, for a key that looks at it. Raises ConfigurationError where both do not tell the slot.
        """
        return slot_of(self.config.seed, self.key.told_by(source, port))

    @property
    def shares(self) -> tuple[int, ...]:
        """The weight of each member, and 0 for one that is drained."""
        return tuple(member.share for member in self.holders())

    @property
    def weights(self) -> tuple[tuple[int, bool], ...]:
        """The weight of each member, and whether it is drained."""
        return tuple((member.weight, bool(member.drained)) for member in self.holders())

    def alive(self) -> set[int]:
        """The indexes that live sockets hold."""
        return {index for index, found in enumerate(self.cookies()) if found is not None}

    def cookies(self) -> list[int | None]:
        """The cookie of the socket that holds each index; None where the member is dead."""
        values = self._maps.read_each("targets", self.config.count)
        return [None if value is None else int(abi.U64.unpack(value)[0]) for value in values]

    def cookie_of(self, index: int) -> int | None:
        """The cookie of the socket that holds ``index``; None when the member is dead."""
        value = self._maps.read("targets", index)
        return None if value is None else int(abi.U64.unpack(value)[0])

    def holder(self, index: int) -> Member:
        """Who joined as ``index`` last, alive or not."""
        return self._maps.read_struct("members", index, Member)

    def holders(self) -> list[Member]:
        """The same for each index of the group."""
        return self._members(self.config.count)

    def slot_packets(self) -> list[int]:
        """Packets counted per slot; a train is one packet. The counts begin again at 0 after 2^32."""
        return [packets % (1 << 32) for part in self._maps.sums("slot_stats") for packets in part]

    def check_shares(self, count: int) -> None:
        """Raise ConfigurationError when the first ``count`` members may own no slot."""
        self._dealt({}, count)

    def check_index(self, index: int) -> None:
        """Raise ConfigurationError for an index outside of the group."""
        count = self.config.count
        if not 0 <= index < count:
            members = "1 member, index 0" if count == 1 else f"{count} members, 0 to {count - 1}"
            raise ConfigurationError(f"the group at {self.name} has no member {index}: it has {members}")

    def set_weight(self, index: int, weight: int) -> dict[int, int]:
        """Give a member its part of the slots beside the others' weights: 0 … 1000, 100 unless told otherwise.

        Like every method here that changes shares: returns the slots that moved with their new members, and raises
        ConfigurationError, with nothing changed, for what cannot be.
        """
        with self.locked():
            self.check_index(index)
            return self._deal({index: {"weight": weight}})

    def drain(self, index: int) -> dict[int, int]:
        """Give the slots of a member to the others, until ``undrain()``; its socket stays where it is.

        Raises ConfigurationError, as :meth:`set_weight` does, when no other member is alive that may have them.
        """
        with self.locked():
            self.check_index(index)
            takers = {other for other, share in enumerate(self.shares) if share and other != index}
            alive = self.alive()
            if not (takers & alive if index in alive else takers):
                raise ConfigurationError(
                    f"member {index} of the group at {self.name} cannot be drained: no other one is alive that is not"
                    " drained and has a weight above 0",
                    hint="start another member, or undrain one, first",
                )
            return self._deal({index: {"drained": 1}})

    def undrain(self, index: int) -> dict[int, int]:
        """Give a drained member its share of the slots again; the same number, not always the same ones."""
        with self.locked():
            self.check_index(index)
            return self._deal({index: {"drained": 0}})

    def move(self, wanted: Iterable[int], *, to: int) -> dict[int, int]:
        """Give slots to a member, by hand; the ones that it did not own already, with ``to``.

        They stay there until something else moves them: another count or weight, drain, a rebalancing. Raises
        ConfigurationError for a slot or a member that does not exist, and for a member that is drained or dead.
        """
        wanted = list(wanted)
        for slot in wanted:
            if not 0 <= slot < abi.SLOT_COUNT:
                raise ConfigurationError(f"{slot} is no slot: they are numbered from 0 to {abi.SLOT_COUNT - 1}")
        with self.locked():
            self._check_may_own(to)
            owners = self.slots
            moves = {slot: to for slot in wanted if owners[slot] != to}
            if moves:
                self.move_slots(moves)
            return moves

    def _check_may_own(self, index: int) -> None:
        self.check_index(index)
        member = self.holder(index)
        if member.drained:
            raise ConfigurationError(f"member {index} is drained", hint=f"aiolb undrain {index}")
        if not member.weight:
            raise ConfigurationError(f"member {index} has the weight 0", hint=f"aiolb weight {index} 100")
        if self.cookie_of(index) is None:
            raise ConfigurationError(
                f"member {index} is dead: what is moved there would go to others",
                hint=f"start it first: aiolb serve --index {index}",
            )

    def move_slots(self, moves: Mapping[int, int]) -> None:
        """Give slots to other members (slot: member), under the lock."""
        with self.locked(), memoryview(self._maps.slots) as table, table.cast("H") as owners:
            for slot, member in moves.items():
                owners[slot] = member
            self._write_config(generation=self.config.generation + 1 & 0xFFFFFFFF)

    def move_slots_since(self, generation: int, moves: Mapping[int, int]) -> bool:
        """``move_slots()`` unless the table was changed since it had that generation; whether it was not."""
        with self.locked():
            if self.config.generation != generation:
                return False
            self.move_slots(moves)
            return True

    def _members(self, number: int = abi.MAX_MEMBERS) -> list[Member]:
        """Who joined last as each of the first indexes that there can be."""
        records = self._maps.read_all("members")[: number * Member.STRUCT.size]
        return [Member(*fields) for fields in Member.STRUCT.iter_unpack(records)]

    def _dealt(self, changes: Mapping[int, Mapping[str, int]], count: int) -> tuple[dict[int, Member], dict[int, int]]:
        """The members that change, and the slots that must move; changes nothing. Raises ConfigurationError."""
        for index, change in changes.items():
            if not 0 <= (weight := change.get("weight", 0)) <= slots.MAX_WEIGHT:
                raise ConfigurationError(f"the weight of member {index} is 0 to {slots.MAX_WEIGHT}, not {weight}")
        members = self._members()
        after = {index: replace(members[index], **change) for index, change in changes.items()}
        # Who comes back later, to a place that a smaller count has taken away, is another member.
        gone = {"weight": abi.DEFAULT_WEIGHT, "drained": 0}
        after |= {index: replace(members[index], **gone) for index in range(count, self.config.count)}
        changed = {index: member for index, member in after.items() if member != members[index]}
        shares = [after.get(index, members[index]).share for index in range(count)]
        if shares == [member.share for member in members[: self.config.count]]:
            return changed, {}
        if not any(shares):
            raise ConfigurationError(
                f"no member of the group at {self.name} would own a slot: all are drained, or have the weight 0",
                hint="aiolb undrain INDEX, or aiolb weight INDEX 100, of one of them first",
            )
        return changed, slots.resize(self.slots, count, shares)

    def _deal(self, changes: Mapping[int, Mapping[str, int]], count: int | None = None) -> dict[int, int]:
        """Change members (``weight``, ``drained``) and their number, and move the slots that must move.

        Nothing changes on an error. Raises ConfigurationError.
        """
        with self.locked():
            changed, moves = self._dealt(changes, count or self.config.count)
            # Slots first: who is killed in between has changed no share, and doing it again moves what is missing.
            if moves:
                self.move_slots(moves)
            self._maps.write_many("members", {index: member.pack() for index, member in changed.items()})
            if count is not None and count != self.config.count:
                self._write_config(count=count)
            return moves

    def _write_config(self, **changes: int) -> None:
        self._maps.write("config", 0, replace(self.config, **changes).pack())
