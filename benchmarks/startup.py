"""What a member takes before its first datagram, and for its millionth source: time to start, and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from children import CPUS, compiled, started
from results import Spread, console, write
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aiolb.config import BALANCERS, ServeConfig

AIOLB = "aiolb serve"
LIBRARIES = "asyncio, click, structlog, uvloop"
FLOORS = {
    "python": "",
    "python with the libraries": f"import {LIBRARIES}; ",
}
READY = "print(flush=True)"
UNWANTED = "twisted"
"""A peer of other benchmarks, which structlog imports where it is installed."""
SIZE = 64
WINDOW = 128
"""Datagrams in flight: fewer than any queue holds, so that none is lost."""

NOTES = f"""\
Medians, from the start of the process to its event ready; files are in the page cache. The floors run until they can
print a line, the second with {LIBRARIES} imported. MB are 1,000,000 bytes of resident memory."""


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Rounds.")
@click.option("--sources", type=click.IntRange(1, 10_000_000), default=1_000_000, show_default=True, help="That send.")
@click.option("--balancer", type=click.Choice(BALANCERS), default="ebpf", show_default=True, help="Of the member.")
@click.option(
    "--bpffs",
    type=click.Path(path_type=Path),
    default=ServeConfig().bpffs,
    show_default=True,
    help="Where the BPF file system is mounted.",
)
def main(*, repeats: int, sources: int, balancer: str, bpffs: Path) -> None:
    """Start a member REPEATS times, and show it many sources."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (*FLOORS, AIOLB)}
    with tempfile.TemporaryDirectory() as folder, console.status("start-up") as status:
        program = compiled("sources", Path(folder))
        report, environment = Path(folder) / "report.json", without_peers(Path(folder))
        options = ["--balancer", balancer, "--bpffs", str(bpffs), "--report", str(report)]
        for repeat in range(repeats):
            for name, imports in FLOORS.items():
                status.update(f"start-up: round {repeat + 1} of {repeats}, {name}")
                runs[name].append(start_floor(imports, environment))
            status.update(f"start-up: round {repeat + 1} of {repeats}, {AIOLB}, {sources:,} sources")
            runs[AIOLB].append(start_member(options, environment, program, sources))
            received = json.loads(report.read_text())["received"]
            assert received == sources, f"{received:,} datagrams were received, and {sources:,} sent"
            runs[AIOLB][-1]["received"] = received
    show(runs, sources)
    settings = {"sources": sources, "balancer": balancer, "size": SIZE}
    write("startup", {"settings": settings, "runs": runs})


def without_peers(folder: Path) -> dict[str, str]:
    """The environment of a Python in which what only benchmarks need is not installed."""
    modules = folder / "modules"
    modules.mkdir()
    (modules / f"{UNWANTED}.py").write_text("raise ImportError\n")
    return {**os.environ, "PYTHONPATH": str(modules)}


def start_floor(imports: str, environment: dict[str, str]) -> dict[str, float]:
    """What Python itself takes."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", f"{imports}{READY}; input()"]
    with started(command, CPUS[0], stdin=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()
        return measured(child.pid, begin)


def start_member(options: list[str], environment: dict[str, str], program: Path, sources: int) -> dict[str, float]:
    """Start one, let each source send a datagram, and stop it."""
    with ExitStack() as stack:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "aiolb", "serve", "echo", "--bind", "127.0.0.1:0", "--log-format", "json"]
        member = stack.enter_context(started([*command, *options], CPUS[0], stderr=subprocess.PIPE, env=environment))
        ready = wait_until_ready(member)
        run = measured(member.pid, begin)
        port = int(ready["bind"].rpartition(":")[2])
        load = [str(program), str(SIZE), str(WINDOW)]
        sender = stack.enter_context(started(load, CPUS[-1], stdin=subprocess.PIPE))
        said, _ = sender.communicate(f"{port} {sources} {sources}\n".encode())
        assert int(said) == sources, f"{sources - int(said):,} datagrams had no answer"
        run["growth"] = resident(member.pid) - run["rss"]
        member.send_signal(signal.SIGTERM)
        _, log = member.communicate()
        if member.returncode:
            raise click.ClickException(f"the member ended with status {member.returncode}: {log.decode()}")
        return run


def wait_until_ready(member: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The event with which a member says that it receives."""
    assert member.stderr is not None
    lines = []
    for line in member.stderr:
        lines.append(line)
        event: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
        if event.get("event") == "ready":
            return event
    raise click.ClickException(f"the member did not start: {b''.join(lines).decode()}")


def measured(pid: int, begin: float) -> dict[str, float]:
    """Seconds since the beginning and of CPU time, bytes of resident memory."""
    wall = time.perf_counter() - begin
    return {"wall": wall, "cpu": cpu_seconds(pid), "rss": resident(pid)}


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def resident(pid: int) -> int:
    """Resident memory in bytes, counted page by page."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def show(runs: dict[str, list[dict[str, float]]], sources: int) -> None:
    """A line for each process."""
    table = Table(title="start-up: time and memory", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("process", no_wrap=True)
    for column in ("ms", "spread", "CPU ms", "MB", "spread"):
        table.add_column(column, justify="right")
    for name, results in runs.items():
        wall, rss = (Spread.of(run[key] * unit for run in results) for key, unit in (("wall", 1e3), ("rss", 1e-6)))
        cpu = Spread.of(run["cpu"] * 1e3 for run in results)
        table.add_row(name, *wall.text(0), f"{cpu.median:.0f}", *rss.text(1))
    console.print(table)
    growth = Spread.of(run["growth"] / 1e6 for run in runs[AIOLB]).text(1)
    console.print(
        f"{AIOLB} grew by {growth[0]} MB ({growth[1]}) while it echoed a datagram from each of {sources:,} sources"
    )
    console.print(NOTES, soft_wrap=True)


if __name__ == "__main__":
    main()
