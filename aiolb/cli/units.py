"""Numbers and states for people, short: counts, bytes, times, dates, members."""

from __future__ import annotations

import pwd
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiolb.bpf.snapshot import GroupSnapshot, MemberSnapshot
    from aiolb.sketch import Sketch

STYLES = {"alive": "", "silent": "yellow", "dead": "bold red"}
"""How the line of a member in each state looks."""

_THOUSANDS = ("", "k", "M", "G", "T", "P", "E")
_KIBI = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SHORT = 4  # digits that are shown as they are


def count(number: float | None) -> str:
    """``0``, ``9999``, ``12.3k``, ``4.56M``; ``-`` for None."""
    if number is None:
        return "-"
    whole = round(number)
    if len(str(whole)) <= _SHORT:
        return str(whole) if number >= 9.95 or whole == number else f"{number:.1f}"  # noqa: PLR2004 - two digits are enough
    return _scaled(number, 1000, _THOUSANDS)


def sources(sketch: Sketch) -> str:
    """How many there are; ``about`` where that is an estimate."""
    return str(sketch.count) if sketch.exact else f"about {count(sketch.count)}"


def size(number: float | None) -> str:
    """``0B``, ``999B``, ``12.3KiB``; ``-`` for None."""
    if number is None:
        return "-"
    return f"{round(number)}B" if number < 1000 else _scaled(number, 1024, _KIBI)  # noqa: PLR2004 - three digits


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while number >= 999.5 and power < len(units) - 1:  # noqa: PLR2004 - what would be written as 1000
        number, power = number / base, power + 1
    number = float(f"{number:.3g}")
    digits = max(2 - len(str(int(number))) + 1, 0)
    return f"{number:.{digits}f}{units[power]}"


def time(nanoseconds: int | None) -> str:
    """``512ns``, ``4.1µs``, ``1.05ms``, ``8.6s``; ``-`` for None."""
    if nanoseconds is None:
        return "-"
    for unit, size_of in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size_of:
            return f"{nanoseconds / size_of:.3g}{unit}"
    return f"{nanoseconds}ns"


def below(nanoseconds: int | None) -> str:
    """``<4.1µs``, of what a time stayed below; ``-`` for None."""
    return "-" if nanoseconds is None else f"<{time(nanoseconds)}"


def seconds(number: float) -> str:
    """``5s``, ``90s``, ``2m``: whole minutes from two on."""
    return f"{number:.0f}s" if number < 120 or number % 60 else f"{number / 60:.0f}m"  # noqa: PLR2004 - two minutes


def percent(share: float | None, *, digits: int = 1) -> str:
    """``33.3%``; ``-`` for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def fullness(part: float | None) -> str:
    """``33%``, of a queue; ``-`` for None."""
    return percent(part, digits=0)


def moment(nanoseconds: int, now: datetime) -> str:
    """A time of today as ``14:02:33``, another one with its date, ``2026-11-23 14:02``; ``-`` for 0."""
    if not nanoseconds:
        return "-"
    at = datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC).astimezone()
    if timedelta(0) <= now - at and at.date() == now.astimezone().date():
        return f"{at:%T}"
    return f"{at:%F %R}"


def state(member: MemberSnapshot) -> str:
    """``alive``, ``drained`` of one that is alive, ``silent`` or ``dead``."""
    return "drained" if member.kernel.drained and member.state == "alive" else member.state.value


def alive(group: GroupSnapshot) -> str:
    """How many members of how many are alive, and how many of the others are silent."""
    states = Counter(member.state.value for member in group.members)
    silent = f", {states['silent']} silent" if states["silent"] else ""
    return f"{states['alive']} of {group.kernel.count} members alive{silent}"


def user(uid: int) -> str:
    """The user's name, else the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
