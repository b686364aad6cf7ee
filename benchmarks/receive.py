"""What receiving costs: CPU time per datagram of aiolb, of its peers and of C, interleaved."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from children import compiled
from loads import Child, DisturbedError, Load, backlog, live
from receive_tables import BASELINE, Results, show, show_goals
from receivers import available, versions
from results import console, write

FOLDER = Path(__file__).parent
IN_C = {"C recvmmsg": "single", "C recvmmsg + UDP_GRO": "gro"}
WAYS = ("backlog", "live")
TRIES = 3
RCVBUF = {"backlog": 32 << 20, "live": 4 << 20}
"""Bytes of receive buffer, the same for all receivers: room for a whole backlog, or for what a flood soon fills."""


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs of each receiver.")
@click.option("--from", "ways", type=click.Choice(WAYS), multiple=True, help="Where datagrams come from; all.")
@click.option("--count", type=click.IntRange(1), default=16_384, show_default=True, help="Datagrams in a backlog.")
@click.option("--cycles", type=click.IntRange(1), default=19, show_default=True, help="Backlogs in a run.")
@click.option("--seconds", type=click.FloatRange(0.1), default=0.5, show_default=True, help="Length of a live run.")
@click.option("--size", type=click.IntRange(1), default=64, show_default=True, help="Bytes of payload.")
@click.option("--sources", type=click.IntRange(1, 250), default=8, show_default=True, help="Sources that send.")
@click.option("--gap", type=click.IntRange(0), default=0, help="Microseconds between datagrams of a live run.")
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
    *,
    repeats: int,
    ways: tuple[str, ...],
    count: int,
    cycles: int,
    seconds: float,
    size: int,
    sources: int,
    gap: int,
    only: tuple[str, ...],
    trains: tuple[int, ...],
) -> None:
    """Measure every receiver REPEATS times, one after the other."""
    names = [name for name in [*available(), *IN_C] if not only or name in only or name == BASELINE]
    results: dict[str, Results] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, console.status("receive") as status:
        receive, flood = (compiled(name, Path(folder)) for name in ("receive", "flood"))
        load = Load(flood, size=size, sources=sources, gap=gap)
        measures = {
            "backlog": partial(backlog, count=count, cycles=cycles),
            "live": partial(live, seconds=seconds),
        }
        for way, repeat, name in ((w, r, n) for w in ways or WAYS for r in range(repeats) for n in names):
            status.update(f"receive: {way}, round {repeat + 1} of {repeats}, {name}")
            for train, run in measured(command(name, way, receive), load, trains, measures[way]).items():
                results[way].setdefault(train, {}).setdefault(name, []).append(run)
    for way in ways or WAYS:
        show(way, results[way])
    show_goals(results)
    settings: dict[str, Any] = {"repeats": repeats, "count": count, "cycles": cycles, "seconds": seconds, "size": size}
    settings |= {"sources": sources, "gap": gap, "rcvbuf": RCVBUF, "versions": versions()}
    write("receive", {"settings": settings, "baseline": BASELINE, **results})


def measured(
    command: list[str],
    load: Load,
    trains: tuple[int, ...],
    measure: Callable[[Child, Load, int], dict[str, Any]],
) -> dict[int, dict[str, Any]]:
    """A run of one receiver for each length of train; again, and saying so, where one was disturbed."""
    for _ in range(TRIES):
        try:
            with Child.running(command) as child:
                return {train: measure(child, load, train) for train in trains}
        except DisturbedError as error:
            console.print(f"{shlex.join(command)} was disturbed: {error}", soft_wrap=True)
    raise click.ClickException("use a lower --count, or a higher net.core.rmem_max, or be root")


def command(name: str, way: str, receive: Path) -> list[str]:
    """What to run for a receiver; ``receive`` is the one in C."""
    if name in IN_C:
        return [str(receive), IN_C[name], str(RCVBUF[way])]
    return [sys.executable, str(FOLDER / "receivers.py"), name, way, str(RCVBUF[way])]


if __name__ == "__main__":
    main()
