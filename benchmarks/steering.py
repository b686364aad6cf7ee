"""What steering costs: the kernel's own run time per packet of the balancer, and of a program that does nothing."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from results import Spread, console, write
from rich.table import Table

from aiolb.address import Address
from aiolb.bpf import program, syscall
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.pins import Pins
from aiolb.errors import PrivilegeError
from aiolb.send.sources import allow_descriptors
from aiolb.sockets import bind_reuseport, reserved_port

MEMBERS = (1, 3, 32, 1024)
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
EMPTY = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
"""Two instructions: r0 = SK_PASS; exit."""

NOTES = """\
Medians; "over empty" is the difference to the empty program in the same round. Both numbers hold the kernel's two
looks at the clock (bpf_stats_enabled), the difference does not."""


@dataclass(frozen=True, slots=True)
class Target:
    """A port where datagrams meet a program."""

    port: int
    program_fd: int

    def usage(self) -> tuple[int, int]:
        """Nanoseconds that the program ran for, and how often, as /proc/self/fdinfo tells."""
        lines = Path(f"/proc/self/fdinfo/{self.program_fd}").read_text().splitlines()
        fields = dict(line.split(":\t", 1) for line in lines)
        return int(fields["run_time_ns"]), int(fields["run_cnt"])


@click.command()
@click.option("--repeats", type=click.IntRange(5), default=7, show_default=True, help="Rounds.")
@click.option("--count", type=click.IntRange(1), default=20_000, show_default=True, help="Datagrams in each round.")
@click.option("--sources", type=click.IntRange(1, 250), default=250, show_default=True, help="Sources that send.")
def main(*, repeats: int, count: int, sources: int) -> None:
    """Measure the empty program and groups of different size, REPEATS times, one after the other."""
    allow_descriptors(sum(MEMBERS) + sources + 100)
    runs: dict[str, list[float]] = {}
    with ExitStack() as stack:
        try:
            targets = {"empty": stack.enter_context(empty())}
            for members in MEMBERS:
                targets[str(members)] = stack.enter_context(group(members))
            stack.enter_context(kernel_statistics())
        except (PrivilegeError, PermissionError) as error:
            raise click.ClickException(f"only root can measure this: {error}") from error
        senders = [stack.enter_context(sender(n)) for n in range(sources)]
        status = stack.enter_context(console.status("steering"))
        for repeat in range(repeats):
            status.update(f"steering: round {repeat + 1} of {repeats}")
            for name, target in targets.items():
                runs.setdefault(name, []).append(measure(target, senders, count))
    show(runs)
    settings = {"count": count, "sources": sources}
    write("steering", {"settings": settings, "baseline": "empty", "nanoseconds_per_packet": runs})


@contextmanager
def kernel_statistics() -> Iterator[None]:
    """Let the kernel measure programs; put the setting back afterwards."""
    before = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        yield
    finally:
        STATISTICS.write_text(before)


@contextmanager
def empty() -> Iterator[Target]:
    """A port with the empty program: the kernel's own hash decides."""
    program_fd = syscall.prog_load(
        syscall.PROG_TYPE_SK_REUSEPORT, EMPTY, license_text=program.LICENSE, name="aiolb_empty"
    )
    try:
        with reserved_port(Address("127.0.0.1", 0)) as address, bind_reuseport(address) as sock:
            syscall.attach_reuseport(sock, program_fd)
            yield Target(address.port, program_fd)
    finally:
        os.close(program_fd)


@contextmanager
def group(members: int) -> Iterator[Target]:
    """A port with a whole group in this process."""
    with ExitStack() as stack:
        address = stack.enter_context(reserved_port(Address("127.0.0.1", 0)))
        with Group.opened_or_created(address, GroupOptions(count=members)) as joined:
            stack.callback(joined.close)
            stack.callback(joined.delete)
            for index in range(members):
                joined.join(stack.enter_context(bind_reuseport(address)), index)
            program_fd = Pins(address).open_program()
        stack.callback(os.close, program_fd)
        yield Target(address.port, program_fd)


@contextmanager
def sender(number: int) -> Iterator[socket.socket]:
    """A socket of its own source."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((f"127.0.1.{number + 1}", 0))
        yield sock


def measure(target: Target, senders: list[socket.socket], count: int) -> float:
    """Nanoseconds per packet. Nobody reads: a packet is steered before it is found that the queue is full."""
    for sock in senders:
        sock.connect(("127.0.0.1", target.port))
    nanoseconds, packets = target.usage()
    for n in range(count):
        senders[n % len(senders)].send(b"aiolb")
    nanoseconds_after, packets_after = target.usage()
    assert packets_after - packets == count, "the program saw other packets than those sent"
    return (nanoseconds_after - nanoseconds) / count


def show(runs: dict[str, list[float]]) -> None:
    """A line for each size of group."""
    table = Table("members", title="steering: run time per packet")
    for column in ("ns", "spread", "over empty", "spread"):
        table.add_column(column, justify="right")
    for name, costs in runs.items():
        over = Spread.of(cost - floor for cost, floor in zip(costs, runs["empty"], strict=True))
        table.add_row(name, *Spread.of(costs).text(0), *(("", "") if name == "empty" else over.text(0)))
    console.print(table)
    console.print(NOTES, soft_wrap=True)


if __name__ == "__main__":
    main()
