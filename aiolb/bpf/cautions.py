"""What who has joined a group is to be warned of: that it is another user's, or goes on with another program."""

from __future__ import annotations

import os

from aiolb.bpf.ownership import user_name
from aiolb.bpf.pins import Pins
from aiolb.bpf.unpinned import Unpinned
from aiolb.errors import AiolbError, GroupError, PrivilegeError


def cautions(pins: Pins | Unpinned, *, program_kept: bool) -> dict[str, AiolbError]:
    """The warnings by the names of their events; ``program_kept``: this user could not load the program it asked for.

    Nothing where the group is not pinned, or has just been deleted.
    """
    found: dict[str, AiolbError] = {}
    if not isinstance(pins, Pins):
        return found
    try:
        owner = pins.owner
    except OSError:
        return found
    me = user_name(os.geteuid())
    if program_kept:
        found["program_kept"] = PrivilegeError(
            f"{me} may not give the group at {pins.name} another program: it goes on with its own, and not with the "
            "one that was compiled",
            hint="leave --compile and --debug out, or as root, with the same option: "
            + pins.command("create", "--owner", str(owner)),
        )
    if owner.prepared and owner.uid != os.geteuid():
        found["owner_locked_out"] = GroupError(
            f"the group at {pins.name} is prepared for {owner}, who cannot join while a member of {me} is alive: all "
            "sockets of a port belong to one user (socket(7))",
            hint=f"run as {owner}, or take the group back: {pins.command('create')}",
        )
    return found
