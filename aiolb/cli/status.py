"""``aiolb status``: every group of this network namespace and its members, as they are now."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiolb.bpf.discovery import group_names, the_group
from aiolb.bpf.group_name import GroupName
from aiolb.cli import units
from aiolb.cli.groups import MIN_INTERVAL, GroupType, Seconds, bpffs_option, opened
from aiolb.cli.texts import folded, plain_console
from aiolb.errors import AiolbError, ConfigurationError, GroupNotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from aiolb.bpf.group import Group
    from aiolb.bpf.snapshot import GroupSnapshot, MemberRates, MemberSnapshot
    from aiolb.cli.hints import Hint
    from aiolb.cli.table import Column


@dataclass(frozen=True)
class Reading:
    """A group now, and its members' rates since a moment ago; None where only one look was taken."""

    group: GroupSnapshot
    rates: list[MemberRates] | None


@click.command(short_help="Tell of groups and of each of their members.")
@click.argument("group", type=GroupType(), required=False, metavar="[[tcp:]HOST:PORT]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--interval",
    type=Seconds(0, 3600),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help=f"Time between the two looks that rates come from, {MIN_INTERVAL} at least; "
    "0 looks once, and tells totals only.",
)
@click.option("--member", type=click.IntRange(0), metavar="INDEX", help="Tell of this member only.")
@click.option(
    "--newer",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="Exit 1, too, while a member joined before FILE was last written: to wait for the end of a takeover.",
)
@click.option("--wide", is_flag=True, help="Print all columns, however wide the terminal is.")
@bpffs_option
@click.pass_context
def status(
    ctx: click.Context,
    *,
    group: GroupName | None,
    as_json: bool,
    interval: float,
    member: int | None,
    newer: Path | None,
    wide: bool,
    bpffs: Path,
) -> None:
    """Tell of a group and of each of its members, or of all groups of this network namespace.

    It reads what the kernel counts and what the members tell in shared memory: nobody is asked, and no supervisor
    is needed. Datagrams, bytes, errors and sources count from when the member's socket joined; failovers from when
    the group was made.

    Exits 1 if a member is dead or silent, or a group cannot be looked at, so that it can be a healthcheck; with
    --member, if that one is.
    """
    if 0 < interval < MIN_INTERVAL:
        raise ConfigurationError(
            f"{interval} s is too short: members tell of themselves four times a second",
            hint=f"--interval {MIN_INTERVAL}, or 0 for one look",
        )
    readings, unseen = _readings(group, interval, member, bpffs)
    for error in unseen:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        click.echo(f"aiolb: warning: {error}{hint}", err=True)
    shown = [[one for one in reading.group.members if member in (None, one.index)] for reading in readings]
    if as_json:
        click.echo(json.dumps({"groups": [_as_json(reading, of) for reading, of in zip(readings, shown, strict=True)]}))
    else:
        _show(readings, shown, bpffs, wide=wide)
    old = [] if newer is None else _joined_before(newer.stat().st_mtime_ns, shown)
    if old and not as_json:
        click.echo(f"hint: index {', '.join(old)} joined before {newer} was written")
    if old or unseen or any(one.state != "alive" for members in shown for one in members):
        ctx.exit(1)


def _joined_before(moment_ns: int, shown: list[list[MemberSnapshot]]) -> list[str]:
    return [str(one.index) for members in shown for one in members if one.kernel.joined_ns < moment_ns]


def _readings(
    group: GroupName | None, interval: float, member: int | None, bpffs: Path
) -> tuple[list[Reading], list[AiolbError]]:
    """Look at the groups, twice unless the interval is 0; and why some of several cannot be looked at.

    Raises GroupNotFoundError, ConfigurationError, and where there is one group alone why it cannot be looked at.
    """
    from aiolb.bpf import snapshot

    # For a single member one group is meant; else where there is none the error says so.
    names = group_names(bpffs) if group is None and member is None else []
    names = names or [the_group(group, bpffs, option="aiolb status ")]
    with ExitStack() as stack:
        groups, unseen = _open_all(names, bpffs, stack)
        before = [snapshot.take(found) for found in groups]
        if interval:
            time.sleep(interval)
        after = [snapshot.take(found) for found in groups] if interval else before
    for one in after:
        if member is not None and member >= len(one.members):
            raise ConfigurationError(f"the group at {one.name} has {len(one.members)} members: no index {member}")
    rates = [snapshot.rates(*both) if interval else None for both in zip(before, after, strict=True)]
    return [Reading(*both) for both in zip(after, rates, strict=True)], unseen


def _open_all(names: list[GroupName], bpffs: Path, stack: ExitStack) -> tuple[list[Group], list[AiolbError]]:
    """Those that can be looked at, and why others cannot. Raises an error of theirs where none can be."""
    found, errors = [], []
    for name in names:
        try:
            found.append(stack.enter_context(opened(name, bpffs)))
        except AiolbError as error:
            errors.append(error)
    unseen = [error for error in errors if not isinstance(error, GroupNotFoundError)]  # deleted since they were listed
    if not found:
        raise (unseen or errors)[0]
    return found, unseen


def _as_json(reading: Reading, members: list[MemberSnapshot]) -> dict[str, Any]:
    from dataclasses import asdict

    rates = reading.rates
    told = [{**one.as_dict(), "rates": asdict(rates[one.index]) if rates is not None else None} for one in members]
    return {**reading.group.as_dict(), "members": told}


def _show(readings: list[Reading], shown: list[list[MemberSnapshot]], bpffs: Path, *, wide: bool) -> None:
    from aiolb.cli.hints import hints
    from aiolb.cli.table import fitting, lines

    console = plain_console(soft_wrap=True)
    # Nobody counts the columns of a pipe.
    width = console.width if console.is_terminal and not wide else None
    for number, (reading, members) in enumerate(zip(readings, shown, strict=True)):
        if number:
            console.print()
        _show_group(console, reading.group, width)
        what = "CONNECTIONS" if reading.group.name.protocol == "tcp" else "DATAGRAMS"
        columns = fitting(_columns(members, reading.rates, what), width)
        for line in lines(columns, [units.STYLES[one.state] for one in members]):
            console.print(line)
        _show_hints(console, hints(reading.group, members, reading.rates, bpffs=bpffs), width)


def _show_group(console: Console, group: GroupSnapshot, width: int | None) -> None:
    kernel = group.kernel
    what = units.alive(group)
    if group.empty:
        what = f"{'stale' if group.stale else f'prepared for {group.prepared}'}: nobody is alive"
    well = all(one.state == "alive" for one in group.members)
    console.print(f"{group.name.protocol} {group.name.address}", style="bold", end="")
    console.print(f"  {what}", style="green" if well else "bold red")
    since = units.moment(group.created_ns, datetime.now(UTC))
    settings = [f"balancer {group.balancer}", f"key {kernel.key}", *(["strict"] if kernel.strict else [])]
    for line in folded([*settings, f"since {since}", f"seed {kernel.seed}"], width):
        console.print(line)
    sources = f"sources {units.sources(group.sketch)}, " if group.told else ""
    console.print(f"{sources}failovers {kernel.failovers}, unsteered {kernel.unsteered}, dropped {kernel.dropped}")
    if kernel.denied or kernel.unlisted or kernel.limited:
        console.print(f"guard: denied {kernel.denied}, not listed {kernel.unlisted}, over the limit {kernel.limited}")


def _columns(members: list[MemberSnapshot], rates: list[MemberRates] | None, what: str) -> list[Column]:
    from aiolb.cli.table import Column

    now = datetime.now(UTC)

    def told(name: str) -> list[Any]:
        return [getattr(one.told, name) if one.told else None for one in members]

    def rate(name: str) -> list[float | None]:
        return [getattr(rates[one.index], name) if rates is not None and one.told else None for one in members]

    weights = [str(one.kernel.weight) for one in members]
    losing = any(rate("kernel_drops"))
    quiet = not any(rate("datagrams"))
    columns = [
        Column("MEMBER", [str(one.index) for one in members], 0),
        Column("STATE", [units.state(one) for one in members], 0, left=True),
        Column("PID", [str(one.pid or "-") for one in members], 6),
        Column("USER", [units.user(one.uid) if one.pid else "-" for one in members], 12, left=True),
        Column("SINCE", [units.moment(one.kernel.joined_ns, now) for one in members], 13, left=True),
        Column("SLOTS", [str(one.kernel.slots) for one in members], 8),
        Column("WEIGHT", weights, 3 if len(set(weights)) > 1 else 17),
        Column("SOURCES", [units.count(one.sources) for one in members], 9),
        Column("RATE/S", list(map(units.count, rate("datagrams"))), 2),
        Column("SHARE", [units.percent(None if quiet else share) for share in rate("share")], 4),
        Column(what, ["-" if number is None else str(number) for number in told("received")], 1),
        *([Column("OPEN", list(map(units.count, told("in_flight"))), 2)] if what == "CONNECTIONS" else []),
        Column("BYTES", list(map(units.size, told("received_bytes"))), 15),
        Column("QUEUE", [units.fullness(one.queue) for one in members], 5),
        Column("DROPS", list(map(units.count, told("kernel_drops"))), 1),
        Column("DROPS/S", list(map(units.count, rate("kernel_drops"))), 2 if losing else 16),
        Column("FAILOVERS", [units.count(one.kernel.failovers) for one in members], 14),
        Column("ERRORS", list(map(units.count, told("errors"))), 3),
        Column("P50", [units.below(one.handler_ns(50)) for one in members], 11),
        Column("P99", [units.below(one.handler_ns(99)) for one in members], 7),
    ]
    return [column for column in columns if rates is not None or column.title not in ("RATE/S", "SHARE", "DROPS/S")]


def _show_hints(console: Console, found: list[Hint], width: int | None) -> None:
    for hint in found:
        line = f"hint: {hint.what}: {hint.fix}"
        # What is to be done is a command more often than not: it has a line of its own rather than being cut.
        console.print(line if width is None or len(line) <= width else f"hint: {hint.what}:\n  {hint.fix}")
