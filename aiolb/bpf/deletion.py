"""Groups taken away, whatever their layout is: one by its name, or all that have no live member."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from aiolb.bpf.discovery import name_of
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.liveness import live_members
from aiolb.bpf.pins import Pins
from aiolb.errors import GroupError, GroupNotFoundError, KernelError, PrivilegeError


def delete(name: GroupName, bpffs: Path, *, force: bool = False) -> list[int]:
    """Remove the group's pins; the members that are alive, which go on, but which nobody can join any more.

    Raises GroupError where some are, without ``force``; GroupNotFoundError, PrivilegeError, KernelError.
    """
    with closing(Pins(name.address, protocol=name.protocol, bpffs=bpffs)) as pins:
        try:
            with pins.locked():
                alive = live_members(pins.folder)
                if alive and not force:
                    listed = ", ".join(map(str, alive))
                    raise GroupError(
                        f"the group at {name} has live members: {listed}",
                        hint=f"stop them first ({pins.command('show')} names their processes), or add --force",
                    )
                _remove(pins)
        except FileNotFoundError as error:
            raise GroupNotFoundError(f"there is no group at {name}", hint="aiolb group show lists them") from error
        return alive


def delete_stale(bpffs: Path) -> tuple[list[Path], list[Path]]:
    """Remove all groups without a live member, of gone network namespaces too; the folders of those removed and kept.

    Those that were prepared for a user are kept: they wait for members. So are those that this user may not look at.
    Raises KernelError.
    """
    removed, kept = [], []
    for folder in filter(name_of, sorted((bpffs / "aiolb").glob("*/*_*_*"))):
        with closing(Pins.at(folder)) as pins:
            try:
                with pins.locked():
                    if live_members(folder):
                        continue
                    if pins.owner.prepared:
                        kept.append(folder)
                        continue
                    _remove(pins)
            except (FileNotFoundError, PrivilegeError):
                continue
            removed.append(folder)
    return removed, kept


def _remove(pins: Pins) -> None:
    try:
        pins.remove()
    except OSError as error:
        raise _error(pins.folder, error) from error


def _error(folder: Path, error: OSError) -> KernelError:
    if isinstance(error, PermissionError):
        return PrivilegeError(
            f"this user may not remove the group in {folder}: {error.strerror}", errno=error.errno, hint="run as root"
        )
    return KernelError(f"the group in {folder} cannot be removed: {error}", errno=error.errno)
