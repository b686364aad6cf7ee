"""``aiolb guard``: what a group drops before any member gets it; shown, and changed while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.cli.groups import group_option, opened
from aiolb.cli.texts import plain_console
from aiolb.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from aiolb.bpf.group import Group
    from aiolb.bpf.group_name import GroupName
    from aiolb.bpf.guard import GuardStatistics
    from aiolb.bpf.rules import GuardRules, Limit


@click.command(short_help="Show, and change, what is dropped before any member.")
@group_option
@click.option("--allow", multiple=True, metavar="CIDR|@FILE", help="Add a rule that lets a network pass.")
@click.option("--deny", multiple=True, metavar="CIDR|@FILE", help="Add a rule that drops what a network sends.")
@click.option("--remove", multiple=True, metavar="CIDR|@FILE", help="Remove the rule for a network.")
@click.option("--clear", is_flag=True, help="Remove all rules that are not given in the same command.")
@click.option("--limit-source", metavar="PPS[:BURST]|off", help="Set or end the limit of each source.")
@click.option("--top", type=click.IntRange(0), metavar="N", default=10, show_default=True, help="Offenders to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def guard(
    group: GroupName | None,
    bpffs: Path,
    *,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    remove: tuple[str, ...],
    clear: bool,
    limit_source: str | None,
    top: int,
    as_json: bool,
) -> None:
    """Show, and change, what a group drops before any member gets it.

    Rules come first: of those that a source is in, the one with the longest prefix decides. A source that is in none
    passes, unless there is a rule that allows others. Then the limit: packets a second of one source (of a /64 for
    IPv6), and how many at once. A train of datagrams is one packet, and so is a new TCP connection.

    --allow, --deny, --remove and --clear change the rules at once, and rules that stay go on counting.
    @FILE has a network a line; # begins a comment.
    """
    with opened(group, bpffs) as found:
        if allow or deny or remove or clear or limit_source is not None:
            _change(found, allow, deny, remove, clear=clear, limit_source=limit_source)
        statistics = found.guard.statistics(top=top)
    if as_json:
        click.echo(json.dumps(_as_json(found.name, statistics)))
    else:
        _show(found.name, statistics)


def _change(
    group: Group,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    remove: tuple[str, ...],
    *,
    clear: bool,
    limit_source: str | None,
) -> None:
    from aiolb.bpf.rules import GuardOptions, GuardRules, networks

    wanted = GuardOptions.parse(allow, deny, limit_source)
    gone = list(networks(remove))
    if clear and gone:
        raise ConfigurationError("--clear removes all rules already", hint="leave --remove out")
    with group.locked():
        rules: GuardRules = GuardRules() if clear else group.guard.rules.without(gone)
        group.guard.set_rules(rules if wanted.rules is None else rules.with_rules(wanted.rules))
        if wanted.limit is not None:
            group.guard.set_limit(wanted.limit)


def _as_json(name: GroupName, statistics: GuardStatistics) -> dict[str, Any]:
    limit = statistics.limit
    return {
        "group": str(name),
        "rules": [
            {
                "network": str(rule.network),
                "action": _action(allowed=rule.allowed),
                "packets": rule.packets,
                "bytes": rule.bytes,
            }
            for rule in statistics.rules
        ],
        "others": _others(statistics),
        "limit": {"pps": limit.pps, "burst": limit.burst} if limit else None,
        "denied": statistics.denied,
        "unlisted": statistics.unlisted,
        "limited": statistics.limited,
        "offenders": [{"source": str(one.source), "packets": one.packets} for one in statistics.offenders],
    }


def _action(*, allowed: bool) -> str:
    return "allow" if allowed else "deny"


def _others(statistics: GuardStatistics) -> str:
    return "drop" if statistics.listed_only else "pass"


def _show(name: GroupName, statistics: GuardStatistics) -> None:
    console = plain_console()
    console.print(f"guard of the group at {name}\n")
    if statistics.rules:
        console.print(_rules(statistics))
        console.print()
    else:
        console.print("rules: none, every source passes")
    console.print(f"limit: {_said(statistics.limit)}")
    console.print(f"dropped: {_dropped(statistics)}")
    if statistics.offenders:
        console.print()
        console.print(_offenders(statistics))


def _dropped(statistics: GuardStatistics) -> str:
    if not (statistics.denied or statistics.unlisted or statistics.limited):
        return "nothing"
    by_rules = f"{statistics.denied:,} packet{'' if statistics.denied == 1 else 's'} by rules"
    return f"{by_rules}, {statistics.unlisted:,} that no rule allows, {statistics.limited:,} over the limit"


def _said(limit: Limit) -> str:
    if not limit:
        return "none"
    return f"{limit.pps:,.12g} packets a second from each source, {limit.burst:,} at once"


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("packets", "bytes") else "left", overflow="fold")
    return table


def _rules(statistics: GuardStatistics) -> Table:
    table = _table("network", "rule", "packets", "bytes")
    for rule in statistics.rules:
        network, action = str(rule.network), _action(allowed=rule.allowed)
        table.add_row(network, action, f"{rule.packets:,}", f"{rule.bytes:,}")
    table.add_row("all others", _others(statistics), "", "")
    return table


def _offenders(statistics: GuardStatistics) -> Table:
    table = _table("over the limit", "packets")
    for offender in statistics.offenders:
        table.add_row(str(offender.source), f"{offender.packets:,}")
    return table
