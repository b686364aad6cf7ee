"""What an echo takes: round trips and CPU time of aiolb and of its peers at fixed rates, interleaved."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from children import CPUS, FOLDER, answer, compiled, started
from echoes import ECHOES
from results import Spread, console, write
from rich.box import SIMPLE_HEAD
from rich.table import Table
from tables import ON_TIME, PERCENTILES, short

BASELINE = "uvloop callback"
IN_C = "C recvfrom, sendto"

NOTES = f"""\
Medians of the rounds. Each source has one datagram in flight; a round trip counts from the time at which the datagram
was due, not from when it could be sent. CPU is the server's CPU time per datagram, ratio its ratio to
{BASELINE!r} in the same round."""


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs of each server.")
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="Length of a run.")
@click.option("--size", type=click.IntRange(16, 1400), default=64, show_default=True, help="Bytes of payload.")
@click.option("--sources", type=click.IntRange(1, 250), default=8, show_default=True, help="Sources that send.")
@click.option("--only", multiple=True, help="A server to measure; may be repeated.")
@click.option(
    "--rate",
    "rates",
    type=click.IntRange(1),
    multiple=True,
    default=(1_000, 10_000, 50_000),
    show_default=True,
    help="Datagrams per second; may be repeated.",
)
def main(
    *, repeats: int, seconds: float, size: int, sources: int, only: tuple[str, ...], rates: tuple[int, ...]
) -> None:
    """Measure every echo server REPEATS times at each rate, one after the other."""
    names = [name for name in (*ECHOES, IN_C) if not only or name in only or name == BASELINE]
    results: dict[int, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("echo") as status:
        tools = {name: compiled(name, Path(folder)) for name in ("ping", "echo")}
        for rate in rates:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for repeat in range(repeats):
                for name, found in runs.items():
                    status.update(f"echo: {rate:,} per second, round {repeat + 1} of {repeats}, {name}")
                    load = [rate, max(int(rate * seconds), 1), sources, size]
                    found.append(measure(name, tools, load))
            show(runs, rate)
            results[rate] = runs
    console.print(NOTES, soft_wrap=True)
    settings = {"seconds": seconds, "size": size, "sources": sources}
    write("echo", {"settings": settings, "baseline": BASELINE, "rates": results})


def measure(name: str, tools: dict[str, Path], load: list[int]) -> dict[str, Any]:
    """Let one server answer a run of the client; what the client says."""
    server = [str(tools["echo"])] if name == IN_C else [sys.executable, str(FOLDER / "echoes.py"), name]
    with started(server, CPUS[0]) as child:
        target = [answer(child)["port"], child.pid]
        with started([str(tools["ping"]), *map(str, [*target, *load])], CPUS[-1]) as client:
            return answer(client)


def show(runs: dict[str, list[dict[str, Any]]], rate: int) -> None:
    """A line for each server."""
    table = Table(title=f"echo: µs at {rate:,} datagrams per second", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("server", no_wrap=True)
    for column in (*PERCENTILES, "CPU", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    base = [run["microseconds"] for run in runs[BASELINE]]
    for name, results in runs.items():
        costs = [run["microseconds"] for run in results]
        ratio = Spread.of(cost / other for cost, other in zip(costs, base, strict=True)).median
        table.add_row(
            name,
            *(short(Spread.of(run[percentile] for run in results).median) for percentile in PERCENTILES),
            f"{Spread.of(costs).median:.1f}",
            f"x {ratio:.2f}",
        )
    console.print(table)
    for name, results in runs.items():
        if lost := sum(run["lost"] for run in results):
            console.print(f"{name}: {lost:,} datagrams had no answer within ten seconds")
        slow = [run["rate"] for run in results if run["rate"] < rate * ON_TIME]
        if slow:
            console.print(f"{name} answered only {min(slow):,.0f} per second in {len(slow)} of {len(results)} runs")


if __name__ == "__main__":
    main()
