"""``aiolb trace``: the balancer's decisions as it makes them, a line for each packet."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.address import Address
from aiolb.cli.groups import group_option, opened
from aiolb.errors import GroupNotFoundError

if TYPE_CHECKING:
    from aiolb.bpf.events import Decision, EventReader
    from aiolb.bpf.group import Group
    from aiolb.bpf.group_name import GroupName
    from aiolb.cli.ending import Ending

POLL = 0.05
"""Seconds between two looks into the buffer: the program wakes nobody, which would cost it more than steering."""

_COLOURS = {"failover": "yellow", "unsteered": "yellow"}  # the others, but for steer, are dropped packets
_LINE = "{:15}  {:21}  {:>6}  {:>5}  {:>6}  {}"


@click.command(short_help="Show the balancer's decisions as it makes them.")
@group_option
@click.option("--source", metavar="CIDR", help="Only packets of sources in this network.")
@click.option("--sample", type=click.IntRange(1), default=1, metavar="N", help="One of N packets, by chance.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N decisions.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def trace(
    group: GroupName | None,
    bpffs: Path,
    *,
    source: str | None,
    sample: int,
    count: int | None,
    as_json: bool,
) -> None:
    """Show the balancer's decisions as it makes them, until Ctrl-C.

    A line for each packet: when, from where, its UDP payload in bytes, its slot, the member that was selected, and
    why: steer (to the slot's owner), failover (the owner is dead), unsteered (nobody is alive: the kernel decides),
    drop (the same, with --strict), and of the guard deny, unlisted and limit. A train of datagrams is one packet.

    The balancer never waits for this command: it counts the decisions that find no room, and they are told at the
    end. Steering is slower while it runs, so choose with --source or --sample where packets are many.
    """
    from aiolb.address import parse_network
    from aiolb.bpf.events import EventFilter
    from aiolb.cli.ending import until_signal

    wanted = EventFilter(None if source is None else parse_network(source), sample)
    with opened(group, bpffs) as found, closing(found.events(wanted)) as reader:
        printer = _Printer(found, count, as_json=as_json)
        with until_signal() as ending:
            reader.start()
            try:
                printer.begin()
                gone = _follow(found, reader, printer, ending)
            finally:
                reader.stop()
        printer.show(reader.rest())
        printer.finish()
        _summary(reader, printer)
    if gone:
        raise GroupNotFoundError(f"the group at {found.name} is gone", hint="start it again, and aiolb trace then")


def _follow(group: Group, reader: EventReader, printer: _Printer, ending: Ending) -> bool:
    """Show decisions until there are enough, or a signal comes; whether the group ended before."""
    while not (ending.came or printer.done):
        decisions = reader.read()
        printer.show(decisions)
        printer.flush(ending)
        if not decisions:
            printer.tell_pauses(reader.pauses)
            if group.deleted:
                return True
            ending.wait(POLL)
    return False


def _summary(reader: EventReader, printer: _Printer) -> None:
    shown, lost = printer.shown, reader.lost
    click.echo(f"aiolb: {shown:,} decision{'' if shown == 1 else 's'} shown, {lost:,} lost", err=True)
    if lost:
        click.echo("  hint: choose with --source or --sample; lost ones are counted, and slow nothing down", err=True)
    printer.tell_pauses(reader.pauses)


class _Printer:
    """Writes decisions to standard output, as lines of text or of JSON: so many, or with None all."""

    def __init__(self, group: Group, count: int | None, *, as_json: bool) -> None:
        self.shown = 0
        self._count = count
        self._pauses = 0
        self._fd = sys.stdout.fileno()
        self._pending = b""
        self._group = group
        self._key = str(group.key)
        self._as_json = as_json
        self._begin_ns = time.time_ns() - time.monotonic_ns()
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    @property
    def done(self) -> bool:
        """Whether as many were taken as are to be shown."""
        return self.shown == self._count

    def begin(self) -> None:
        """Say what will be shown, apart from it: to standard error, but for the heading of a terminal."""
        until = "" if self._count else ", until Ctrl-C"
        click.echo(f"aiolb: decisions of the group at {self._group.name}, whose key is {self._key}{until}", err=True)
        if sys.stdout.isatty() and not self._as_json:
            print(_LINE.format("time", "source", "bytes", "slot", "member", "decision"), flush=True)

    def show(self, decisions: Sequence[Decision]) -> None:
        """Take these, to be written next; none beyond those that are to be shown."""
        if decisions := decisions[: None if self._count is None else self._count - self.shown]:
            owners = self._group.slots
            line = self._json if self._as_json else self._text
            self._pending += "".join(f"{line(one, owners)}\n" for one in decisions).encode()
            self.shown += len(decisions)

    def flush(self, ending: Ending) -> None:
        """Write what is pending; what is left when a signal comes, for nobody takes it, is for ``finish()``."""
        self._pending = ending.write(self._fd, self._pending)

    def tell_pauses(self, pauses: int) -> None:
        """Say that decisions are missing here, if there was a pause since the last call."""
        from aiolb.bpf.events import PATIENCE

        if pauses > self._pauses:
            self._pauses = pauses
            click.echo(
                f"aiolb: warning: the balancer stopped telling, for nobody took decisions out for {PATIENCE:g} s: "
                "those made since then are neither shown nor counted",
                err=True,
            )

    def finish(self) -> None:
        """Write what is pending."""
        while self._pending:
            self._pending = self._pending[os.write(self._fd, self._pending) :]

    def _when(self, decision: Decision) -> datetime:
        return datetime.fromtimestamp((self._begin_ns + decision.time_ns) / 1e9, UTC)

    def _text(self, decision: Decision, owners: Sequence[int]) -> str:
        what = action = decision.action.name.lower()
        if action == "failover" and decision.slot is not None:
            what += f" from {owners[decision.slot]}"
        if self._colour and action != "steer":
            what = click.style(what, fg=_COLOURS.get(action, "red"))
        return _LINE.format(
            f"{self._when(decision).astimezone():%H:%M:%S.%f}",
            str(Address(str(decision.source), decision.port)),
            decision.bytes,
            "-" if decision.slot is None else decision.slot,
            "-" if decision.member is None else decision.member,
            what,
        )

    def _json(self, decision: Decision, owners: Sequence[int]) -> str:
        return json.dumps(
            {
                "time": self._when(decision).isoformat(timespec="microseconds"),
                "source": str(decision.source),
                "port": decision.port,
                "bytes": decision.bytes,
                "key": self._key,
                "slot": decision.slot,
                "owner": None if decision.slot is None else owners[decision.slot],
                "member": decision.member,
                "action": decision.action.name.lower(),
            }
        )
