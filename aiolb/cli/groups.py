"""What commands that look at a group share: ``--group``, ``--bpffs``, and the group opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aiolb.bpf.abi import BPFFS
from aiolb.bpf.discovery import GroupName, the_group

if TYPE_CHECKING:
    from aiolb.bpf.group import Group

_F = TypeVar("_F", bound=Callable[..., Any])


class GroupType(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """A group by its address, ``HOST:PORT`` or ``tcp:HOST:PORT``."""

    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GroupName:  # noqa: ARG002 - click's own signature
        """Read the address; its mistakes are told as ours."""
        return value if isinstance(value, GroupName) else GroupName.parse(value)


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


@contextmanager
def opened(group: GroupName | None, bpffs: Path) -> Iterator[Group]:
    """The group that was named, or the only one. Raises GroupNotFoundError, ConfigurationError, GroupError."""
    from aiolb.bpf.group import Group

    name = the_group(group, bpffs)
    found = Group.open(name.address, protocol=name.protocol, bpffs=bpffs)
    try:
        yield found
    finally:
        found.close()
