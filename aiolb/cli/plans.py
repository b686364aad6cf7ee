"""How a plan to move slots is shown: tables for people, a JSON object for programs."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

import click

from aiolb.cli.texts import plain_console, some

if TYPE_CHECKING:
    from aiolb.address import IPAddress
    from aiolb.bpf.balance import Look
    from aiolb.bpf.group import Group
    from aiolb.bpf.group_name import GroupName

ROWS = 20
"""Rows of a table at most; JSON has everything."""
OVERSIZED = 5
"""Slots that are too big, at most."""


def as_json(
    name: GroupName, group: Group, look: Look, bound: float, seconds: float, *, applied: bool
) -> dict[str, Any]:
    """All that is known. Loads are packets per second, and a train is one packet."""
    after = look.members if look.plan is None else look.plan.after
    members = zip(look.reading.shares, look.members, after, strict=True)
    sources = _sources(group, look)
    return {
        "group": str(name),
        "seconds": round(seconds, 3),
        "bound": bound,
        "busiest_before": round(look.imbalance, 4),
        "busiest_after": round(look.imbalance_after, 4),
        "members": [
            {"index": index, "weight": weight, "before": round(old / seconds, 3), "after": round(new / seconds, 3)}
            for index, (weight, old, new) in enumerate(members)
        ],
        "moves": [
            {"slot": slot, "from": owner, "to": to, "load": round(load / seconds, 3)}
            for slot, owner, to, load in _moves(look)
        ],
        "oversized": [
            {
                "slot": slot,
                "member": look.reading.slots[slot],
                "load": round(load / seconds, 3),
                "sources": [str(source) for source in sources.get(slot, [])],
            }
            for slot, load in look.oversized
        ],
        "reached": look.imbalance <= bound if look.plan is None else look.plan.reached,
        "limited": look.plan is not None and look.plan.limited,
        "applied": applied,
    }


def _sources(group: Group, look: Look) -> dict[int, list[IPAddress]]:
    """Who sends what is too big, as far as members have told."""
    from aiolb.bpf.slot_sources import sources_in

    return sources_in(group, [slot for slot, _ in look.oversized]) if look.oversized else {}


def _moves(look: Look) -> list[tuple[int, int, int, float]]:
    """Slot, owner, new owner, load."""
    moves = {} if look.plan is None else look.plan.moves
    return [(slot, look.reading.slots[slot], to, look.loads[slot]) for slot, to in moves.items()]


def show(name: GroupName, group: Group, look: Look, bound: float, seconds: float) -> None:
    """Print it, 80 columns wide."""
    total = sum(look.loads)
    if not total:
        click.echo(f"{name}: no packets in {seconds:.1f} s, so there is nothing to even out")
        return
    click.echo(
        f"{name}: {total / seconds:,.0f} packets/s for {some(len(look.members), 'member')}\n"
        f"the busiest has {_times(look.imbalance)} its share; the bound is {bound:g}"
    )
    if look.plan is None:
        click.echo(_why_nothing(look, bound))
    else:
        console = plain_console()
        console.print(_members(look, seconds))
        console.print(_slots(look, seconds))
        click.echo(_outcome(look))
    if look.oversized:
        _show_oversized(group, look)


def _show_oversized(group: Group, look: Look) -> None:
    """What no move can mend."""
    sources = _sources(group, look)
    total = sum(look.loads)
    click.echo(f"too big, for a member's share is {look.share / total:.1%} of all packets:")
    for slot, load in look.oversized[:OVERSIZED]:
        found = ", ".join(map(str, sources.get(slot, [])))
        click.echo(f"  slot {slot} of member {look.owner_after(slot)} has {load / total:.1%}{found and f': {found}'}")
    if len(look.oversized) > OVERSIZED:
        click.echo(f"  … and {some(len(look.oversized) - OVERSIZED, 'more slot')}")
    click.echo("  each is most likely a single source: only --key flow can split it")


def _times(imbalance: float) -> str:
    return "load beyond" if imbalance == float("inf") else f"{imbalance:.2f} times"


def _why_nothing(look: Look, bound: float) -> str:
    """Why there is no plan."""
    from aiolb.bpf.rebalancing import CERTAIN

    if look.imbalance <= bound:
        return "nothing to move"
    busiest = max(look.members)
    excess = busiest * (1 - bound / look.imbalance)
    if excess <= CERTAIN * sqrt(busiest):
        return f"nothing to move for certain: {busiest:,.0f} packets are few, and more would tell (--interval)"
    if look.oversized:
        return "nothing to move: what is too big cannot be split"
    return "nothing to move: no move makes it more even"


def _outcome(look: Look) -> str:
    plan = look.plan
    assert plan is not None  # noqa: S101 - the caller looked
    said = f"{some(len(plan.moves), 'slot')} to move; then the busiest has {_times(look.imbalance_after)} its share"
    if plan.limited:
        return f"{said}, and more moves would help (--max-moves)"
    return said if plan.reached else f"{said}, and no more is possible"


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _members(look: Look, seconds: float) -> Any:
    """The members whose load changes, or all where they are few."""
    plan = look.plan
    assert plan is not None  # noqa: S101 - the caller looked
    table = _table("member", "weight", "packets/s", "share", "then packets/s", "share")
    mean = sum(look.members) / sum(look.reading.shares)
    rows = list(enumerate(zip(look.reading.shares, look.members, plan.after, strict=True)))
    if len(rows) > ROWS:
        rows = [row for row in rows if row[1][1] != row[1][2]]
        rows.sort(key=lambda row: -abs(row[1][1] - row[1][2]))
    for index, (weight, before, after) in rows[:ROWS]:
        shares = [f"{load / (weight * mean):.2f}" if weight else "-" for load in (before, after)]
        table.add_row(
            str(index), str(weight), f"{before / seconds:,.1f}", shares[0], f"{after / seconds:,.1f}", shares[1]
        )
    _note_rest(table, len(look.members) - len(rows[:ROWS]), "other members")
    return table


def _slots(look: Look, seconds: float) -> Any:
    table = _table("slot", "packets/s", "from member", "to member")
    moves = _moves(look)
    for slot, owner, to, load in moves[:ROWS]:
        table.add_row(str(slot), f"{load / seconds:,.1f}", str(owner), str(to))
    _note_rest(table, len(moves) - ROWS, "more slots")
    return table


def _note_rest(table: Any, number: int, what: str) -> None:
    if number > 0:
        table.caption = f"… and {number:,} {what}"
        table.caption_justify = "left"
