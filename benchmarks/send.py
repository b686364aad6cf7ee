"""What sending costs: CPU time per datagram of the publisher and of its peers, interleaved."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from children import CPUS, FOLDER, compiled, started
from results import Spread, console, write
from rich.table import Table

SINKS = {"trains": "to a receiver that takes trains whole", "full": "into a full queue"}

NOTES = """\
Medians; ratios are those of one round, to the C program of the same kind: send with UDP_SEGMENT, or sendmmsg.
On the loopback interface sending does most of the receiver's work in the kernel too, and so the receiver matters.
iperf3 sends to a server of its own."""


@click.command()
@click.option("--repeats", type=click.IntRange(5), default=7, show_default=True, help="Runs of each sender.")
@click.option("--count", type=click.IntRange(1), default=300_000, show_default=True, help="Datagrams of a run.")
@click.option("--train-count", type=click.IntRange(1), default=6_000_000, show_default=True, help="The same in trains.")
@click.option("--size", type=click.IntRange(32, 1000), default=64, show_default=True, help="Bytes of payload.")
@click.option("--sources", type=click.IntRange(1, 250), default=8, show_default=True, help="Sources that send.")
@click.option("--train", type=click.IntRange(2, 64), default=60, show_default=True, help="Datagrams in a train.")
def main(*, repeats: int, count: int, train_count: int, size: int, sources: int, train: int) -> None:
    """Measure every sender REPEATS times, one after the other."""
    sizes = [str(sources), str(size)]
    all_runs = {}
    with ExitStack() as stack:
        program = compiled("send", Path(stack.enter_context(tempfile.TemporaryDirectory())))
        status = stack.enter_context(console.status("send"))
        for kind, title in SINKS.items():
            port = stack.enter_context(sink(kind))
            senders = {
                **of_kind(program, port, [*sizes, str(train_count), str(train)], f"trains of {train}"),
                **of_kind(program, port, [*sizes, str(count), "1"], "no trains"),
                ("no trains", "uvloop sendto"): python("uvloop", port, [*sizes, str(count), "1"]),
            }
            if shutil.which("iperf3"):
                senders["no trains", "iperf3 -u"] = stack.enter_context(iperf3(size))
            runs: dict[tuple[str, str], list[float]] = {name: [] for name in senders}
            for repeat in range(repeats):
                for name, sender in senders.items():
                    status.update(f"send {title}: round {repeat + 1} of {repeats}, {', '.join(name)}")
                    runs[name].append(sender())
            show(title, runs)
            all_runs[kind] = {": ".join(name): costs for name, costs in runs.items()}
    console.print(NOTES, soft_wrap=True)
    settings = {"count": count, "train_count": train_count, "size": size, "sources": sources, "train": train}
    write("send", {"settings": settings, "microseconds": all_runs})


def output(command: list[str]) -> Any:
    """What a sender says, which is JSON."""
    with started(command, CPUS[0], stdin=subprocess.PIPE) as child:
        said, _ = child.communicate()
    if child.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with status {child.returncode}")
    return json.loads(said)


@contextmanager
def sink(kind: str) -> Iterator[int]:
    """A process to send to; gives its port."""
    command = [sys.executable, str(FOLDER / "senders.py"), "sink", kind]
    with started(command, CPUS[-1], stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield int(child.stdout.readline())


def of_kind(program: Path, port: int, numbers: list[str], kind: str) -> dict[tuple[str, str], Callable[[], float]]:
    """The C program first, to which the others are compared."""
    return {
        (kind, "C"): lambda: measure([str(program), str(port), *numbers]),
        (kind, "aiolb"): python("fast", port, numbers),
        (kind, "aiolb, stamped"): python("fast+stamp", port, numbers),
        (kind, "aiolb, pure Python"): python("plain", port, numbers),
    }


def python(name: str, port: int, numbers: list[str]) -> Callable[[], float]:
    """A sender of ours in a process of its own."""
    return lambda: measure([sys.executable, str(FOLDER / "senders.py"), name, str(port), *numbers])


def measure(command: list[str]) -> float:
    """CPU microseconds per datagram, as the command says."""
    cost: float = output(command)["microseconds"]
    return cost


@contextmanager
def iperf3(size: int) -> Iterator[Callable[[], float]]:
    """An iperf3 server; gives what runs a client for a second."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    server = ["iperf3", "--server", "--port", port, "--bind", "127.0.0.1", "--forceflush"]
    client = ["iperf3", "--client", "127.0.0.1", "--port", port, "--udp", "--bitrate", "0", "--length", str(size)]
    with started(server, CPUS[-1], stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        while b"listening" not in child.stdout.readline():
            assert child.poll() is None, "iperf3 ended"
        yield lambda: iperf3_cost([*client, "--time", "1", "--json"])


def iperf3_cost(command: list[str]) -> float:
    """CPU microseconds per datagram, from the share of a CPU and the time that iperf3 tells."""
    end = output(command)["end"]
    cpu: float = end["cpu_utilization_percent"]["host_total"] / 100 * end["sum"]["seconds"]
    packets: int = end["sum"]["packets"]
    return cpu / packets * 1e6


def show(title: str, runs: dict[tuple[str, str], list[float]]) -> None:
    """A line for each sender."""
    table = Table(title=f"send {title}: CPU time per datagram")
    for column in ("datagrams", "sender"):
        table.add_column(column, no_wrap=True)
    for column in ("µs", "spread", "ratio"):
        table.add_column(column, justify="right")
    for (datagrams, sender), costs in runs.items():
        base = runs[datagrams, "C"]
        ratio = Spread.of(cost / other for cost, other in zip(costs, base, strict=True)).median
        table.add_row(datagrams, sender, *Spread.of(costs).text(3), f"x {ratio:.2f}")
    console.print(table)
    ours = next(costs for (datagrams, sender), costs in runs.items() if sender == "aiolb")
    if theirs := runs.get(("no trains", "iperf3 -u")):
        ratio = Spread.of(cost / other for cost, other in zip(theirs, ours, strict=True)).median
        console.print(f"iperf3 -u costs {ratio:.1f} times as much as aiolb in trains\n")


if __name__ == "__main__":
    main()
