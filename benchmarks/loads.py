"""Two ways to load a receiver that is measured: a flood that does not end, and a queue that was filled before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from children import CPUS, answer, started

WARM_UP = 0.25
"""Seconds of a flood before it is measured."""
DEADLINE = 60.0
"""Seconds after which a queue that is not empty counts as one that nobody reads."""
QUIET = 0.001
"""Seconds; a receiver that used no CPU time for so long has nothing left to do."""
ENOUGH = 1.5
"""Seconds of CPU time after which no further backlog is measured: many datagrams too."""


class DisturbedError(Exception):
    """A run that cannot count, such as one whose receiver got more than was sent to it."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: ``gap`` is how many microseconds the sender of a flood waits between datagrams."""

    flood: Path
    size: int
    sources: int
    gap: int = 0

    def command(self, port: int, train: int, *more: int) -> list[str]:
        """The flood against a port."""
        return [str(part) for part in (self.flood, "127.0.0.1", port, self.sources, self.size, train, self.gap, *more)]


class Child:
    """A receiver in a process of its own, on the first CPU; this process leaves it alone there."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        first = answer(process)
        self.port: int = first["port"]
        self.receiver: str = first["receiver"]
        self._process = process
        os.sched_setaffinity(0, {CPUS[-1]})

    @classmethod
    @contextmanager
    def running(cls, command: list[str]) -> Iterator[Child]:
        """Start a receiver, and kill it in the end."""
        try:
            with started(command, CPUS[0], stdin=subprocess.PIPE) as process:
                yield cls(process)
        finally:
            os.sched_setaffinity(0, CPUS)

    def ask(self) -> dict[str, Any]:
        """What it has used, received and lost so far."""
        return ask(self._process)

    def cpu_seconds(self) -> float:
        """CPU time that it has used, read from outside (clock_getcpuclockid(3))."""
        return time.clock_gettime((~self._process.pid << 3) | 2)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it not run, whatever it is made of: no receiver needs to know."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        yield
        self._process.send_signal(signal.SIGCONT)

    def wait_until_done(self) -> None:
        """Wait until its queue is empty, and it sleeps and uses no CPU time any more."""
        deadline, before = time.monotonic() + DEADLINE, -1.0
        while self._queued() or not self._sleeping() or before != self.cpu_seconds():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{self._process.args!r} left datagrams in its queue")
            before = self.cpu_seconds()
            time.sleep(QUIET)

    def _queued(self) -> bool:
        """Whether the kernel has something for its socket, as /proc/net/udp tells."""
        # The address in the order of bytes of the machine; senders may have the same port on addresses of their own.
        own = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{self.port:04X}"
        for line in Path("/proc/net/udp").read_text().splitlines():
            _, local, _, _, queues, *_ = line.split()
            if local == own:
                return not queues.endswith(":00000000")
        return True  # a line may be missing where others open and close sockets

    def _sleeping(self) -> bool:
        """Whether it waits, and not only for the CPU: the state that /proc/PID/stat tells behind the name."""
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def ask(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The answer of a process to an empty line."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    return answer(process)


def live(child: Child, load: Load, train: int, seconds: float) -> dict[str, Any]:
    """Measure for ``seconds`` under a flood from another CPU."""
    with started(load.command(child.port, train), CPUS[-1]):
        time.sleep(WARM_UP)
        start = child.ask()
        time.sleep(seconds)
        end = child.ask()
    child.wait_until_done()
    cpu = end["cpu"] - start["cpu"]
    share = cpu / (end["wall"] - start["wall"])
    gap = max(start["gap"], end["gap"]) if end.get("gap") is not None else None
    return {**summary(start, end, cpu), "cpu_share": share, "gap": gap, "receiver": child.receiver}


def backlog(child: Child, load: Load, train: int, count: int, cycles: int) -> dict[str, Any]:
    """Measure at most ``cycles`` times how ``count`` datagrams are taken that were in the queue before it could run."""
    with started(load.command(child.port, train, count), CPUS[-1], stdin=subprocess.PIPE) as flood:
        child.wait_until_done()
        drain(child, flood)
        start, sent, cpu = child.ask(), 0, 0.0
        for _ in range(cycles):
            number, used = drain(child, flood)
            sent, cpu = sent + number, cpu + used
            if cpu > ENOUGH:
                break
        end = child.ask()
    if drops := end["drops"] - start["drops"]:
        raise DisturbedError(f"{drops} packets of {sent} datagrams did not fit into the queue")
    return {**summary(start, end, cpu), "sent": sent, "receiver": child.receiver}


def drain(child: Child, flood: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Fill the queue and let it be read: datagrams sent, and CPU seconds that the receiver used."""
    with child.stopped():
        sent: int = ask(flood)["sent"]
        before = child.cpu_seconds()
    child.wait_until_done()
    return sent, child.cpu_seconds() - before


def summary(start: dict[str, Any], end: dict[str, Any], cpu: float) -> dict[str, Any]:
    """CPU microseconds and page faults per datagram; datagrams counted and packets dropped overall."""
    datagrams = end["datagrams"] - start["datagrams"]
    if not datagrams:
        raise DisturbedError("no datagram was taken")
    return {
        "microseconds": cpu / datagrams * 1e6,
        "page_faults": (end["page_faults"] - start["page_faults"]) / datagrams,
        "datagrams": datagrams,
        "drops": end["drops"] - start["drops"],
    }
