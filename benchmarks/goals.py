"""What aiolb set out to reach, and what the results of the benchmarks say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from receive_tables import FASTEST, GOALS, LONGEST_GAP, fastest, longest_gap, times, trains_of
from results import Spread
from tables import MEMBER, ON_TIME, costs, over, table

AIOLB = "aiolb handle"
ECHO_RATE = "50000"
START_MS, MEMORY_MB, GROWTH_MB = 300, 45, 20
STEERING_NS, GUARD_NS, FLAT = 100, 300, 1.2


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table of goals."""

    what: str
    goal: str
    reached: str
    met: bool


def of_receive(content: dict[str, Any]) -> Iterator[Line]:
    """From a backlog, because there a receiver never waits."""
    for goal in GOALS:
        runs = content["backlog"].get(str(goal.train), {})
        if goal.name not in runs:
            continue
        other = fastest(runs) if goal.other == FASTEST else goal.other
        if other not in runs:
            continue
        reached = times(runs[other], runs[goal.name]).median
        what = f"{goal.name}, {trains_of(goal.train)}: cost beside {other}"
        if goal.factor >= 1:
            yield Line(what, f"{goal.factor:g} times as cheap", f"{reached:.1f} times as cheap", reached >= goal.factor)
        else:
            wanted = f"at most x {1 / goal.factor:.2g}"
            yield Line(what, wanted, f"x {1 / reached:.2f}", reached >= goal.factor)
    found = [run for runs in content["live"].values() for run in runs.get(AIOLB, [])]
    if gap := longest_gap(found):
        what = f"{AIOLB}, under a flood: longest gap of a task that sleeps for 10 ms"
        yield Line(what, f"{LONGEST_GAP:.0f} ms", f"{gap:.1f} ms", gap <= LONGEST_GAP)


def of_echo(content: dict[str, Any]) -> Iterator[Line]:
    """At the highest rate."""
    runs = content["rates"].get(ECHO_RATE, {})
    if AIOLB in runs:
        pairs = zip(costs(runs[AIOLB]), costs(runs[content["baseline"]]), strict=True)
        found = Spread.of(one / other for one, other in pairs).median
        what = f"echo, {int(ECHO_RATE):,} per second: CPU beside a {content['baseline']}"
        # A server that falls behind finds many datagrams at each turn: its cost is that of another load.
        rate = min(run["rate"] for name in (AIOLB, content["baseline"]) for run in runs[name]) / int(ECHO_RATE)
        kept_up = rate >= ON_TIME
        reached = f"x {found:.2f}" if kept_up else f"not known: only {rate:.0%} of the rate (x {found:.2f} there)"
        yield Line(what, "not dearer", reached, kept_up and found <= 1)


def of_startup(content: dict[str, Any]) -> Iterator[Line]:
    """Time and memory of a member."""
    runs = content["runs"][MEMBER]
    sources = f"{content['settings']['sources']:,} sources"
    for what, key, unit, limit, name in (
        ("start of a member until it receives", "wall", 1e3, START_MS, "ms"),
        ("memory of a member at rest", "rss", 1e-6, MEMORY_MB, "MB"),
        (f"growth of its memory with {sources}", "growth", 1e-6, GROWTH_MB, "MB"),
    ):
        found = Spread.of(run[key] * unit for run in runs).median
        yield Line(what, f"{limit} {name}", f"{found:.1f} {name}", found <= limit)


def of_steering(content: dict[str, Any]) -> Iterator[Line]:
    """Over the empty program; the goal is for any load, the flatness for those that come from C."""
    loads = list(content["nanoseconds_per_packet"][content["baseline"]])
    groups = [name for name in content["nanoseconds_per_packet"] if name.startswith("balancer")]
    warm = [load for load in loads if load not in ("flood", "cold")]
    found = [over(content, name, load).median for name in groups for load in loads]
    floor = [over(content, content["floor"], load).median for load in loads]
    reached = f"{min(found):.0f} to {max(found):.0f} ns, the two helpers alone {min(floor):.0f} to {max(floor):.0f}"
    yield Line("steering, over an empty program", f"{STEERING_NS} ns", reached, max(found) <= STEERING_NS)
    guards = [name for name in content["nanoseconds_per_packet"] if name.startswith("guard")]
    flooded = [over(content, name, "flood").median for name in guards if "flood" in loads]
    if flooded:
        reached = f"{min(flooded):.0f} to {max(flooded):.0f} ns"
        yield Line("steering with a guard, under a flood", f"{GUARD_NS} ns", reached, max(flooded) <= GUARD_NS)
    for load in (warm[0], warm[-1]):
        sizes = [over(content, name, load).median for name in groups]
        what = f"steering, from the smallest group to the largest, {load} source{'s' * (load != '1')}"
        yield Line(what, "within 20 %", within(sizes), max(sizes) <= FLAT * min(sizes))
    numbers = [over(content, groups[0], load).median for load in warm]
    what = f"steering, from {warm[0]} source to {warm[-1]}"
    yield Line(what, "within 20 %", within(numbers), max(numbers) <= FLAT * min(numbers))


def within(numbers: list[float]) -> str:
    """How far the highest is over the lowest."""
    return f"within {max(numbers) / min(numbers) - 1:.0%}".replace("%", " %")


JUDGES: dict[str, Callable[[dict[str, Any]], Iterator[Line]]] = {
    "receive": of_receive,
    "echo": of_echo,
    "steering": of_steering,
    "startup": of_startup,
}


def markdown(name: str, content: dict[str, Any]) -> str:
    """The table of a benchmark's goals."""
    rows = [[line.what, line.goal, line.reached, "yes" if line.met else "**no**"] for line in JUDGES[name](content)]
    return table(("what", "goal", "reached", "met"), rows, left=4)
