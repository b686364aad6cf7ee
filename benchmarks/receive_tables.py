"""The tables of the receive benchmark: what a datagram cost, and how aiolb compares with what it set out to beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from results import Spread, console
from rich.table import Table

Runs = dict[str, list[dict[str, Any]]]
"""Runs of each receiver, by its name."""
Results = dict[int, Runs]
"""The same by the number of datagrams in a train."""

BASELINE = "uvloop callback"
SATURATED = 0.95
"""Share of a CPU from which a receiver counts as busy all the time."""
THOUSAND = 1000

MEDIANS = f"Medians; a ratio is to {BASELINE!r} of the same round."
NOTES = {
    "backlog": f"""\
{MEDIANS} The queue is filled while the receiver is stopped, and then read empty, so that it never waits.
Lost is what the kernel handed over and the program was never given. Faults are page faults per datagram: asyncio's
own transport asks for 256 KiB of memory for each datagram, and where malloc serves that with an mmap each time it is
several times slower than where it does not.""",
    "live": f"""\
{MEDIANS} CPU and dropped are the lowest of all rounds: a receiver is saturated when the kernel dropped packets, or
when it had no time left. A train is one packet where the receiver takes trains. Gap is the longest time, in ms,
between two turns of a task that sleeps for 10 ms.""",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """How many times as cheap as another receiver one shall be; less than 1 where it may be dearer."""

    train: int
    name: str
    other: str
    factor: float


FASTEST = "fastest peer"
"""Stands for the peer in Python with the lowest median, whichever that is here."""
GOALS = (
    Goal(16, "aiolb handle", "C recvmmsg", 2.5),
    Goal(16, "aiolb handle", BASELINE, 6),
    Goal(16, "aiolb handle", "uvloop task each", 12),
    Goal(16, "aiolb handle", FASTEST, 4),
    Goal(16, "aiolb handle", "C recvmmsg + UDP_GRO", 1 / 2.5),
    Goal(1, "aiolb handle", BASELINE, 1.5),
    Goal(16, "aiolb plain handle", BASELINE, 1 / 1.5),
    Goal(1, "aiolb plain handle", BASELINE, 1 / 1.5),
)
LONGEST_GAP = 20.0
"""Milliseconds between two turns of a task that sleeps for 10 ms, under a flood."""


def show(way: str, results: Results) -> None:
    """A table for each length of train, a line for each receiver."""
    columns = {"backlog": backlog_columns, "live": live_columns}[way]
    for train, runs in results.items():
        table = Table(title=f"receive from a {way if way == 'backlog' else 'live flood'}, {trains_of(train)}")
        table.add_column("receiver", no_wrap=True)
        for column in ("µs", "spread", "ratio", *columns([])):
            table.add_column(column, justify="right", no_wrap=True)
        for name, found in runs.items():
            cost, spread = Spread.of(microseconds(found)).text(2)
            ratio = times(found, runs[BASELINE]).median
            table.add_row(name, cost, spread, f"x {ratio:.2f}", *columns(found).values())
        console.print(table)
        if idle := [(name, n) for name, found in runs.items() if (n := sum(not saturated(run) for run in found))]:
            runs_of = ", ".join(f"{name} ({n} of {len(runs[name])} runs)" for name, n in idle)
            console.print(f"[bold]Not saturated:[/] {runs_of}.")
    console.print(" ".join(NOTES[way].split()) + "\n")


def backlog_columns(runs: list[dict[str, Any]]) -> dict[str, str]:
    """What else there is to say of a backlog."""
    lost = max((1 - run["datagrams"] / run["sent"] for run in runs), default=0)
    return {"lost": f"{lost:.0%}" if lost else "", "faults": faults(runs)}


def live_columns(runs: list[dict[str, Any]]) -> dict[str, str]:
    """What else there is to say of a flood."""
    return {
        "CPU": f"{min((run['cpu_share'] for run in runs), default=0):.0%}",
        "dropped": short(min((run["drops"] for run in runs), default=0)),
        "gap": f"{gap:.0f}" if (gap := longest_gap(runs)) else "",
    }


def show_goals(results: dict[str, Results]) -> None:
    """How many times as cheap aiolb is as others, beside how many times it shall be."""
    table = Table("train", "aiolb", "times as cheap as", title="receive: what aiolb set out to reach")
    for column in ("goal", *results):
        table.add_column(column, justify="right", no_wrap=True)
    for goal in GOALS:
        reached = [reached_of(goal, runs) if (runs := found.get(goal.train)) else "" for found in results.values()]
        if any(reached):
            name = goal.name.removeprefix("aiolb ")
            table.add_row(str(goal.train), name, goal.other, factor_text(goal.factor), *reached)
    console.print(table)
    console.print(
        "1/2 is twice as dear. In parentheses where a receiver was not saturated; ! where the goal is missed."
    )
    flooded = [run for found in results["live"].values() for run in found.get("aiolb handle", [])]
    if gap := longest_gap(flooded):
        console.print(f"Longest gap of 'aiolb handle': {gap:.1f} ms (goal: {LONGEST_GAP:.0f} ms)")
    console.print()


def reached_of(goal: Goal, runs: Runs) -> str:
    """How often the other's cost is the one's, in the median of all rounds; empty if one was not measured."""
    other = fastest(runs) if goal.other == FASTEST else goal.other
    if goal.name not in runs or other not in runs:
        return ""
    factor = times(runs[other], runs[goal.name]).median
    text = factor_text(factor) if factor >= goal.factor else f"! {factor_text(factor)}"
    sure = all(saturated(run) for run in [*runs[other], *runs[goal.name]])
    return text if sure else f"({text})"


def factor_text(factor: float) -> str:
    """A number of times; one over a number where something is dearer."""
    return f"{factor:.2f}" if factor >= 1 else f"1/{1 / factor:.2f}"


def fastest(runs: Runs) -> str:
    """The peer in Python with the lowest median."""
    peers = {name: Spread.of(microseconds(found)).median for name, found in runs.items()}
    return min((n for n in peers if not n.startswith(("aiolb", "C "))), key=peers.__getitem__)


def times(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> Spread:
    """The ratio of two receivers' costs in each round."""
    pairs = zip(microseconds(runs), microseconds(others), strict=True)
    return Spread.of(one / other for one, other in pairs)


def saturated(run: dict[str, Any]) -> bool:
    """Whether a receiver never waited for datagrams; from a backlog it never does."""
    return "sent" in run or run["drops"] > 0 or run["cpu_share"] >= SATURATED


def microseconds(runs: Iterable[dict[str, Any]]) -> list[float]:
    """The cost of a datagram in each run."""
    return [run["microseconds"] for run in runs]


def longest_gap(runs: Iterable[dict[str, Any]]) -> float:
    """Milliseconds; 0 where nothing measured it."""
    return max((run.get("gap") or 0.0 for run in runs), default=0.0)


def faults(runs: list[dict[str, Any]]) -> str:
    """Page faults per datagram."""
    return f"{Spread.of(run['page_faults'] for run in runs).median:.0f}" if runs else ""


def trains_of(train: int) -> str:
    """What was sent, in words."""
    return "single datagrams" if train == 1 else f"trains of {train}"


def short(number: int) -> str:
    """A number in at most five characters."""
    return str(number) if number < THOUSAND else f"{number // THOUSAND}k"
