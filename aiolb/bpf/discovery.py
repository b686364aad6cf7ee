"""Which groups there are: read from the names of their pins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address
from pathlib import Path

from aiolb.address import PROTOCOLS
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.liveness import live_members
from aiolb.bpf.pins import folder_of_namespace, names_of
from aiolb.errors import ConfigurationError, GroupNotFoundError, KernelError, PrivilegeError


def group_names(bpffs: Path = BPFFS) -> list[GroupName]:
    """The groups of this network namespace that are pinned in ``bpffs``, in order. Raises PrivilegeError."""
    return sorted(_folders(bpffs))


def _folders(bpffs: Path) -> dict[GroupName, Path]:
    folder = folder_of_namespace(bpffs)
    try:
        named = [(name_of(path), path) for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise PrivilegeError(
            f"this user may not read {error.filename}: {error.strerror}", errno=error.errno, hint="run as root"
        ) from error
    return {name: path for name, path in named if name is not None}


def name_of(folder: Path) -> GroupName | None:
    """The group that is pinned in a folder of this name; None for what somebody else has put there."""
    try:
        protocol, address = names_of(folder.name)
        ip_address(address.host)
    except ValueError:
        return None
    return GroupName(protocol, address) if protocol in PROTOCOLS else None


def the_group(name: GroupName | None, bpffs: Path = BPFFS, *, option: str = "--group ") -> GroupName:
    """``name``, or without one the only group that there is; ``option`` comes before a group where one is chosen.

    Raises GroupNotFoundError, ConfigurationError.
    """
    if name is not None:
        return name
    names = sorted(_alive(_folders(bpffs)))
    if not names:
        raise GroupNotFoundError("there is no group in this network namespace", hint="start a collector: aiolb serve")
    if len(names) > 1:
        listed = ", ".join(map(str, names))
        raise ConfigurationError(
            f"there are {len(names)} groups: {listed}", hint=f"choose one, as in: {option}{names[0]}"
        )
    return names[0]


def _alive(folders: Mapping[GroupName, Path]) -> Collection[GroupName]:
    """Of several groups those with a live member; all if none has one, or if this user may not look.

    Who tries things out leaves groups behind, and means the one that runs.
    """
    if len(folders) <= 1:
        return folders.keys()
    try:
        return [name for name, folder in folders.items() if live_members(folder)] or folders.keys()
    except KernelError:
        return folders.keys()
