"""Where the time of receiving goes: samples of perf(1) while aiolb empties full queues, by who had the CPU."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from children import CPUS, compiled, started
from loads import Child, DisturbedError, Load, backlog
from receive import RCVBUF, command
from receive_tables import trains_of
from results import console, write
from rich.box import SIMPLE_HEAD
from rich.table import Table

RECEIVER = "aiolb handle"
TRAINS = (16, 1)
SIZE, SOURCES, COUNT = 64, 8, 16_384
FREQUENCY = 1999
"""Samples per second: few enough that their timer does not show up among them."""

OBJECTS = (
    r"_?Py(Object|Mem)_(Malloc|Calloc|Free|Realloc)|_?PyObject_(GC|New|Init)|.*dealloc|PyBytes_From|make_gen|.*GC_"
)
PLACES = (
    ("the kernel: recvmmsg(2), poll", r"\[", ""),
    ("aiolb's compiled parts", r"_fast|_linux", ""),
    ("Python: making and freeing objects", r"^(lib)?python", OBJECTS),
    ("Python: running the handler", r"^(lib)?python", ""),
    ("the event loop: uvloop, asyncio", r"loop|_asyncio", ""),
    ("the C library: copying", "libc", ""),
)
"""What is told, and patterns of the file and of the function; the first that fits counts."""
OTHER = "other"


@click.command()
@click.option("--cycles", type=click.IntRange(1), default=100, show_default=True, help="Queues that are emptied.")
def main(*, cycles: int) -> None:
    """Sample the compiled receiver with trains and with single datagrams."""
    if shutil.which("perf") is None:
        console.print("shares: perf is not installed (apt-get install linux-perf): not measured\n")
        return
    try:
        found = measured(cycles)
    except DisturbedError as error:
        raise click.ClickException(f"disturbed, so try again: {error}") from error
    show(found)
    settings = {"size": SIZE, "sources": SOURCES, "count": COUNT, "cycles": cycles, "rcvbuf": RCVBUF["backlog"]}
    write("shares", {"settings": settings, "receiver": RECEIVER, "microseconds": found})


def measured(cycles: int) -> dict[int, dict[str, float]]:
    """CPU microseconds per datagram for each place; the cost itself is measured without perf."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, console.status("shares"):
        receive, flood = (compiled(name, Path(folder)) for name in ("receive", "flood"))
        load = Load(flood, size=SIZE, sources=SOURCES)
        with started(command(RECEIVER, "backlog", receive), CPUS[0], stdin=subprocess.PIPE) as process:
            child = Child(process)
            for train in TRAINS:
                cost = backlog(child, load, train, COUNT, cycles)["microseconds"]
                samples = Path(folder) / f"{train}.data"
                with sampled(process.pid, samples):
                    backlog(child, load, train, COUNT, cycles)
                found[train] = {name: cost * share for name, share in shares(samples).items()}
    return found


@contextmanager
def sampled(pid: int, samples: Path) -> Iterator[None]:
    """Let perf look at a process."""
    control = ["perf", "record", "--event", "cpu-clock", "--freq", str(FREQUENCY), "--pid", str(pid)]
    with subprocess.Popen([*control, "--output", samples], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as perf:
        assert perf.stderr is not None
        try:
            yield
        finally:
            perf.send_signal(signal.SIGINT)  # it writes its samples then
            said = perf.stderr.read().decode()
    if not samples.exists():
        raise click.ClickException(f"perf cannot look at processes: {said}")


def shares(samples: Path) -> dict[str, float]:
    """The share of the time that each place had; all of them make 1."""
    columns = ["--fields", "overhead,dso,sym", "--field-separator", "|"]
    report = subprocess.run(
        ["perf", "report", "--stdio", "--input", samples, *columns],  # noqa: S607 - found by PATH on every system
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    found = {name: 0.0 for name, _, _ in PLACES} | {OTHER: 0.0}
    for line in report.stdout.splitlines():
        if line and not line.startswith("#"):
            overhead, file, function, *_ = (part.strip() for part in line.split("|"))
            found[place_of(file, function.removeprefix("[.] "))] += float(overhead.rstrip("%"))
    total = sum(found.values())
    return {name: overhead / total for name, overhead in found.items()}


def place_of(file: str, function: str) -> str:
    """Whose time it is that is spent in a function of a file."""
    for name, files, functions in PLACES:
        if re.search(files, file) and re.match(functions, function):
            return name
    return OTHER


def show(found: dict[int, dict[str, float]]) -> None:
    """A line for each place."""
    table = Table("ns per datagram", title=f"{RECEIVER}: where the time goes", box=SIMPLE_HEAD, pad_edge=False)
    for train in found:
        table.add_column(trains_of(train), justify="right")
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{costs[name] * 1e3:.0f}" for costs in found.values()))
    console.print(table)


if __name__ == "__main__":
    main()
