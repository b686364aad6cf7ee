"""Whether a collector could have a port: free, its own group's, shared with strangers, or taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group import Group
from aiolb.diagnosis import Diagnosis, Level
from aiolb.errors import GroupNotFoundError, KernelError, StartError
from aiolb.occupants import Occupant, occupants_of


def check(address: Address, bpffs: Path = BPFFS, *, bpf: bool = True) -> Diagnosis:
    """Look at who is on the port. ``bpf``: whether bpf(2) may be called, to tell members from strangers."""
    occupants = occupants_of(address)
    sharing = [occupant for occupant in occupants if _may_share(occupant)]
    # Where there are none, binding cannot take a datagram from anybody: the kernel itself may answer.
    if sharing:
        return _shared(address, sharing, bpffs, bpf=bpf)
    try:
        sockets.bind_reuseport(address).close()
    except KernelError as error:
        return _refused(address, occupants, error)
    return Diagnosis(str(address), Level.OK, "free")


def _may_share(occupant: Occupant) -> bool:
    return occupant.holder.uid == os.geteuid() and occupant.reuseport is not False


def _refused(address: Address, occupants: Sequence[Occupant], error: KernelError) -> Diagnosis:
    if error.errno != errno.EADDRINUSE or not occupants:
        return Diagnosis(str(address), Level.PROBLEM, str(error), error.hint)
    strange = [occupant for occupant in occupants if occupant.holder.uid != os.geteuid()]
    if strange:
        found = f"held by another user ({_listed(strange)}): all sockets of a group need the same one"
        return Diagnosis(str(address), Level.PROBLEM, found, f"run aiolb as that user, {_or_stop(strange)}")
    found = f"held by a socket without SO_REUSEPORT ({_listed(occupants)})"
    return Diagnosis(str(address), Level.PROBLEM, found, f"choose another port, {_or_stop(occupants)}")


def _shared(address: Address, sharing: Sequence[Occupant], bpffs: Path, *, bpf: bool) -> Diagnosis:
    try:
        members, group = _members(address, bpffs) if bpf else ({}, "")
    except StartError as error:
        return Diagnosis(str(address), Level.PROBLEM, str(error), error.hint)
    pids = set(members.values())
    strangers = [
        occupant
        for occupant in sharing
        if occupant.cookie not in members and not (occupant.cookie is None and occupant.holder.pid in pids)
    ]
    if not strangers:
        return Diagnosis(str(address), Level.OK, group)
    beside = f"{group}; beside it" if members else "no group of ours, but"
    return _beside(address, strangers, f"{beside} {_listed(strangers)}")


def _beside(address: Address, strangers: Sequence[Occupant], who: str) -> Diagnosis:
    if any(occupant.reuseport is None for occupant in strangers):
        found = f"{who}; whether with SO_REUSEPORT, this user may not see"
        return Diagnosis(str(address), Level.WARNING, found, f"look as root: aiolb doctor {address}")
    elsewhere = sorted({str(other.address) for other in strangers if other.address not in (None, address)})
    where = f" at {', '.join(elsewhere)}" if elsewhere else ""
    found = f"{who} with SO_REUSEPORT{where}: aiolb would share the port, and datagrams go to one or the other"
    return Diagnosis(str(address), Level.WARNING, found, f"choose another port, {_or_stop(strangers)}")


def _members(address: Address, bpffs: Path) -> tuple[dict[int | None, int], str]:
    """The live members' pids by their sockets' cookies, and the group in words. StartError where it cannot be told."""
    try:
        group = Group.open(address, bpffs=bpffs)
    except GroupNotFoundError:
        return {}, ""
    with closing(group):
        alive = sorted(group.alive())
        members = {group.cookie_of(index): group.holder(index).pid for index in alive}
        pids = ", ".join(map(str, sorted(set(members.values()))))
        return members, f"a group of {group.config.count} with {len(alive)} alive (pid {pids})"


def _listed(occupants: Iterable[Occupant]) -> str:
    return "; ".join(sorted({str(occupant) for occupant in occupants}))


def _or_stop(occupants: Iterable[Occupant]) -> str:
    pids = sorted({occupant.holder.pid for occupant in occupants if occupant.holder.pid is not None})
    return f"or: kill {' '.join(map(str, pids))}" if pids else "or stop that process (ss -ulpn as root names it)"
