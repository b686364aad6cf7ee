"""``aiolb top``: a group's members and its busiest sources, live."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiolb.bpf.discovery import the_group
from aiolb.bpf.group_name import GroupName
from aiolb.cli.groups import MIN_INTERVAL, GroupType, Seconds, bpffs_option, opened
from aiolb.cli.texts import plain_console
from aiolb.errors import GroupNotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from aiolb.bpf.snapshot import GroupSnapshot
    from aiolb.cli.screen import Screen
    from aiolb.cli.top_frame import View
    from aiolb.cli.top_history import History

MAX_INTERVAL = 60.0
"""Seconds."""

PIPE_WIDTH = 200
"""Characters of a line where nobody counts the columns: enough for all of them."""

_KEYS = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
"""What a terminal sends for a key: a character, or a sequence."""
_STEPS = {
    **dict.fromkeys(("j", "\x1b[B", "\x1bOB"), 1),
    **dict.fromkeys(("k", "\x1b[A", "\x1bOA"), -1),
    "\x1b[6~": 10,
    "\x1b[5~": -10,
}
"""Members that a key scrolls: j and k, the arrows, Page Down and Up."""
_SORTS = {"r": "rate", "d": "drops", "u": "queue", "e": "errors", "p": "p99", "m": "member"}


@click.command(short_help="Show a group's members and busiest sources, live.")
@click.argument("group", type=GroupType(), required=False, metavar="[[tcp:]HOST:PORT]")
@click.option(
    "--interval",
    type=Seconds(MIN_INTERVAL, MAX_INTERVAL),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Time between two looks; + and - double and halve it.",
)
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS.values())),
    default="rate",
    show_default=True,
    help="What members are sorted by.",
)
@click.option("--once", is_flag=True, help="Print one frame and end, as where the output is no terminal.")
@bpffs_option
def top(group: GroupName | None, *, interval: float, sort: str, once: bool, bpffs: Path) -> None:
    """Show a group's members and its busiest sources, live, until q or Ctrl-C.

    Of each member: its rate and its kernel drops, with a bar for each of the last looks, its part of the group's
    datagrams, how full its queue is, and what else fits. Of the sources those that send most in these seconds, by their
    rate: each member names 16.

    Keys sort by rate (r), drops (d), queue (u), errors (e), p99 of the handler time (p) or member (m); j and k, the
    arrows, and Page Up and Down scroll.
    """
    from aiolb.bpf import snapshot
    from aiolb.cli.top_frame import BARS, PLAIN_BARS, View
    from aiolb.cli.top_history import History

    name = the_group(group, bpffs, option="aiolb top ")
    console = plain_console(soft_wrap=True)
    view = View(sort, interval, console.width, bars=BARS if _can_encode(BARS) else PLAIN_BARS, bpffs=bpffs)
    with opened(name, bpffs) as found:

        def take() -> GroupSnapshot:
            if found.deleted:
                raise GroupNotFoundError(f"the group at {name} is gone", hint="start it again")
            return snapshot.take(found)

        if once or not console.is_terminal:
            _once(take, History(), view, console)
        elif console.is_dumb_terminal:
            _line_by_line(take, History(), view, console)
        else:
            _live(take, History(), view, console)


def _can_encode(text: str) -> bool:
    with suppress(UnicodeEncodeError):
        text.encode(sys.stdout.encoding or "ascii")
        return True
    return False


def _show(history: History, view: View, console: Console) -> None:
    from aiolb.cli.top_frame import frame

    for line in frame(history, view, time.strftime("%T")):
        console.print(line)


def _once(take: Callable[[], GroupSnapshot], history: History, view: View, console: Console) -> None:
    history.add(take())
    time.sleep(view.interval)
    history.add(take())
    _show(history, view if console.is_terminal else replace(view, width=PIPE_WIDTH), console)


def _line_by_line(take: Callable[[], GroupSnapshot], history: History, view: View, console: Console) -> None:
    """For a terminal that can only print lines: one frame after the other."""
    from aiolb.cli.ending import until_signal

    with until_signal() as ending:
        history.add(take())
        while not ending.came:
            ending.wait(view.interval)
            if not ending.came:
                history.add(take())
                _show(history, view, console)
                console.print()


def _live(take: Callable[[], GroupSnapshot], history: History, view: View, console: Console) -> None:
    from aiolb.cli.ending import until_signal
    from aiolb.cli.screen import Screen

    with until_signal() as ending, Screen(ending) as screen:
        view = replace(view, keys=True)
        history.add(take())
        while not ending.came:
            due = time.monotonic() + view.interval
            _draw(history, view, console, screen)
            while not ending.came and (left := due - time.monotonic()) > 0:
                keys = screen.keys(left)
                if "q" in _KEYS.findall(keys):
                    return
                if keys:
                    before, view = view, _chosen(view, keys, len(history.rows))
                    due += view.interval - before.interval
                    _draw(history, view, console, screen)
            if not ending.came:
                history.add(take())


def _chosen(view: View, keys: str, members: int) -> View:
    """The view after these keys; others do nothing."""
    for key in _KEYS.findall(keys):
        if key in _SORTS:
            view = replace(view, sort=_SORTS[key], first=0)
        elif key in ("+", "="):
            view = replace(view, interval=min(view.interval * 2, MAX_INTERVAL))
        elif key == "-":
            view = replace(view, interval=max(view.interval / 2, MIN_INTERVAL))
        elif key in _STEPS:
            view = replace(view, first=max(min(view.first + _STEPS[key], members - 1), 0))
    return view


def _draw(history: History, view: View, console: Console, screen: Screen) -> None:
    from aiolb.cli.top_frame import frame

    width, height = screen.size
    rendered = []
    for line in frame(history, replace(view, width=width, height=height), time.strftime("%T")):
        with console.capture() as captured:
            console.print(line, end="", width=width)
        rendered.append(captured.get())
    screen.draw(rendered)
