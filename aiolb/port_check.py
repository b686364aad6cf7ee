"""Whether a collector could have a port: free, its own group's, shared with strangers, or taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group import Group
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.pins import in_bpffs
from aiolb.diagnosis import Diagnosis, Level
from aiolb.errors import GroupNotFoundError, KernelError, PrivilegeError, StartError
from aiolb.occupants import Occupant, occupants_of


def check(name: GroupName, bpffs: Path = BPFFS, *, bpf: bool = True) -> Diagnosis:
    """Look at who is on the port. ``bpf``: whether bpf(2) may be called, to tell members from strangers."""
    try:
        return _check(name, bpffs, bpf=bpf)
    except StartError as error:  # nobody can bind here, or what is here cannot be joined
        return Diagnosis(str(name), Level.PROBLEM, str(error), error.hint)


def _check(name: GroupName, bpffs: Path, *, bpf: bool) -> Diagnosis:
    occupants = occupants_of(name.address, name.protocol)
    sharing = [occupant for occupant in occupants if _may_share(occupant)]
    # Where there are none, binding cannot take anything from anybody: the kernel itself may answer.
    if sharing:
        return _shared(name, sharing, bpffs, bpf=bpf)
    try:
        sockets.try_bind(name.address, name.protocol)
    except KernelError as error:
        if error.errno != errno.EADDRINUSE or not occupants:
            raise
        return _taken(name, occupants)
    return _free(name, bpffs, bpf=bpf)


def _may_share(occupant: Occupant) -> bool:
    return occupant.holder.uid == os.geteuid() and occupant.reuseport is not False


def _free(name: GroupName, bpffs: Path, *, bpf: bool) -> Diagnosis:
    """Nobody is there; but a group that was left may be one that cannot be joined."""
    group = ""
    with suppress(PrivilegeError):  # the BPF file system has a check of its own
        _, group = _members(name, bpffs, bpf=bpf)
    return Diagnosis(str(name), Level.OK, f"free; {group}" if group else "free")


def _taken(name: GroupName, occupants: Sequence[Occupant]) -> Diagnosis:
    strange = [occupant for occupant in occupants if occupant.holder.uid != os.geteuid()]
    if strange:
        found = f"held by another user ({_listed(strange)}): all sockets of a group need the same one"
        return Diagnosis(str(name), Level.PROBLEM, found, f"run aiolb as that user, {_or_stop(strange, name.protocol)}")
    found = f"held by a socket without SO_REUSEPORT ({_listed(occupants)})"
    return Diagnosis(str(name), Level.PROBLEM, found, f"choose another port, {_or_stop(occupants, name.protocol)}")


def _shared(name: GroupName, sharing: Sequence[Occupant], bpffs: Path, *, bpf: bool) -> Diagnosis:
    members, group = _members(name, bpffs, bpf=bpf)
    strangers = _strangers(sharing, members)
    if not strangers:
        return Diagnosis(str(name), Level.OK, group)
    before = f"{group}; " if group else ""
    neighbours = _of_other_groups(name, strangers, bpffs, bpf=bpf)
    if len(neighbours) == len(strangers):
        found = f"{before}another group has the port ({_listed(neighbours)}): {_consequence(name.address, neighbours)}"
        return Diagnosis(str(name), Level.WARNING, found, "choose another port, unless that is what you want")
    strangers = [stranger for stranger in strangers if stranger not in neighbours]
    who = _listed(strangers)
    if any(stranger.reuseport is None for stranger in strangers):
        found = f"{before}held by a socket that this user may not look at ({who}): SO_REUSEPORT or not is unknown"
        return Diagnosis(str(name), Level.WARNING, found, f"look as root: aiolb doctor {name}{in_bpffs(bpffs)}")
    found = f"{before}a socket with SO_REUSEPORT is in no eBPF group ({who}): {_consequence(name.address, strangers)}"
    fix = f"unless it is a collector with another balancer: choose another port, {_or_stop(strangers, name.protocol)}"
    return Diagnosis(str(name), Level.WARNING, found, fix)


def _strangers(sharing: Sequence[Occupant], members: Mapping[int, int]) -> list[Occupant]:
    """Whose sockets are no members'; of those that may not be looked at, as many may be members as are not seen."""
    seen = {occupant.cookie for occupant in sharing}
    unseen = [occupant for occupant in sharing if occupant.cookie is None]
    strange = [occupant for occupant in sharing if occupant.cookie is not None and occupant.cookie not in members]
    return strange if len(unseen) <= len(members.keys() - seen) else strange + unseen


def _of_other_groups(name: GroupName, strangers: Sequence[Occupant], bpffs: Path, *, bpf: bool) -> list[Occupant]:
    """Those that are members at another address with the same port; groups that may not be opened have none."""
    found: list[Occupant] = []
    for other in {stranger.address for stranger in strangers if stranger.address is not None} - {name.address}:
        with suppress(StartError):
            members, _ = _members(GroupName(name.protocol, other), bpffs, bpf=bpf)
            found += [stranger for stranger in strangers if stranger.cookie in members]
    return found


def _consequence(address: Address, strangers: Sequence[Occupant]) -> str:
    elsewhere = sorted({str(one.address) for one in strangers if one.address not in (None, address)})
    if elsewhere:
        return f"it is bound to {', '.join(elsewhere)}, and the narrower address gets what is sent to it"
    return "with members on the same port it gets nothing"


def _members(name: GroupName, bpffs: Path, *, bpf: bool) -> tuple[dict[int, int], str]:
    """The live members' pids by their sockets' cookies, and the group in words. StartError where it cannot be told."""
    if not bpf:
        return {}, ""
    try:
        group = Group.open(name.address, protocol=name.protocol, bpffs=bpffs)
    except GroupNotFoundError:
        return {}, ""
    with closing(group):
        alive = sorted(group.alive())
        cookies = {index: group.cookie_of(index) for index in alive}
        members = {cookie: group.holder(index).pid for index, cookie in cookies.items() if cookie is not None}
        pids = f" (pid {', '.join(map(str, sorted(set(members.values()))))})" if members else ""
        return members, f"a group of {group.config.count} with {len(alive)} alive{pids}"


def _listed(occupants: Iterable[Occupant]) -> str:
    return "; ".join(sorted({str(occupant) for occupant in occupants}))


def _or_stop(occupants: Iterable[Occupant], protocol: str) -> str:
    pids = sorted({occupant.holder.pid for occupant in occupants if occupant.holder.pid is not None})
    return (
        f"or: kill {' '.join(map(str, pids))}"
        if pids
        else f"or stop that process (ss -{protocol[0]}lpn as root names it)"
    )
