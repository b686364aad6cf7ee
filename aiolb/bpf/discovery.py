"""Which groups there are: read from the names of their pins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiolb.address import Address, parse_address
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.liveness import live_members
from aiolb.bpf.pins import folder_of_namespace, names_of
from aiolb.errors import ConfigurationError, GroupNotFoundError, KernelError, PrivilegeError

PROTOCOLS = ("udp", "tcp")


@dataclass(frozen=True, slots=True, order=True)
class GroupName:
    """What tells a group from others in its network namespace; ``str()`` gives ``HOST:PORT`` or ``tcp:HOST:PORT``."""

    protocol: str
    address: Address

    @classmethod
    def parse(cls, text: str) -> GroupName:
        """Read ``HOST:PORT``, ``udp:HOST:PORT`` or ``tcp:HOST:PORT``. Raises ConfigurationError."""
        protocol, colon, rest = text.partition(":")
        if colon and protocol in PROTOCOLS:
            return cls(protocol, parse_address(rest))
        return cls("udp", parse_address(text))

    def __str__(self) -> str:
        return str(self.address) if self.protocol == "udp" else f"{self.protocol}:{self.address}"


def group_names(bpffs: Path = BPFFS) -> list[GroupName]:
    """The groups of this network namespace that are pinned in ``bpffs``, in order. Raises PrivilegeError."""
    return sorted(GroupName(protocol, address) for protocol, address in map(names_of, _folders(bpffs)))


def _folders(bpffs: Path) -> dict[str, Path]:
    folder = folder_of_namespace(bpffs)
    try:
        return {path.name: path for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise PrivilegeError(
            f"this user may not read {error.filename}: {error.strerror}", errno=error.errno, hint="run as root"
        ) from error


def the_group(name: GroupName | None, bpffs: Path = BPFFS, *, option: str = "--group ") -> GroupName:
    """``name``, or without one the only group that there is; ``option`` comes before a group where one is chosen.

    Raises GroupNotFoundError, ConfigurationError.
    """
    if name is not None:
        return name
    names = _alive(group_names(bpffs), bpffs)
    if not names:
        raise GroupNotFoundError("there is no group in this network namespace", hint="start a collector: aiolb serve")
    if len(names) > 1:
        listed = ", ".join(map(str, names))
        raise ConfigurationError(
            f"there are {len(names)} groups: {listed}", hint=f"choose one, as in: {option}{names[0]}"
        )
    return names[0]


def _alive(names: list[GroupName], bpffs: Path) -> list[GroupName]:
    """Of several groups those with a live member; all if none has one, or if this user may not look.

    Who tries things out leaves groups behind, and means the one that runs.
    """
    if len(names) <= 1:
        return names
    folders = {GroupName(*names_of(name)): folder for name, folder in _folders(bpffs).items()}
    try:
        return [name for name in names if name in folders and live_members(folders[name])] or names
    except KernelError:
        return names
