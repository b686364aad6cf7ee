"""One frame of `aiolb top` as lines of text, as wide and as high as the terminal; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from aiolb.bpf.snapshot import GroupSnapshot
from aiolb.cli import units
from aiolb.cli.table import Column, fitting, lines
from aiolb.cli.top_history import History, MemberRow

BARS = " ▁▂▃▄▅▆▇█"
PLAIN_BARS = " .:-=+*#@"
"""For terminals whose character set has no others."""
SOURCES = 10
"""Sources that are shown at most."""

_STYLES = {"alive": "", "silent": "yellow", "dead": "bold red"}
_WIDE = 120
_AROUND = 8
"""Lines that are neither a member's nor a source's."""


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


def frame(history: History, view: View, clock: str) -> list[Text]:
    """The lines; none is wider than the terminal."""
    group = history.now
    assert group is not None  # noqa: S101 - the caller has looked
    rows = history.sorted(view.sort)
    members, sources = _room(view.height, len(rows), len(history.sources))
    first = max(min(view.first, len(rows) - members), 0)
    shown = rows[first : first + members]
    told = [*_head(group, history, view, clock), Text()]
    top = max((rate for row in rows for rate in row.rate), default=0)
    worst = max((drops for row in rows for drops in row.drops), default=0)
    columns = fitting(_columns(shown, view, top, worst, history.rate), view.width)
    told += lines(columns, [_STYLES[row.now.state] for row in shown])
    told.append(Text(_rest(first, len(shown), len(rows)), style="dim"))
    told += _sources(history, sources, view.width)
    if view.keys:
        told.append(Text("keys: q quit  r d u e p m sort  + - interval  j k scroll", style="dim"))
    for line in told:
        line.truncate(view.width)
    return told


def _room(height: int | None, members: int, sources: int) -> tuple[int, int]:
    """How many members and sources there is room for: at least one of each, and members come first."""
    sources = min(sources, SOURCES)
    if height is None:
        return members, sources
    room = max(height - _AROUND, 2)
    for_members = min(members, max(room - min(sources, 5), 1))
    return for_members, max(min(sources, room - for_members), 0)


def _head(group: GroupSnapshot, history: History, view: View, clock: str) -> list[Text]:
    alive = sum(one.kernel.alive for one in group.members)
    head = Text(f"{group.name.protocol} {group.name.address}  ", style="bold")
    head.append(
        f"{alive} of {group.kernel.count} members alive", style="green" if alive == group.kernel.count else "red"
    )
    head.append(f"  {clock}  every {view.interval:g} s  by {view.sort}", style="not bold dim")
    width = _bars_width(view.width)
    rate, drops = list(history.rate), list(history.drops)
    total = Text(f"rate {bars(rate, max(rate, default=0), width, view.bars)} {_last(rate)}/s  ")
    total.append(
        f"kernel drops {bars(drops, max(drops, default=0), width, view.bars)} {_last(drops)}/s",
        style="red" if drops and drops[-1] else "",
    )
    total.append(f"  sources {units.sources(group.sketch)}")
    return [head, total]


def _last(values: Sequence[float]) -> str:
    return units.count(values[-1] if values else None)


def _bars_width(width: int) -> int:
    return 10 if width < _WIDE else 24


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

    return [
        Column("MEMBER", [str(row.now.index) for row in rows], 0),
        Column("STATE", [row.now.state.value for row in rows], 0, left=True),
        Column("RATE/S", [_last(row.rate) for row in rows], 1),
        Column("".ljust(width), [bars(row.rate, top, width, view.bars) for row in rows], 4),
        Column("SHARE", [units.percent(_share(row.rate, total)) for row in rows], 5),
        Column("QUEUE", [_part(row.queue) for row in rows], 3),
        Column("DROPS/S", [_last(row.drops) for row in rows], 2),
        Column("".ljust(width), [bars(row.drops, worst, width, view.bars) for row in rows], 6),
        Column("ERRORS/S", list(map(units.count, rate("errors"))), 7),
        Column("P99", ["-" if row.p99_ns is None else f"<{units.time(row.p99_ns)}" for row in rows], 8),
        Column("FAILOVERS/S", [units.count(row.rates.failovers if row.rates else None) for row in rows], 9),
        Column("SOURCES", [units.count(row.now.sources) for row in rows], 10),
        Column("SLOTS", [str(row.now.kernel.slots) for row in rows], 11),
        Column("PID", [str(row.now.pid or "-") for row in rows], 12),
    ]


def _share(rate: Sequence[float], total: Sequence[float]) -> float | None:
    """The part that the last rate is of the last one of all; None while nothing comes in."""
    return min(rate[-1] / total[-1], 1) if rate and total and total[-1] else None


def _part(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _rest(first: int, shown: int, members: int) -> str:
    """Which members are not shown."""
    if shown == members:
        return ""
    return f"{first + 1} to {first + shown} of {members} members"


def _sources(history: History, number: int, width: int) -> list[Text]:
    rows = history.sources[:number]
    if not rows:
        return [Text("no source is known yet", style="dim")]
    columns = [
        Column("SOURCE", [str(row.source) for row in rows], 0, left=True),
        Column("RATE/S", [units.count(row.rate) for row in rows], 0),
        Column("SHARE", [units.percent(_share([row.rate], history.rate)) for row in rows], 2),
        Column("MEMBER", [str(row.member) for row in rows], 1),
        Column("DATAGRAMS", [units.count(row.received) for row in rows], 3),
    ]
    return lines(fitting(columns, width), ["" for _ in rows])
