"""The results of the benchmarks as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from results import Spread

PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
MEMBER = "aiolb serve"
MILLISECONDS_FROM, SECONDS_FROM = 10_000, 1_000_000
"""Microseconds from which a time is told in ms, and in s."""
ON_TIME = 0.98
"""Share of the rate from which a server counts as keeping up."""
QUIET = 0.1
"""Share of the CPUs that others may use before a measurement means little."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table; all columns but the first ``left`` ones hold numbers."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: Iterable[float], digits: int) -> str:
    """The median, and from the lowest to the highest."""
    found = Spread.of(values)
    return f"{found.median:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def costs(runs: Iterable[dict[str, Any]]) -> list[float]:
    """CPU microseconds per datagram of each run."""
    return [run["microseconds"] for run in runs]


def machine(contents: dict[str, dict[str, Any]]) -> str:
    """Where the numbers come from, and who else used the CPUs while they were measured, at worst."""
    found = [content["machine"] for content in contents.values()]
    where = found[-1]
    others, stolen = (max(machine[key] for machine in found) for key in ("used_by_others", "stolen"))
    warning = "" if others + stolen < QUIET else " **The machine was not quiet: do not quote these numbers.**"
    return (
        f"{where['cpus']} CPUs of {where['cpu']}, Linux {where['kernel']}, Python {where['python']}, "
        f"uvloop {where['uvloop']}, aiolb {where['aiolb']}. While a benchmark ran, other processes used up to "
        f"{others:.0%} of the CPUs, and other virtual machines up to {stolen:.0%}.{warning}\n"
    )


def ratio(runs: Sequence[float], base: Sequence[float]) -> str:
    """How many times as much as the base of the same round."""
    return f"x {Spread.of(one / other for one, other in zip(runs, base, strict=True)).median:.2f}"


def receive(content: dict[str, Any]) -> str:
    """A line for each receiver, the cheapest with trains first; the gap is that of the live floods."""
    trains, single = content["backlog"]["16"], content["backlog"]["1"]
    live = [*content["live"].values()]
    base = content["baseline"]
    rows = []
    for name in sorted(trains, key=lambda name: Spread.of(costs(trains[name])).median):
        gaps = [run["gap"] for runs in live for run in runs.get(name, []) if run.get("gap")]
        cells = [name]
        for runs in (trains, single):
            cells += [spread(costs(runs[name]), 2), ratio(costs(runs[name]), costs(runs[base]))]
        rows.append([*cells, f"{max(gaps):.0f}" if gaps else ""])
    header = ("receiver", "trains of 16, µs", "ratio", "single, µs", "ratio", "longest gap, ms")
    return table(header, rows)


def send(content: dict[str, Any]) -> str:
    """A line for each sender, the cheapest first."""
    whole, full = content["microseconds"]["trains"], content["microseconds"]["full"]
    rows = []
    for name in sorted(whole, key=lambda name: Spread.of(whole[name]).median):
        kind, _, sender = name.partition(": ")
        cells = [sender, kind]
        for runs in (whole, full):
            cells += [spread(runs[name], 3), ratio(runs[name], runs[f"{kind}: C"])]
        rows.append(cells)
    header = ("sender", "datagrams", "to a receiver of trains, µs", "ratio", "into a full queue, µs", "ratio")
    return table(header, rows, left=2)


def echo(content: dict[str, Any]) -> str:
    """A line for each rate and server."""
    rows = []
    for rate, servers in content["rates"].items():
        base = costs(servers[content["baseline"]])
        for name, runs in servers.items():
            times = [short(Spread.of(run[percentile] for run in runs).median) for percentile in PERCENTILES]
            reached = f"{min(run['rate'] for run in runs) / int(rate):.0%}"
            rows.append([f"{int(rate):,}", name, *times, spread(costs(runs), 1), ratio(costs(runs), base), reached])
    return table(("per second", "server", *PERCENTILES, "CPU µs", "ratio", "rate reached"), rows, left=2)


def short(microseconds: float) -> str:
    """A time in µs, or with another unit where that is shorter."""
    if microseconds >= SECONDS_FROM:
        return f"{microseconds / 1e6:.1f} s"
    return f"{microseconds:.0f}" if microseconds < MILLISECONDS_FROM else f"{microseconds / 1e3:.0f} ms"


def steering(content: dict[str, Any]) -> str:
    """A line for each program, over the one that does nothing."""
    runs = content["nanoseconds_per_packet"]
    empty = runs[content["baseline"]]
    loads = list(empty)
    rows = [[content["baseline"], *(f"({Spread.of(empty[load]).median:.0f})" for load in loads)]]
    rows += [[name, *(f"{over(content, name, load).median:.0f}" for load in loads)] for name in list(runs)[1:]]
    header = [load if load in ("flood", "cold") else f"{load} source{'s' * (load != '1')}" for load in loads]
    return table(["ns per packet", *header], rows)


def over(content: dict[str, Any], name: str, load: str, base: str | None = None) -> Spread:
    """What a program costs more than another one in the same round, in ns; than the empty one by default."""
    runs = content["nanoseconds_per_packet"]
    pairs = zip(runs[name][load], runs[base or content["baseline"]][load], strict=True)
    return Spread.of(one - other for one, other in pairs)


def startup(content: dict[str, Any]) -> str:
    """A line for each process."""
    rows = []
    for name, runs in content["runs"].items():
        growth = spread((run["growth"] / 1e6 for run in runs), 1) if name == MEMBER else ""
        wall, cpu = spread((run["wall"] * 1e3 for run in runs), 0), Spread.of(run["cpu"] * 1e3 for run in runs)
        rows.append([name, wall, f"{cpu.median:.0f}", spread((run["rss"] / 1e6 for run in runs), 1), growth])
    sources = f"{content['settings']['sources']:,} sources"
    return table(("process", "start, ms", "CPU ms", "memory, MB", f"growth with {sources}, MB"), rows)


def shares(content: dict[str, Any]) -> str:
    """A line for each place where time is spent, and their sum."""
    found = content["microseconds"]
    rows = [[name, *(f"{costs[name] * 1e3:.0f}" for costs in found.values())] for name in next(iter(found.values()))]
    rows.append(["together", *(f"{sum(costs.values()) * 1e3:.0f}" for costs in found.values())])
    header = ["single datagrams" if train == "1" else f"trains of {train}" for train in found]
    return table(["ns per datagram", *header], rows)


TABLES = {
    "receive": receive,
    "shares": shares,
    "send": send,
    "echo": echo,
    "steering": steering,
    "startup": startup,
}
"""By the benchmark whose results they show."""
