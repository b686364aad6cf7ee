"""``aiolb doctor``: what could keep a collector from working well here, and the command that mends it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.bpf.abi import BPFFS

if TYPE_CHECKING:
    from aiolb.diagnosis import Diagnosis

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@click.command()
@click.argument("addresses", nargs=-1, metavar="[HOST:PORT]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option(
    "--bpffs",
    type=click.Path(path_type=Path),
    default=BPFFS,
    show_default=True,
    help="Where the BPF file system is mounted.",
)
@click.pass_context
def doctor(ctx: click.Context, addresses: tuple[str, ...], as_json: bool, bpffs: Path) -> None:
    """Say what could keep a collector from working well here, and what mends it.

    Looks at the kernel, at what this user may do, and at who is on HOST:PORT (0.0.0.0:10001 if none is given). Run it
    as the user, and in the container, that the collector is to run in. It changes nothing.

    A problem: `aiolb serve` would not work, or would lose a guarantee. A warning: it works, slower or with less.
    Exits 1 if there is a problem.
    """
    from aiolb import sockets
    from aiolb.config import DEFAULT_BIND
    from aiolb.doctor import examine

    found = examine(sockets.resolve_all(addresses) or DEFAULT_BIND, bpffs=bpffs)
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
        "checks": [{"check": one.check, "level": one.level.value, "found": one.found, "fix": one.fix} for one in found],
    }


def _show(found: list[Diagnosis], levels: Counter[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    first, second = 7, max(len(one.check) for one in found)
    for one in found:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=first)
        line.add_column(width=second)
        line.add_column()
        level = Text(one.level.value, style=_STYLES[one.level.value])
        # In a pipe nobody counts columns, and a line is a line.
        if console.is_terminal:
            line.add_row(level, one.check, Text(one.found))
            console.print(line)
        else:
            click.echo(f"{one.level.value:{first}}  {one.check:{second}}  {one.found}")
        if one.fix:
            # Not wrapped by us, so that it can be copied in one piece.
            console.print(Text(f"{'':{first}}  {'':{second}}  fix: {one.fix}"), soft_wrap=True)
    console.print(_summary(levels))


def _summary(levels: Counter[str]) -> str:
    def some(level: str) -> str:
        return f"{levels[level] or 'no'} {level}{'' if levels[level] == 1 else 's'}"

    return f"{some('problem')}, {some('warning')}"
