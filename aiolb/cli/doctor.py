"""``aiolb doctor``: what could keep a collector from working well here, and the command that mends it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.address import PROTOCOLS
from aiolb.bpf.group_name import GroupName
from aiolb.cli.groups import bpffs_option
from aiolb.cli.texts import plain_console, some

if TYPE_CHECKING:
    from aiolb.diagnosis import Diagnosis

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@click.command(short_help="Say what could keep a collector from working well here.")
@click.argument("addresses", nargs=-1, metavar="[[tcp:]HOST:PORT]...")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="udp",
    show_default=True,
    help="What the collector takes, where no tcp: says so: datagrams, or connections.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@bpffs_option
@click.pass_context
def doctor(ctx: click.Context, addresses: tuple[str, ...], protocol: str, as_json: bool, bpffs: Path) -> None:
    """Say what could keep a collector from working well here, and what mends it.

    Looks at the kernel, at what this user may do, and at who is on HOST:PORT (0.0.0.0:10001 if none is given). Run it
    as the user, and in the container, that the collector is to run in. It changes nothing.

    A problem: `aiolb serve` would not work, or would lose a guarantee. A warning: it works, slower or with less.
    Exits 1 if there is a problem.
    """
    from aiolb import sockets
    from aiolb.config import DEFAULT_BIND
    from aiolb.doctor import examine

    told = [GroupName.parse(text, protocol=protocol, resolve=sockets.resolve) for text in addresses]
    found = examine(told or [GroupName(protocol, address) for address in DEFAULT_BIND], bpffs=bpffs)
    levels = Counter(diagnosis.level.value for diagnosis in found)
    if as_json:
        click.echo(json.dumps(_as_json(found, levels)))
    else:
        _show(found, levels)
    if levels["problem"]:
        ctx.exit(1)


def _as_json(found: list[Diagnosis], levels: Counter[str]) -> dict[str, object]:
    return {
        "problems": levels["problem"],
        "warnings": levels["warning"],
        "checks": [{**asdict(one), "level": one.level.value} for one in found],
    }


def _show(found: list[Diagnosis], levels: Counter[str]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    console = plain_console()
    width = max(len(one.check) for one in found)
    for one in found:
        level = one.level.value
        if not console.is_terminal:  # nobody counts the columns of a pipe, and a line is a line
            click.echo(f"{level:7}  {one.check:{width}}  {one.found}")
            for line in _fixes(one):
                click.echo(f"{'':7}  {line}")
            continue
        row = Table.grid(Column(width=7), Column(width=width), Column(), padding=(0, 2, 0, 0))
        row.add_row(Text(level, style=_STYLES[level]), Text(one.check), Text(one.found))
        console.print(row)
        # Further to the left than what was found, so that a command stays in one line.
        fixes = Table.grid(Column(width=7), Column(), padding=(0, 2, 0, 0))
        for line in _fixes(one):
            fixes.add_row("", Text(line))
        if fixes.rows:
            console.print(fixes)
    console.print(_summary(levels))


def _fixes(diagnosis: Diagnosis) -> list[str]:
    fixes = {"fix": diagnosis.fix, "for good": diagnosis.lasting}
    return [f"{name}: {fix}" for name, fix in fixes.items() if fix]


def _summary(levels: Counter[str]) -> str:
    return ", ".join(some(levels[level], level) for level in ("problem", "warning"))
