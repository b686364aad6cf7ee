"""Whose the pins of a group are: given to a user, that user's processes join without any privilege."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a group's pins belong to; ``prepared`` ones stay when no member is left, and only root can remove them."""

    uid: int
    gid: int
    prepared: bool

    @classmethod
    def of(cls, folder: os.stat_result, pin: os.stat_result) -> Owner:
        """The owner of the pins in a folder, told by one of them."""
        return cls(pin.st_uid, pin.st_gid, not folder.st_mode & stat.S_IWUSR)

    def __str__(self) -> str:
        return user_name(self.uid)


def user_name(uid: int) -> str:
    """The name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The name of a group of users, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def prepare(folder: Path, uid: int, gid: int, *, shared: bool = False) -> None:
    """Let a user, and if ``shared`` the group of users too, open the pins in a folder, but not add or remove any.

    The user's processes need ``gid`` to open the folder. What is no pin in it is removed. Raises OSError.
    """
    # The folder stays this process's own: its owner could make it writable, and plant links there that root follows
    # when it gives pins away. One that was another user's is taken back before anything in it is touched.
    take_back(folder)
    for pin in list(folder.iterdir()):
        found = pin.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            pin.unlink()
            continue
        os.chown(pin, uid, gid)
        pin.chmod(0o660 if shared else 0o600)
    # The kernel asks for read and write permission of a pin (kernel/bpf/inode.c, bpf_obj_do_get()), and the lock for a
    # descriptor of the folder, which takes permission to read it. Others may only ask whose the pins are.
    os.chown(folder, -1, gid)
    folder.chmod(0o551)


def take_back(folder: Path) -> None:
    """Undo ``prepare`` for the folder itself. Raises OSError."""
    os.chown(folder, os.geteuid(), os.getegid())
    folder.chmod(0o700)


def copy(former: Path, to: Path) -> None:
    """Give a pin the owner and the permissions of another one; where there is none, leave it. Raises OSError."""
    try:
        found = former.stat()
    except FileNotFoundError:
        return
    os.chown(to, found.st_uid, found.st_gid)
    to.chmod(stat.S_IMODE(found.st_mode))


def open_way(folder: Path, *, below: Path) -> None:
    """Let everybody enter and list the folders from ``folder`` up to ``below``, without it. Raises OSError."""
    while folder != below:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o055)
        folder = folder.parent


def closed_to(folder: Path, uid: int, gids: Collection[int]) -> Path | None:
    """The first folder on the way to ``folder``, itself included, that a user without privileges may not enter."""
    folder = folder.resolve()
    for step in (*reversed(folder.parents), folder):
        found = step.stat()
        mode = found.st_mode
        if found.st_uid == uid:
            may = mode & stat.S_IXUSR
        elif found.st_gid in gids:
            may = mode & stat.S_IXGRP
        else:
            may = mode & stat.S_IXOTH
        if not may:
            return step
    return None
