"""What receiving costs: CPU time per datagram of aiolb, of its peers and of C, under a flood, interleaved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from receivers import RCVBUF, available
from results import Spread, console, write
from rich.table import Table

BASELINE = "uvloop callback"
SATURATED = 0.95
"""Share of a CPU from which a receiver counts as busy all the time."""
CPUS = sorted(os.sched_getaffinity(0))
FOLDER = Path(__file__).parent
IN_C = {"C recvmmsg": "single", "C recvmmsg + UDP_GRO": "gro"}

NOTES = f"""\
Medians; a ratio is to {BASELINE!r} of the same round.
CPU and dropped are the lowest of all rounds: a receiver is saturated when the kernel dropped packets (a train is one,
where the receiver takes trains). Gap is the longest time, in ms, between two
turns of a task that sleeps for 10 ms.
asyncio's own transport asks for 256 KiB of memory for each datagram. Where malloc serves that with an mmap each time,
there are page faults, as counted, and it is several times slower than where it does not."""


@click.command()
@click.option("--repeats", type=click.IntRange(5), default=7, show_default=True, help="Runs of each receiver.")
@click.option("--seconds", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Length of a run.")
@click.option("--size", type=click.IntRange(1), default=64, show_default=True, help="Bytes of payload.")
@click.option("--sources", type=click.IntRange(1, 250), default=8, show_default=True, help="Sources that send.")
@click.option("--gap", type=click.IntRange(0), default=0, help="Microseconds that the sender waits between datagrams.")
@click.option("--only", multiple=True, help="A receiver to measure; may be repeated.")
@click.option(
    "--train",
    "trains",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1, 16),
    show_default=True,
    help="Datagrams sent in one piece; may be repeated.",
)
def main(
    *, repeats: int, seconds: float, size: int, sources: int, gap: int, only: tuple[str, ...], trains: tuple[int, ...]
) -> None:
    """Measure every receiver REPEATS times, one after the other."""
    names = [name for name in [*available(), *IN_C] if not only or name in only or name == BASELINE]
    results: dict[int, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tools = {name: build(name, Path(folder)) for name in ("flood", "receive")}
        for train in trains:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            with console.status("receive") as status:
                for repeat in range(repeats):
                    for name, found in runs.items():
                        status.update(f"receive: trains of {train}, round {repeat + 1} of {repeats}, {name}")
                        load = [sources, size, train, gap]
                        found.append(measure(command(name, tools, seconds), tools["flood"], load))
            show(runs, train)
            results[train] = runs
    settings = {"seconds": seconds, "size": size, "sources": sources, "gap": gap, "rcvbuf": RCVBUF}
    write("receive", {"settings": settings, "baseline": BASELINE, "trains": results})


def build(name: str, folder: Path) -> Path:
    """Compile one of the C programs."""
    target = folder / name
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", target, FOLDER / "c" / f"{name}.c"], check=True)
    return target


def command(name: str, tools: dict[str, Path], seconds: float) -> list[str]:
    """What to run for a receiver."""
    if name in IN_C:
        return [str(tools["receive"]), IN_C[name], str(seconds)]
    return [sys.executable, str(FOLDER / "receivers.py"), name, str(seconds)]


@contextmanager
def started(command: list[str], cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child on a CPU of its own, where there are two; killed in the end."""
    os.sched_setaffinity(0, {cpu})  # for the child, which inherits it
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
    finally:
        os.sched_setaffinity(0, CPUS)
    with child:
        try:
            yield child
        finally:
            child.kill()


def measure(receiver: list[str], flood: Path, load: list[int]) -> dict[str, Any]:
    """Flood one receiver until it says what it found."""
    with started(receiver, CPUS[0]) as child:
        first = read(child)
        sources, *rest = load
        target = ["127.0.0.1", first["port"], sources, *rest]
        with started([str(flood), *map(str, target)], CPUS[-1]):
            return {**read(child), "receiver": first["receiver"]}


def read(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line of the receiver."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise click.ClickException(f"a receiver ended with status {child.wait()}")
    content: dict[str, Any] = json.loads(line)
    return content


def show(runs: dict[str, list[dict[str, Any]]], train: int) -> None:
    """A line for each receiver."""
    what = "single datagrams" if train == 1 else f"trains of {train}"
    table = Table(title=f"receive: CPU time per datagram, {what}")
    table.add_column("receiver", no_wrap=True)
    for column in ("µs", "spread", "ratio", "CPU", "dropped", "gap", "faults"):
        table.add_column(column, justify="right")
    base = [run["microseconds"] for run in runs[BASELINE]]
    for name, results in runs.items():
        costs = [run["microseconds"] for run in results]
        ratio = Spread.of(cost / other for cost, other in zip(costs, base, strict=True)).median
        share, drops = min(run["cpu_share"] for run in results), min(run["drops"] for run in results)
        faults = Spread.of(run["page_faults"] for run in results).median
        cost, gap = Spread.of(costs), max(run.get("gap", 0) for run in results)
        table.add_row(
            name,
            f"{cost.median:.2f}",
            f"{cost.low:.2f}-{cost.high:.2f}",
            f"x {ratio:.2f}",
            f"{share:.0%}",
            f"{drops:,}",
            f"{gap:.0f}" if gap else "",
            f"{faults:.0f}",
        )
    console.print(table)
    console.print(NOTES, soft_wrap=True)
    for name, results in runs.items():
        idle = sum(1 for run in results if run["drops"] == 0 and run["cpu_share"] < SATURATED)
        if idle:
            console.print(f"{name} was not saturated in {idle} of {len(results)} runs")


if __name__ == "__main__":
    main()
