"""What receiving costs: CPU time per datagram of aiolb and of its peers, under a flood, interleaved."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from receivers import RCVBUF, RECEIVERS
from results import Spread, console, write
from rich.table import Table

BASELINE = "uvloop callback"
SATURATED = 0.95
"""Share of a CPU from which a receiver counts as busy all the time."""
TRAINS_PER_LOOK = 256
CPUS = sorted(os.sched_getaffinity(0))

NOTES = f"""\
Medians; a ratio is to {BASELINE!r} of the same round.
CPU and dropped are the lowest of all rounds: a receiver is saturated when the kernel dropped datagrams.
asyncio's own transport asks for 256 KiB of memory for each datagram. Where malloc serves that with an mmap each time,
there are page faults, as counted, and it is several times slower than where it does not."""

_UDP_SEGMENT = 103  # Linux include/uapi/linux/udp.h; the socket module of Python has no name for it


@click.command()
@click.option("--repeats", type=click.IntRange(5), default=7, show_default=True, help="Runs of each receiver.")
@click.option(
    "--count", type=click.IntRange(1), default=100_000, show_default=True, help="Datagrams measured in a run."
)
@click.option("--warmup", type=click.IntRange(1), default=20_000, show_default=True, help="Datagrams before that.")
@click.option("--size", type=click.IntRange(1), default=64, show_default=True, help="Bytes of payload.")
@click.option("--sources", type=click.IntRange(1, 250), default=64, show_default=True, help="Sources that send.")
@click.option(
    "--train", type=click.IntRange(1, 64), default=16, show_default=True, help="Datagrams sent in one system call."
)
def main(*, repeats: int, count: int, warmup: int, size: int, sources: int, train: int) -> None:
    """Measure every receiver REPEATS times, one after the other."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RECEIVERS}
    with ExitStack() as stack:
        senders = [stack.enter_context(sender(n, size, train)) for n in range(sources)]
        status = stack.enter_context(console.status("receive"))
        for repeat in range(repeats):
            for name, results in runs.items():
                status.update(f"receive: round {repeat + 1} of {repeats}, {name}")
                results.append(measure(name, senders, bytes(size * train), warmup, count))
    show(runs)
    settings = {"count": count, "warmup": warmup, "size": size, "sources": sources, "train": train, "rcvbuf": RCVBUF}
    write("receive", {"settings": settings, "baseline": BASELINE, "runs": runs})


@contextmanager
def sender(number: int, size: int, train: int) -> Iterator[socket.socket]:
    """A socket of its own source; the kernel cuts what it sends into datagrams of ``size`` bytes (UDP GSO)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((f"127.0.1.{number + 1}", 0))
        if train > 1:
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, size)
        yield sock


def measure(name: str, senders: list[socket.socket], train: bytes, warmup: int, count: int) -> dict[str, Any]:
    """Flood one receiver until it says what it found; sender and receiver have a CPU each where there are two."""
    command = [sys.executable, str(Path(__file__).with_name("receivers.py")), name, str(warmup), str(count)]
    os.sched_setaffinity(0, {CPUS[-1]})  # for the child, which inherits it
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        os.sched_setaffinity(0, {CPUS[0]})
        assert child.stdout is not None
        try:
            started = read(child)
            flood(senders, started["port"], train, until=child.stdout.fileno())
            return {**read(child), "receiver": started["receiver"]}
        finally:
            child.kill()


def read(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line of the receiver."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise click.ClickException(f"a receiver ended with status {child.wait()}")
    content: dict[str, Any] = json.loads(line)
    return content


def flood(senders: list[socket.socket], port: int, train: bytes, *, until: int) -> None:
    """Send trains from all senders in turn until there is something to read at ``until``."""
    for sock in senders:
        sock.connect(("127.0.0.1", port))
    while not select.select([until], [], [], 0)[0]:
        for n in range(TRAINS_PER_LOOK):
            try:
                senders[n % len(senders)].send(train)
            except ConnectionRefusedError:  # the receiver has closed its socket, and will say so
                break


def show(runs: dict[str, list[dict[str, Any]]]) -> None:
    """A line for each receiver."""
    table = Table(title="receive: CPU time per datagram")
    table.add_column("receiver", no_wrap=True)
    for column in ("µs", "spread", "ratio", "CPU", "dropped", "faults"):
        table.add_column(column, justify="right")
    base = [run["microseconds"] for run in runs[BASELINE]]
    for name, results in runs.items():
        costs = [run["microseconds"] for run in results]
        ratio = Spread.of(cost / other for cost, other in zip(costs, base, strict=True)).median
        share, drops = min(run["cpu_share"] for run in results), min(run["drops"] for run in results)
        faults = Spread.of(run["page_faults"] for run in results).median
        cost = Spread.of(costs)
        table.add_row(
            name,
            f"{cost.median:.2f}",
            f"{cost.low:.1f}-{cost.high:.1f}",
            f"x {ratio:.2f}",
            f"{share:.0%}",
            f"{drops:,}",
            f"{faults:.1f}",
        )
    console.print(table)
    console.print(NOTES, soft_wrap=True)
    for name, results in runs.items():
        idle = sum(1 for run in results if run["drops"] == 0 and run["cpu_share"] < SATURATED)
        if idle:
            console.print(f"{name} was not saturated in {idle} of {len(results)} runs: its number says little")


if __name__ == "__main__":
    main()
