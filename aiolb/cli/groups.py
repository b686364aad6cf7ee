"""What commands that look at a group share: ``--group``, ``--bpffs``, and the group opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aiolb import sockets
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.discovery import group_names, the_group
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.pins import in_bpffs
from aiolb.errors import GroupNotFoundError

if TYPE_CHECKING:
    from aiolb.bpf.group import Group

MIN_INTERVAL = 0.5
"""Seconds between two looks, at least: members tell of themselves four times a second."""
MOST_HOLDERS = 4
"""Processes on a port that an error names."""

_F = TypeVar("_F", bound=Callable[..., Any])


class GroupType(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """A group by its address, ``HOST:PORT`` or ``tcp:HOST:PORT``."""

    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GroupName:  # noqa: ARG002 - click's own signature
        """Read the address; its mistakes are told as ours."""
        return value if isinstance(value, GroupName) else GroupName.parse(value)


class Seconds(click.FloatRange):
    """Seconds in a range; click takes ``nan`` to be in every one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number; its mistakes are told as click's own."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


bpffs_option = click.option(
    "--bpffs",
    type=click.Path(path_type=Path, readable=False),  # who may not read it is told more of it later
    default=BPFFS,
    show_default=True,
    help="Where the BPF file system is mounted; groups are pinned there.",
)


def group_option(command: _F) -> _F:
    """Add ``--group`` and ``--bpffs`` to a command; the arguments ``group`` and ``bpffs`` are for :func:`opened`."""
    option = click.option(
        "--group", type=GroupType(), metavar="[tcp:]HOST:PORT", help="Which group.  [default: the only one here]"
    )
    return option(bpffs_option(command))


def _what_is_there(name: GroupName, bpffs: Path) -> GroupNotFoundError | None:
    """Why there is nothing to look at where something may well be; None where nothing is."""
    other = GroupName("udp" if name.protocol == "tcp" else "tcp", name.address)
    holders = sorted({str(one) for one in sockets.holders_of(name.address, protocol=name.protocol)})
    if holders:
        listed = "; ".join(holders[:MOST_HOLDERS]) + ("; …" if len(holders) > MOST_HOLDERS else "")
        return GroupNotFoundError(
            f"no group is pinned for {name.protocol} {name.address}; who has the port: {listed}",
            hint="a collector with --balancer classic or none, or without a BPF file system, tells of itself in its log"
            f" and with --metrics; if it was started with another --bpffs than {bpffs}, name that one",
        )
    if other in group_names(bpffs):
        return GroupNotFoundError(
            f"there is no {name.protocol} group at {name.address}, but a {other.protocol} group",
            hint=f"aiolb status {other.protocol}:{name.address}{in_bpffs(bpffs)}",
        )
    return None


@contextmanager
def opened(group: GroupName | None, bpffs: Path) -> Iterator[Group]:
    """The group that was named, or the only one.

    Raises GroupNotFoundError, which says who is there instead, ConfigurationError, GroupError, KernelError.
    """
    from aiolb.bpf.group import Group

    name = the_group(group, bpffs)
    try:
        found = Group.open(name.address, protocol=name.protocol, bpffs=bpffs)
    except GroupNotFoundError as error:
        raise _what_is_there(name, bpffs) or error from error
    with closing(found):
        yield found
