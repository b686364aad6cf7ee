"""One frame of `aiolb top` as lines of text, as wide and as high as the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.text import Text

from aiolb.bpf.abi import BPFFS
from aiolb.bpf.snapshot import GroupSnapshot, State
from aiolb.cli import units
from aiolb.cli.hints import Hint, hints
from aiolb.cli.table import GAP, Column, fitting, lines
from aiolb.cli.top_history import History, MemberRow

BARS = " ▁▂▃▄▅▆▇█"
PLAIN_BARS = " .:-=+*#@"
"""For terminals whose character set has no others."""
HINTS = 2
"""Hints that are shown at most."""
SOURCES = 10
"""Sources that are shown at most."""

_BARS_WIDTHS = {120: 24, 76: 10, 56: 8, 0: 0}
"""How many bars there are in a terminal of so many columns, or more."""
_AROUND = 5
"""Lines that are neither a member's nor a source's, nor the head's."""
_TITLES = {
    "rate": "RATE/S",
    "drops": "DROPS/S",
    "queue": "QUEUE",
    "errors": "ERRORS/S",
    "p99": "P99",
    "member": "MEMBER",
}
"""The column that members are sorted by: it is always there."""
KEYS = "[q]uit [r]ate [d]rops q[u]eue [e]rrors [p]99 [m]ember  +- interval  jk scroll"


@dataclass(frozen=True, slots=True)
class View:
    """What the user has chosen, and how large the terminal is; None: as long as it takes."""

    sort: str
    interval: float
    width: int
    height: int | None = None
    first: int = 0
    bars: str = BARS
    keys: bool = False
    bpffs: Path = BPFFS


def frame(history: History, view: View, clock: str) -> list[Text]:
    """The lines; none is wider than the terminal."""
    group = history.now
    assert group is not None  # noqa: S101 - the caller has looked
    rows = history.sorted(view.sort)
    head = _head(group, history, view, clock)
    members, sources = _room(view.height, len(head), len(rows), len(history.sources))
    first = max(min(view.first, len(rows) - members), 0)
    shown = rows[first : first + members]
    told = [*head, Text()]
    top = max((rate for row in rows for rate in row.rate), default=0)
    worst = max((drops for row in rows for drops in row.drops), default=0)
    columns = fitting(_columns(shown, view, top, worst, history.rate), view.width)
    told += lines(columns, [units.STYLES[row.now.state] for row in shown])
    told.append(Text(_rest(first, len(shown), len(rows)), style="dim"))
    told += _sources(group, history, sources, view.width)
    if view.keys:
        told.append(Text(KEYS, style="dim"))
    for line in told:
        line.truncate(view.width)
    return told


def _room(height: int | None, head: int, members: int, sources: int) -> tuple[int, int]:
    """How many members and sources there is room for: at least one of each, and members come first."""
    sources = min(sources, SOURCES)
    if height is None:
        return members, sources
    room = max(height - head - _AROUND, 2)
    for_members = min(members, max(room - min(sources, 5), room // 2))
    return for_members, max(min(sources, room - for_members), 0)


def _head(group: GroupSnapshot, history: History, view: View, clock: str) -> list[Text]:
    alive = units.alive(group)
    parts = [
        Text(f"{group.name.protocol} {group.name.address}", style="bold"),
        Text(alive, style="green" if all(one.state is State.ALIVE for one in group.members) else "red"),
        *(Text(part, style="dim") for part in (clock, f"every {view.interval:g} s", f"by {view.sort}")),
    ]
    width = _bars_width(view.width)
    losing = any(history.drops[-1:])
    totals = [
        Text(_trend("rate", history.rate, width, view.bars)),
        Text(_trend("kernel drops", history.drops, width, view.bars), style="red" if losing else ""),
        *([Text(f"sources {units.sources(group.sketch)}")] if group.told else []),
    ]
    others = [Text(f"{name} {units.count(rate)}/s") for name, rate in history.counters.items()]
    told = [_joined(line, view.width) for line in (parts, totals, others) if line]
    found = hints(group, group.members, history.rates, bpffs=view.bpffs)[:HINTS]
    return told + [Text(_hinted(hint, view.width), style="yellow") for hint in found]


def _hinted(hint: Hint, width: int) -> str:
    """The hint with what to do about it, where there is room for that; else `aiolb status` says it."""
    whole = f"hint: {hint.what}: {hint.fix}"
    return whole if len(whole) <= width else f"hint: {hint.what}"


def _trend(name: str, values: Sequence[float], width: int, levels: str) -> str:
    trend = f" {bars(values, max(values, default=0), width, levels)}" if width else ""
    return f"{name}{trend} {_last(values)}/s"


def _joined(parts: Sequence[Text], width: int) -> Text:
    """The parts that fit, in their order: half of a number would be another number."""
    line = parts[0].copy()
    for part in parts[1:]:
        if len(line) + GAP + len(part) > width:
            break
        line = Text.assemble(line, " " * GAP, part)
    return line


def _last(values: Sequence[float]) -> str:
    return units.count(values[-1] if values else None)


def _bars_width(width: int) -> int:
    return next(bars for least, bars in _BARS_WIDTHS.items() if width >= least)


def bars(values: Sequence[float], highest: float, width: int, levels: str = BARS) -> str:
    """The last ``width`` values as bars, the newest at the right; anything above 0 can be seen."""
    shown = [
        levels[1 + round(value / highest * (len(levels) - 2))] if 0 < value <= highest else levels[0]
        for value in values[-width:]
    ]
    return "".join(shown).rjust(width)


def _columns(rows: Sequence[MemberRow], view: View, top: float, worst: float, total: Sequence[float]) -> list[Column]:
    width = _bars_width(view.width)

    def rate(name: str) -> list[float | None]:
        return [getattr(row.rates, name) if row.rates and row.now.told else None for row in rows]

    ago = f"LAST {units.seconds(width * view.interval)}".ljust(width)
    columns = [
        Column("MEMBER", [str(row.now.index) for row in rows], 0),
        Column("STATE", [units.state(row.now) for row in rows], 0, left=True),
        Column("RATE/S", [_last(row.rate) for row in rows], 1),
        Column(ago, [bars(row.rate, top, width, view.bars) for row in rows], 5, left=True),
        Column("SHARE", [units.percent(_share(row.rate, total)) for row in rows], 6),
        Column("QUEUE", [units.fullness(row.now.queue) for row in rows], 3),
        Column("DROPS/S", [_last(row.drops) for row in rows], 2),
        Column(ago, [bars(row.drops, worst, width, view.bars) for row in rows], 7 if worst else 14, left=True),
        Column("ERRORS/S", list(map(units.count, rate("errors"))), 4 if any(rate("errors")) else 8),
        Column("P99", [units.below(row.p99_ns) for row in rows], 9),
        Column("FAILOVERS/S", [units.count(row.rates.failovers if row.rates else None) for row in rows], 10),
        Column("SOURCES", [units.count(row.now.sources) for row in rows], 11),
        Column("SLOTS", [str(row.now.kernel.slots) for row in rows], 12),
        Column("PID", [str(row.now.pid or "-") for row in rows], 13),
    ]
    return [
        replace(column, rank=min(column.rank, 1)) if column.title == _TITLES[view.sort] else column
        for column in columns
        if width or column.title != ago
    ]


def _share(rate: Sequence[float], total: Sequence[float]) -> float | None:
    """The part that the last rate is of the last one of all; None while nothing comes in."""
    return min(rate[-1] / total[-1], 1) if rate and total and total[-1] else None


def _rest(first: int, shown: int, members: int) -> str:
    """Which members are not shown."""
    if shown == members:
        return ""
    return f"{first + 1} to {first + shown} of {members} members"


def _sources(group: GroupSnapshot, history: History, number: int, width: int) -> list[Text]:
    rows = history.sources[:number]
    if not rows:
        return [Text("no source is known yet" if group.told else "no member tells its sources", style="dim")]
    what = "CONNECTIONS" if group.name.protocol == "tcp" else "DATAGRAMS"
    columns = [
        Column("SOURCE", [str(row.source) for row in rows], 0, left=True),
        Column("RATE/S", [units.count(row.rate) for row in rows], 0),
        Column("SHARE", [units.percent(_share([row.rate], history.rate)) for row in rows], 2),
        Column("MEMBER", [str(row.member) for row in rows], 1),
        Column(what, [units.count(row.received) for row in rows], 3),
    ]
    return lines(fitting(columns, width), ["" for _ in rows])
