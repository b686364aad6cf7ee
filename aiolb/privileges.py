"""Users to run as: read from text, and taken on by this process for good."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiolb.errors import ConfigurationError, KernelError, PrivilegeError, StartError

_MAX_ID = (1 << 32) - 2  # the last number stands for "leave it" (setresuid(2))
_DIGITS = 10
_SWITCH = 1 << 6 | 1 << 7  # CAP_SETGID and CAP_SETUID (include/uapi/linux/capability.h)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, its group and its supplementary groups; ``name`` is how it was written."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str

    @property
    def current(self) -> bool:
        """Whether this process runs as this identity already, with nothing kept to come back from."""
        return (
            os.getresuid() == (self.uid,) * 3
            and os.getresgid() == (self.gid,) * 3
            and {*os.getgroups(), self.gid} == {*self.groups, self.gid}
        )


def parse(text: str, *, option: str = "--user") -> Identity:
    """Read ``NAME`` or ``NAME:GROUP``, each a name or a number.

    Without GROUP it is the user's own group and all that it is a member of; with GROUP, that group alone. Raises
    ConfigurationError for what is unknown, for a number without a group that names no user, and for root.
    """
    name, colon, group = text.partition(":")
    entry, uid = _user(name, text)
    if uid == 0:
        raise ConfigurationError(
            f"{text!r} is root, which keeps its privileges",
            hint=f"name another user, e.g. nobody, or leave {option} out",
        )
    if colon:
        gid = _group(group, text)
        return Identity(uid, gid, (gid,), text)
    if entry is None:
        raise ConfigurationError(
            f"no user has the number {uid}, so its group is unknown", hint=f"name the group too: {name}:{name}"
        )
    return Identity(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)), text)


def _user(name: str, text: str) -> tuple[pwd.struct_passwd | None, int]:
    # As chown(1) does: a name that looks like a number is a name first.
    with suppress(KeyError, ValueError):
        entry = pwd.getpwnam(name)
        return entry, entry.pw_uid
    uid = _number(name)
    if uid is None:
        raise ConfigurationError(
            f"there is no user {name!r}{_within(name, text)}", hint="getent passwd lists them; useradd --system NAME"
        )
    with suppress(KeyError):
        return pwd.getpwuid(uid), uid
    return None, uid


def _group(name: str, text: str) -> int:
    with suppress(KeyError, ValueError):
        return grp.getgrnam(name).gr_gid
    gid = _number(name)
    if gid is None:
        raise ConfigurationError(
            f"there is no group {name!r}{_within(name, text)}", hint="getent group lists them; groupadd --system NAME"
        )
    return gid


def _within(part: str, text: str) -> str:
    return "" if part == text else f" (in {text!r})"


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        return None
    return int(text) if int(text) <= _MAX_ID else None


def owner(text: str | None) -> tuple[int, int] | None:
    """The uid and gid that ``text`` means, for files that this user is to write to; None for no user.

    Raises what ``parse`` does.
    """
    if text is None:
        return None
    identity = parse(text)
    return identity.uid, identity.gid


def drop(identity: Identity) -> None:
    """Make this process, with all its threads, run as ``identity`` for good.

    Sets supplementary groups, group and user in that order, and makes sure that nothing leads back: no id of before
    and no capability is left. Descriptors that are open stay as they are. Raises PrivilegeError when this process
    may not do so, KernelError, and StartError when something is left; the process must end then, as half of it may
    be done.
    """
    check_may_switch(identity)
    if not identity.current:
        try:
            os.setgroups(identity.groups)
            os.setresgid(identity.gid, identity.gid, identity.gid)
            # Last, as it takes the right to do the others. From root to a user, the kernel clears the permitted,
            # effective and ambient capabilities with it (capabilities(7)).
            os.setresuid(identity.uid, identity.uid, identity.uid)
        except OSError as error:
            raise _refused(identity, error) from error
    _check_no_way_back(identity)


def check_may_switch(identity: Identity) -> None:
    """Raise PrivilegeError if this process, or a child of it, may not become ``identity``."""
    # Another user with CAP_SETUID could switch too, but would keep that capability and all others: the kernel clears
    # them only on the way from root.
    may = os.geteuid() == 0 and _capabilities()["CapEff"] & _SWITCH == _SWITCH
    if not (may or identity.current):
        raise PrivilegeError(
            f"this process (uid {os.geteuid()}) may not run anything as {identity.name}",
            errno=errno.EPERM,
            hint="start as root, with CAP_SETUID and CAP_SETGID, or leave --user out",
        )


def _refused(identity: Identity, error: OSError) -> KernelError:
    kind = PrivilegeError if error.errno in (errno.EPERM, errno.EACCES) else KernelError
    return kind(
        f"the kernel does not let this process run as {identity.name} ({identity.uid}:{identity.gid}): "
        f"{error.strerror}",
        errno=error.errno,
        hint="inside of a user namespace, the ids must be mapped (user_namespaces(7))",
    )


def _check_no_way_back(identity: Identity) -> None:
    _check_none_kept(identity, ["CapPrm", "CapEff", "CapAmb"])
    if not identity.current or _can_be_root():
        raise StartError(
            f"this process was to run as {identity.name} for good, and could come back",
            hint="leave --user out, and let the service manager choose the user (User= in the unit)",
        )


def _check_none_kept(identity: Identity, sets: list[str]) -> None:
    """Where the service manager gave the user capabilities, no change of ids takes them away."""
    held = _capabilities()
    if kept := [name for name in sets if held[name]]:
        raise StartError(
            f"what runs as {identity.name} would keep capabilities ({', '.join(kept)})",
            hint="leave --user out, or AmbientCapabilities= and SecureBits= in the unit",
        )


def _can_be_root() -> bool:
    with suppress(OSError):
        os.setresuid(-1, 0, -1)
        return True
    return False


def _capabilities() -> dict[str, int]:
    """The capability sets of this process by their names in /proc (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(value, 16) for name, _, value in (line.partition(":") for line in lines) if name[:3] == "Cap"}
