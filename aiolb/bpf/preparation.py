"""A group made ready for a user whose processes have no privilege."""

from __future__ import annotations

import os
from pathlib import Path

from aiolb.address import Address
from aiolb.bpf import ownership
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group import Group, GroupOptions
from aiolb.errors import PrivilegeError
from aiolb.privileges import Identity


def prepare(address: Address, options: GroupOptions, user: Identity | None, *, shared: bool = False) -> Group:
    """The group at ``address``, made if there is none, whose members may be the processes of ``user``.

    None is this process's own user; with ``shared`` those of the user's first group may look at it. It is kept when no
    member is left. The caller closes it. Raises PrivilegeError where the user could not get to its pins, and the errors
    of :meth:`Group.opened_or_created` and :meth:`Group.prepare`; nothing is made then.
    """
    bpffs = options.bpffs or BPFFS
    if user is not None:
        _check_way(bpffs, user)
    with Group.opened_or_created(address, options) as group:
        uid, gid = (os.geteuid(), os.getegid()) if user is None else (user.uid, user.gid)
        group.prepare(uid, gid, shared=shared)
    return group


def _check_way(bpffs: Path, user: Identity) -> None:
    if not bpffs.exists():
        return  # mounting it is what fails, or makes a folder that is open to all
    closed = ownership.closed_to(bpffs, user.uid, (user.gid, *user.groups))
    if closed is not None:
        raise PrivilegeError(
            f"{user.name} may not enter {closed}, below which groups are pinned", hint=f"chmod o+x {closed}"
        )
