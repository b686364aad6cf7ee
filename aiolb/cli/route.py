"""``aiolb route``: which member owns a source, and who gets its datagrams now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.address import Address, parse_source
from aiolb.bpf.group_name import GroupName
from aiolb.cli.groups import group_option, opened
from aiolb.cli.texts import plain_console
from aiolb.errors import ConfigurationError

if TYPE_CHECKING:
    from aiolb.address import IPAddress
    from aiolb.bpf.keys import Key
    from aiolb.bpf.rules import GuardRules


@dataclass(frozen=True, slots=True)
class Steering:
    """What decides: the settings and the slot table of a group, and who is alive in it."""

    seed: int
    key: Key
    slots: Sequence[int]
    count: int
    alive: frozenset[int]
    newest: int
    rules: GuardRules


@dataclass(frozen=True, slots=True)
class Route:
    """Where a source goes; ``member`` is who gets its datagrams now, None when nobody does.

    ``dropped_by`` is the rule of the guard that drops them, as it is told to people.
    """

    source: str
    port: int | None
    slot: int
    owner: int
    owner_alive: bool
    member: int | None
    dropped_by: str | None


@click.command(short_help="Tell which member owns a source, and who gets it now.")
@click.argument("sources", nargs=-1, required=True, metavar="ADDR[:PORT]...")
@click.option("--count", type=int, help="Members of a group that need not exist; with --seed.")
@click.option("--seed", type=int, help="Its seed.")
@click.option("--key", help="Its key: source, flow, prefix/24,64.  [default: source]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@group_option
def route(
    *,
    sources: tuple[str, ...],
    count: int | None,
    seed: int | None,
    key: str | None,
    as_json: bool,
    group: GroupName | None,
    bpffs: Path,
) -> None:
    """Tell which member owns each source, whether it is alive, and who gets the source's datagrams now.

    Computed from the group's seed and its slot table as they are now, as the balancer in the kernel does it. PORT is
    the sender's; the key flow needs it. What a rule of the guard drops reaches nobody. With --count and --seed no group
    is looked at: it is what a new group with this count, in which all members are alive, would do.
    """
    wanted = [parse_source(source) for source in sources]
    if count is None and seed is None and key is None:
        steering = _of_group(group, bpffs)
    elif count is None or seed is None or group is not None:
        raise ConfigurationError(
            "without a group both --count and --seed are needed, and --group is not", hint="--count 3 --seed 1"
        )
    else:
        steering = _of_numbers(count, seed, key or "source")
    routes = [_route(steering, source, port) for source, port in wanted]
    if as_json:
        click.echo(json.dumps({"routes": [asdict(one) for one in routes]}))
    else:
        _show(routes)


def _of_group(group: GroupName | None, bpffs: Path) -> Steering:
    with opened(group, bpffs) as found:
        config = found.config
        return Steering(
            config.seed,
            found.key,
            found.slots,
            config.count,
            frozenset(found.alive()),
            config.newest,
            found.guard.rules,
        )


def _of_numbers(count: int, seed: int, key: str) -> Steering:
    from aiolb.bpf import slots
    from aiolb.bpf.group import GroupOptions
    from aiolb.bpf.keys import Key
    from aiolb.bpf.rules import GuardRules

    GroupOptions(count=count, seed=seed)  # which checks them
    return Steering(seed, Key.parse(key), slots.assign(count), count, frozenset(range(count)), 0, GuardRules())


def _route(steering: Steering, source: IPAddress, port: int | None) -> Route:
    from aiolb.bpf.hashing import choose

    key = steering.key.told_by(source, port)
    slot, member = choose(steering.seed, key, steering.slots, steering.count, steering.alive, newest=steering.newest)
    owner, dropped_by = steering.slots[slot], steering.rules.dropped_by(source)
    return Route(str(source), port, slot, owner, owner in steering.alive, None if dropped_by else member, dropped_by)


def _show(routes: Sequence[Route]) -> None:
    from aiolb.cli.table import Column, lines

    columns = [
        Column("SOURCE", [_source(one) for one in routes], 0, left=True),
        Column("SLOT", [str(one.slot) for one in routes], 0),
        Column("OWNER", [str(one.owner) for one in routes], 0),
        Column("STATE", ["alive" if one.owner_alive else "dead" for one in routes], 0, left=True),
        Column("NOW AT", ["nobody" if one.member is None else str(one.member) for one in routes], 0),
    ]
    if any(one.dropped_by for one in routes):
        columns.append(Column("GUARD", [one.dropped_by or "" for one in routes], 0, left=True))
    console = plain_console(soft_wrap=True)
    for line in lines(columns, ["" if one.owner_alive and not one.dropped_by else "bold red" for one in routes]):
        console.print(line)


def _source(one: Route) -> str:
    return one.source if one.port is None else str(Address(one.source, one.port))
