"""``aiolb weight``, ``drain`` and ``undrain``: how much a member is to have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.cli.groups import group_option, opened
from aiolb.cli.texts import some

if TYPE_CHECKING:
    from aiolb.bpf.group import Group
    from aiolb.bpf.group_name import GroupName

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a line.")


@click.command(short_help="Change a member's part of the slots.")
@click.argument("index", type=int)
@click.argument("weight", type=int, metavar="N")
@_json_option
@group_option
def weight(index: int, weight: int, as_json: bool, group: GroupName | None, bpffs: Path) -> None:
    """Give member INDEX the weight N, 0 … 1000: its part of the slots beside the others' weights.

    Members have 100 unless told otherwise, so one with 300 gets three times the sources of one with 100. Only the
    slots move that must.
    """
    with opened(group, bpffs) as found:
        moved = found.set_weight(index, weight)
        _tell(found, index, f"member {index} has the weight {weight}", moved, as_json=as_json)


@click.command(short_help="Give the slots of a member to the others, and let it live.")
@click.argument("index", type=int)
@_json_option
@group_option
def drain(index: int, as_json: bool, group: GroupName | None, bpffs: Path) -> None:
    """Give the slots of member INDEX to the others, and let it live: before work on it, or to look at it.

    It handles what is in its queue, and gets nothing more until `aiolb undrain`; also a process that joins in its place
    does not. The last member that is alive cannot be drained.
    """
    with opened(group, bpffs) as found:
        moved = found.drain(index)
        _tell(found, index, f"member {index} is drained", moved, as_json=as_json)


@click.command(short_help="Give a drained member its share of the slots again.")
@click.argument("index", type=int)
@_json_option
@group_option
def undrain(index: int, as_json: bool, group: GroupName | None, bpffs: Path) -> None:
    """Give member INDEX its share of the slots again, after `aiolb drain`.

    Slots move from the others to it, as many as it had and not always the same ones.
    """
    with opened(group, bpffs) as found:
        was_drained = found.holder(index).drained if 0 <= index < found.config.count else False
        moved = found.undrain(index)
        what = "is not drained any more" if was_drained else "was not drained"
        _tell(found, index, f"member {index} {what}", moved, as_json=as_json)


def _tell(group: Group, index: int, what: str, moved: dict[int, int], *, as_json: bool) -> None:
    holder, owned = group.holder(index), group.slots.count(index)
    if as_json:
        said: dict[str, Any] = {"group": str(group.name), "member": index, "weight": holder.weight}
        click.echo(json.dumps({**said, "drained": bool(holder.drained), "slots": owned, "moved": len(moved)}))
        return
    click.echo(f"{what}: {some(len(moved), 'slot')} moved, and it owns {owned:,} of {len(group.slots):,}")
    if group.cookie_of(index) is None:
        click.echo("  it is dead: what it owns goes to others until it is back", err=True)
