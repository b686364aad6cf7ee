"""``aiolb move``: give slots to a member by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.bpf.discovery import the_group
from aiolb.bpf.group_name import GroupName
from aiolb.cli.groups import group_option, opened
from aiolb.cli.texts import some

if TYPE_CHECKING:
    from aiolb.bpf.group import Group


@dataclass(frozen=True, slots=True)
class _Named:
    """What was named: a slot, by its number or by a source in it, and its owner before."""

    slot: int
    source: str | None
    owner: int


@click.command(short_help="Give slots, or the slot of a source, to a member.")
@click.argument("named", nargs=-1, required=True, metavar="SOURCE|SLOT...")
@click.option("--to", "to", type=int, required=True, metavar="INDEX", help="The member that is to have them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@group_option
def move(named: tuple[str, ...], to: int, as_json: bool, group: GroupName | None, bpffs: Path) -> None:
    """Give slots to a member: SLOT by its number, or that of a SOURCE, and all other sources in it.

    A SOURCE is an IP address; with --key flow it is HOST:PORT. The next datagram goes to the new member; what waits in
    the old one's queue is handled there. The slots stay until a count, a weight, a drain or a rebalancing moves them.
    """
    name = the_group(group, bpffs)
    with opened(name, bpffs) as found, found.locked():
        owners = found.slots
        wanted = [_read(found, owners, text) for text in named]
        moved = found.move([one.slot for one in wanted], to=to)
    if as_json:
        moves = [{**asdict(one), "to": to, "moved": one.slot in moved} for one in wanted]
        click.echo(json.dumps({"group": str(name), "moves": moves}))
        return
    for one in wanted:
        where = f"slot {one.slot}" if one.source is None else f"slot {one.slot} ({one.source}, and all sources in it)"
        if one.slot in moved:
            click.echo(f"{where}: member {one.owner} -> member {to}")
        else:
            click.echo(f"{where}: member {to} owns it already")
    click.echo(f"{some(len(moved), 'slot')} moved to member {to}")


def _read(group: Group, owners: list[int], text: str) -> _Named:
    """A slot's number, or a source. Raises ConfigurationError."""
    from aiolb.address import parse_source
    from aiolb.bpf.abi import SLOT_COUNT
    from aiolb.errors import ConfigurationError

    if text.isascii() and text.isdigit():
        if not 0 <= int(text) < SLOT_COUNT:
            raise ConfigurationError(f"{text} is no slot: they are numbered from 0 to {SLOT_COUNT - 1}")
        return _Named(int(text), None, owners[int(text)])
    slot = group.slot_of(*parse_source(text))
    return _Named(slot, text, owners[slot])
