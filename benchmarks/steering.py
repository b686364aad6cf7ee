"""What steering costs: the kernel's own run time per packet of the balancer, and of programs that do less."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import click
from children import CPUS, compiled, started
from floors import EMPTY, load_source, load_source_and_select
from results import Spread, console, write
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aiolb.address import Address
from aiolb.bpf import program, syscall
from aiolb.bpf.abi import MAP_TYPE_REUSEPORT_SOCKARRAY, U64
from aiolb.bpf.events import EventFilter
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.pins import Pins
from aiolb.bpf.rules import GuardOptions, GuardRules, Limit
from aiolb.errors import PrivilegeError
from aiolb.send.sources import allow_descriptors
from aiolb.sockets import bind_reuseport, reserved_port

BASELINE = "empty"
LOAD = "load the source"
FLOOR = "load it, select a socket"
MEMBERS = (1, 3, 32, 1024)
SOURCES = (1, 100, 10_000, 100_000)
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
MITIGATION = Path("/sys/devices/system/cpu/vulnerabilities/spec_rstack_overflow")
SIZE = 64
COLD_SOURCES = 200
FLOOD_SOURCES = 1_000_000
GUARDED = 3
"""Members of the groups with a guard."""
TRACED = 3
"""Members of the groups that are traced."""
FOREVER = 86_400.0
"""Seconds; no benchmark takes so long."""

Send = Callable[[int, int], int]
"""Sends a number of datagrams to a port; gives how many left."""
Runs = dict[str, dict[str, list[float]]]
"""Nanoseconds per packet by program, and by what was sent to it."""

NOTES = f"""\
Medians of the difference to the program {BASELINE!r} in the same round; that one's own time, in brackets, holds the
kernel's two looks at the clock (bpf_stats_enabled). {FLOOR!r} calls the two helpers that
every program of this kind must call, and nothing else. C sends 64 datagrams in one system call; flood is
{FLOOD_SOURCES:,} sources; cold is {COLD_SOURCES} sources in Python, which runs so much between two datagrams that the
caches have lost the program. The first four guards let every source pass; the others drop: all, and all
that finds a bucket. A trace's buffer is full soon, for nobody reads it: what finds no room is counted."""


def guards() -> dict[str, GuardOptions]:
    """The guards that are measured, by name; 4,097 rules have one for each /24 that anything is sent from."""
    one = GuardRules.of([ip_network("127.0.0.0/8")])
    many = GuardRules.of([ip_network("127.0.1.0/24"), *(ip_network((0x7F010000 + n * 256, 24)) for n in range(4096))])
    wide = Limit.parse("1e6:1000000")
    return {
        "guard, 1 rule": GuardOptions(one),
        "guard, 4,097 rules": GuardOptions(many),
        "guard, limit": GuardOptions(limit=wide),
        "guard, 4,097 rules, limit": GuardOptions(many, wide),
        "guard, no rule allows": GuardOptions(GuardRules.of([ip_network("10.0.0.0/8")])),
        "guard, over the limit": GuardOptions(limit=Limit.parse("0.001:1")),
    }


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
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Rounds.")
@click.option("--count", type=click.IntRange(1), default=20_000, show_default=True, help="Datagrams of a measurement.")
@click.option(
    "--members",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=MEMBERS,
    show_default=True,
    help="Size of a group; may be repeated.",
)
@click.option(
    "--sources",
    type=click.IntRange(1, 1 << 20),
    multiple=True,
    default=SOURCES,
    show_default=True,
    help="Sources that send; may be repeated.",
)
def main(*, repeats: int, count: int, members: tuple[int, ...], sources: tuple[int, ...]) -> None:
    """Measure the floors and groups of different size, REPEATS times, one after the other."""
    allow_descriptors(sum(members) + GUARDED * len(guards()) + TRACED * len(traces()) + COLD_SOURCES + 100)
    with ExitStack() as stack:
        try:
            targets = opened(stack, members)
            stack.enter_context(kernel_statistics())
        except (PrivilegeError, PermissionError) as error:
            raise click.ClickException(f"only root can measure this: {error}") from error
        loads = {f"{number:,}": load for number, load in zip(sources, from_c(stack, sources), strict=True)}
        loads["flood"] = from_c(stack, (FLOOD_SOURCES,))[0]
        loads["cold"] = from_python(stack)
        status = stack.enter_context(console.status("steering"))
        runs: Runs = {name: {load: [] for load in loads} for name in targets}
        for repeat in range(repeats):
            status.update(f"steering: round {repeat + 1} of {repeats}")
            for load, send in loads.items():
                for name, target in targets.items():
                    runs[name][load].append(measure(target, send, count))
    show(runs)
    mitigation = MITIGATION.read_text().strip() if MITIGATION.exists() else "unknown"
    settings = {"count": count, "size": SIZE, "members": members, "return_mitigation": mitigation}
    write("steering", {"settings": settings, "baseline": BASELINE, "floor": FLOOR, "nanoseconds_per_packet": runs})


def opened(stack: ExitStack, members: tuple[int, ...]) -> dict[str, Target]:
    """All programs, each on a port of its own; the one that does nothing comes first."""
    targets = {
        BASELINE: stack.enter_context(alone(EMPTY)),
        LOAD: stack.enter_context(alone(load_source())),
        FLOOR: stack.enter_context(selecting()),
    }
    for number in members:
        targets[group_name(number)] = stack.enter_context(group(number))
    for name, guard in guards().items():
        targets[name] = stack.enter_context(group(GUARDED, guard))
    for name, wanted in traces().items():
        targets[name] = stack.enter_context(group(TRACED, wanted=wanted))
    return targets


def traces() -> dict[str, EventFilter]:
    """What is traced, by name. Nobody takes anything out: a reader cannot be slower."""
    return {
        "trace, of another source": EventFilter(ip_network("192.0.2.1/32")),
        "trace, one of 1,000": EventFilter(sample=1000),
        "trace, all, buffer full": EventFilter(),
    }


def group_name(members: int) -> str:
    """What a group is called in the table."""
    return f"balancer, {members:,} member{'s' * (members != 1)}"


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
def alone(instructions: bytes) -> Iterator[Target]:
    """A port with one socket and a program that selects none: the kernel's own hash decides."""
    kind = syscall.PROG_TYPE_SK_REUSEPORT
    program_fd = syscall.prog_load(kind, instructions, license_text=program.LICENSE, name="aiolb_floor")
    try:
        with reserved_port(Address("127.0.0.1", 0)) as address, bind_reuseport(address) as sock:
            syscall.attach_reuseport(sock, program_fd)
            yield Target(address.port, program_fd)
    finally:
        os.close(program_fd)


@contextmanager
def selecting() -> Iterator[Target]:
    """A port with one socket and a program that selects it from a map."""
    kind = MAP_TYPE_REUSEPORT_SOCKARRAY
    targets = syscall.map_create(kind, key_size=4, value_size=U64.size, entries=1, name="aiolb_floor")
    try:
        with (
            alone(load_source_and_select(targets)) as target,
            bind_reuseport(Address("127.0.0.1", target.port)) as sock,
        ):
            syscall.map_update(targets, 0, U64.pack(sock.fileno()))
            yield target
    finally:
        os.close(targets)


@contextmanager
def group(members: int, guard: GuardOptions | None = None, wanted: EventFilter | None = None) -> Iterator[Target]:
    """A port with a whole group in this process, whose decisions are traced if any are wanted."""
    with ExitStack() as stack:
        address = stack.enter_context(reserved_port(Address("127.0.0.1", 0)))
        with Group.opened_or_created(address, GroupOptions(count=members, guard=guard or GuardOptions())) as joined:
            stack.callback(joined.close)
            stack.callback(joined.delete)
            for index in range(members):
                joined.join(stack.enter_context(bind_reuseport(address)), index)
            program_fd = Pins(address).open_program()
        stack.callback(os.close, program_fd)
        if wanted is not None:
            stack.enter_context(closing(joined.events(wanted, patience=FOREVER))).start()
        yield Target(address.port, program_fd)


def from_c(stack: ExitStack, numbers: tuple[int, ...]) -> list[Send]:
    """What sends from so many sources each, all in one C program."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    command = [str(compiled("sources", folder)), str(SIZE)]
    child = stack.enter_context(started(command, CPUS[-1], stdin=subprocess.PIPE))

    def send_from(sources: int, port: int, count: int) -> int:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{port} {sources} {count}\n".encode())
        child.stdin.flush()
        return int(child.stdout.readline())

    return [partial(send_from, sources) for sources in numbers]


def from_python(stack: ExitStack) -> Send:
    """What sends one datagram after the other from sockets of this process."""
    senders = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(COLD_SOURCES)]
    for number, sock in enumerate(senders):
        sock.bind((f"127.0.1.{number + 1}", 0))

    def send(port: int, count: int) -> int:
        # Not connected: those would be told that a datagram was dropped.
        for number in range(count):
            senders[number % COLD_SOURCES].sendto(bytes(SIZE), ("127.0.0.1", port))
        return count

    return send


def measure(target: Target, send: Send, count: int) -> float:
    """Nanoseconds per packet. Nobody reads: a packet is steered before it is found that the queue is full."""
    nanoseconds, packets = target.usage()
    sent = send(target.port, count)
    nanoseconds_after, packets_after = target.usage()
    assert packets_after - packets == sent == count, "the program saw other packets than those sent"
    return (nanoseconds_after - nanoseconds) / count


def over(runs: Runs, name: str, load: str, base: str = BASELINE) -> Spread:
    """What a program costs more than another one in the same round."""
    costs = zip(runs[name][load], runs[base][load], strict=True)
    return Spread.of(cost - other for cost, other in costs)


def show(runs: Runs) -> None:
    """A line for each program, a column for each number of sources."""
    title = "steering: ns per packet over empty, by number of sources"
    table = Table("program", title=title, box=SIMPLE_HEAD, pad_edge=False)
    loads = list(runs[BASELINE])
    for load in loads:
        table.add_column(load, justify="right")
    table.add_row(BASELINE, *(f"({Spread.of(costs).median:.0f})" for costs in runs[BASELINE].values()))
    for name in list(runs)[1:]:
        table.add_row(name, *(f"{over(runs, name, load).median:.0f}" for load in loads))
    console.print(table)
    console.print(NOTES, soft_wrap=True)


if __name__ == "__main__":
    main()
