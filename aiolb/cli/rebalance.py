"""``aiolb rebalance``: look at the load of a group's members, and move slots where it is uneven."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.bpf.discovery import the_group
from aiolb.bpf.group_name import GroupName
from aiolb.cli.groups import Seconds, group_option, opened
from aiolb.cli.texts import listed

if TYPE_CHECKING:
    from aiolb.bpf.balance import Balance, Look
    from aiolb.bpf.group import Group
    from aiolb.errors import AiolbError


@dataclass(frozen=True, slots=True)
class _Way:
    """With which group, and how to go about it."""

    name: GroupName
    interval: float
    watch: bool
    dry_run: bool
    as_json: bool


@click.command(short_help="Move few slots, so that no member is much too busy.")
@click.option(
    "--bound",
    type=float,
    default=1.10,
    show_default=True,
    metavar="X",
    help="A member is too busy above X times its share of all packets.",
)
@click.option(
    "--interval",
    type=Seconds(0.1, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to count packets before planning.",
)
@click.option("--watch", is_flag=True, help="Go on, interval after interval, until Ctrl-C.")
@click.option("--dry-run", is_flag=True, help="Show what would be moved, and move nothing.")
@click.option("--max-moves", type=int, metavar="N", help="Move so many slots at once at most.  [default: no limit]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each plan instead of tables.")
@group_option
def rebalance(
    *,
    bound: float,
    interval: float,
    watch: bool,
    dry_run: bool,
    max_moves: int | None,
    as_json: bool,
    group: GroupName | None,
    bpffs: Path,
) -> None:
    """Count the packets of every slot for an interval, and move few slots so that no member is much too busy.

    Hashing gives members even shares of many sources, and cannot when a few send most. The sources of a moved slot
    change their member once, and nothing is lost; all others stay. It moves nothing unless a member is too busy by more
    than chance. With --watch a slot that has moved rests for longer and longer, so that nothing goes to and fro.
    """
    import asyncio

    from aiolb.bpf.balance import Balance

    way = _Way(the_group(group, bpffs), interval, watch, dry_run, as_json)
    with opened(way.name, bpffs) as found:
        asyncio.run(_run(found, Balance(found, bound, limit=max_moves), way))


async def _run(group: Group, balance: Balance, way: _Way) -> None:
    import asyncio

    from aiolb import signals
    from aiolb.waiting import happens

    stopping = asyncio.Event()
    with signals.captured(lambda _: stopping.set()):
        last = balance.look(time.monotonic())
        if last.reading.dead and not way.watch:
            raise _dead(last)
        if not way.as_json:
            every = "every" if way.watch else "for"
            click.echo(f"counting the packets of {way.name} {every} {way.interval:g} s …", err=True)
        while not await happens(stopping, seconds=way.interval):
            look = balance.look(time.monotonic())
            _tell(group, balance, look, last, way)
            last = look
            if not way.watch:
                return
    if not way.watch:
        click.echo("stopped before the interval was over: nothing was moved", err=True)


def _tell(group: Group, balance: Balance, look: Look, last: Look, way: _Way) -> None:
    """Carry the plan out, and show it. Raises AiolbError for a single look that led to nothing."""
    from aiolb.cli import plans
    from aiolb.errors import AiolbError

    if look.reading.dead:
        if not way.watch:
            raise _dead(look)
        if look.reading.dead != last.reading.dead:
            error = _dead(look)
            click.echo(f"{error}; {error.hint}", err=True)
        return
    if look.plan is None and way.watch and not way.as_json:
        return
    seconds = look.reading.now - last.reading.now
    if not way.as_json:
        # Before it is carried out: what is shown is what is about to happen.
        plans.show(way.name, group, look, balance.bound, seconds)
    done = not way.dry_run and balance.carry_out(look)
    if way.as_json:
        click.echo(json.dumps(plans.as_json(way.name, group, look, balance.bound, seconds, applied=done)))
    elif look.plan is not None:
        click.echo("moved" if done else "not moved, because of --dry-run" if way.dry_run else "not moved")
    if look.plan is not None and not done and not way.dry_run:
        error = AiolbError("somebody else has moved slots meanwhile: nothing was moved", hint="run it again")
        if not way.watch:
            raise error
        click.echo(error.message, err=True)


def _dead(look: Look) -> AiolbError:
    from aiolb.errors import AiolbError

    dead = sorted(look.reading.dead)
    many = len(dead) > 1
    return AiolbError(
        f"{listed(dead, 'member')} {'are' if many else 'is'} dead: others do the work, and nothing can be planned",
        hint=f"start {'them' if many else 'it'} again, or: aiolb drain {dead[0]}",
    )
