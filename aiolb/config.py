"""The settings of a collector, validated and frozen; pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiolb.address import DEFAULT_PORT, PROTOCOLS, Address
from aiolb.bpf.abi import BPFFS, MAX_MEMBERS
from aiolb.bpf.keys import TCP_HAS_NO_PAYLOAD, Key
from aiolb.bpf.rules import GuardRules, Limit, networks
from aiolb.bpf.slots import MAX_WEIGHT
from aiolb.errors import ConfigurationError

DEFAULT_BIND = (Address("0.0.0.0", DEFAULT_PORT),)
BALANCERS = ("auto", "ebpf", "classic", "none")
LOOPS = ("uvloop", "asyncio")
UNITS = {"udp": "datagrams", "tcp": "connections"}
"""What is handled, by protocol."""
MAX_RCVBUF = (1 << 30) - 1  # the kernel doubles the number and keeps it in an int

MIB = 1 << 20
DEFAULT_RCVBUF = 20 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How one member serves. Raises ConfigurationError for a setting that cannot work.

    Attributes:
        protocol: ``udp`` for datagrams, ``tcp`` for connections.
        bind: addresses to receive on, each a group of its own.
        index: this member's place, 0 … count-1.
        count: members of the group; None is the group's present count, and 1 for a new group.
        balancer: ``ebpf``, ``classic``, ``none``, or ``auto``: eBPF, else classic with a warning.
        takeover: replace the live member at ``index``.
        weight: this member's part of the slots, beside the others' weights: 0 (none) … 1000; None leaves it as it is,
            which is 100 in a new group.
        seed: of the source hash, 128 bits; None is random for a new group and the group's own for an old one.
        key: what steering looks at: ``source``, ``prefix/24,64``, ``flow`` or ``random``; None is the source for a new
            group and the group's own for an old one.
        key_file: C file with the function that makes the key, in the place of ``key``.
        strict: drop datagrams when no member is alive, instead of leaving them to the kernel's hash.
        allow: networks, or ``@FILE`` with one a line, whose datagrams alone are received.
        deny: networks whose datagrams are dropped; of several that a source is in the longest prefix decides. With
            ``allow`` or ``deny`` these become the group's rules; without, those that it has stay.
        limit_source: ``PPS`` or ``PPS:BURST``, packets a second of each source and at once, beyond which they are
            dropped; ``off`` ends the group's limit, and None leaves it.
        compile: compile the balancer with bcc at start instead of loading the shipped bytecode.
        debug: compile it so that every decision is written to the kernel's trace file.
        rcvbuf: bytes of receive buffer; of datagrams only, for the kernel tunes those of connections by itself.
        graceful_timeout: seconds that handlers have to finish when the collector stops.
        concurrency: handlers in flight per socket: with TCP that is open connections.
        backlog: datagrams per socket that may wait for a blocked handler before the socket is not read; with TCP
            connections that may wait in the kernel's queue to be accepted (listen(2), at most net.core.somaxconn).
        loop: ``uvloop`` or ``asyncio``.
        user: ``NAME`` or ``NAME:GROUP`` to run as once it has joined; a supervisor stays, its workers run so.
        report: file that gets statistics() as JSON when the collector stops.
        metrics: address at which Prometheus finds metrics while it serves; port 0 takes a free one, which is logged.
        bpffs: where the BPF file system is mounted.

    """

    protocol: str = "udp"
    bind: tuple[Address, ...] = DEFAULT_BIND
    index: int = 0
    count: int | None = None
    balancer: str = "auto"
    takeover: bool = False
    weight: int | None = None
    seed: int | None = None
    key: str | None = None
    key_file: Path | None = None
    strict: bool | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    limit_source: str | None = None
    compile: bool = False
    debug: bool = False
    rcvbuf: int = DEFAULT_RCVBUF
    graceful_timeout: float = 30.0
    concurrency: int = 128
    backlog: int = 4096
    loop: str = "uvloop"
    user: str | None = None
    report: Path | None = None
    metrics: Address | None = None
    bpffs: Path = BPFFS

    def __post_init__(self) -> None:
        _check_addresses(self.bind)
        _check_members(self.index, self.count)
        if self.seed is not None and not 0 <= self.seed < 1 << 128:
            raise ConfigurationError(f"a seed is a number from 0 to 2^128 - 1, not {self.seed}")
        _check_range("graceful timeout", self.graceful_timeout, 0, 86_400, "seconds")
        _check_range("receive buffer", self.rcvbuf, 1, MAX_RCVBUF, "bytes")
        _check_choice("protocol", self.protocol, PROTOCOLS)
        _check_range("concurrency", self.concurrency, 1, 1 << 20, "handlers")
        _check_range("backlog", self.backlog, 1, 1 << 24, UNITS[self.protocol])
        if self.protocol == "tcp" and self.rcvbuf != DEFAULT_RCVBUF:
            raise ConfigurationError(
                "the receive buffer is for datagrams; the kernel tunes those of connections by itself",
                hint="leave --rcvbuf out; sysctl net.ipv4.tcp_rmem has the limits",
            )
        _check_weight(self.weight, self.balancer)
        _check_choice("balancer", self.balancer, BALANCERS)
        _check_choice("loop", self.loop, LOOPS)
        _check_key(self.key, self.key_file, self.balancer, self.protocol)
        _check_guard(self.allow, self.deny, self.limit_source, self.balancer)
        if self.balancer in ("classic", "none") and (self.compile or self.debug or self.takeover):
            raise ConfigurationError(
                f"the balancer {self.balancer!r} has no takeover and nothing to compile or debug",
                hint="--balancer ebpf has",
            )


def _check_addresses(bind: tuple[Address, ...]) -> None:
    if not bind:
        raise ConfigurationError("a collector needs at least one address to bind")
    fixed = [address for address in bind if address.port]
    for address in fixed:
        if fixed.count(address) > 1:
            raise ConfigurationError(f"{address} is given twice")


def _check_members(index: int, count: int | None) -> None:
    if count is not None and not 1 <= count <= MAX_MEMBERS:
        raise ConfigurationError(
            f"a group has 1 to {MAX_MEMBERS} members, not {count}", hint=f"--count 1 … {MAX_MEMBERS}"
        )
    if not 0 <= index < MAX_MEMBERS:
        raise ConfigurationError(
            f"{index} is no index: it is a number from 0 to {MAX_MEMBERS - 1}",
            hint="members are numbered from 0",
        )
    if count is not None and index >= count:
        raise ConfigurationError(
            f"index {index} is outside of a group of {count}",
            hint=f"an --index below {count}, or a larger --count",
        )


def _check_key(key: str | None, key_file: Path | None, balancer: str, protocol: str) -> None:
    if key is not None:
        Key.parse(key)
    if key is not None and key_file is not None:
        raise ConfigurationError(
            f"the key is {key}, or what {key_file} says, but not both", hint="leave --key or --key-file out"
        )
    if balancer == "none" and not (key is None and key_file is None):
        raise ConfigurationError("the balancer 'none' has no key: the kernel hashes addresses and ports")
    if balancer == "classic" and key_file is not None:
        raise ConfigurationError("the balancer 'classic' cannot run a key file", hint="--balancer ebpf can")
    if protocol == "tcp" and key_file is not None:
        raise ConfigurationError(TCP_HAS_NO_PAYLOAD, hint="--key source, prefix/24,64, flow or random")


def _check_guard(allow: tuple[str, ...], deny: tuple[str, ...], limit: str | None, balancer: str) -> None:
    if balancer in ("classic", "none") and not (allow == deny == () and limit is None):
        raise ConfigurationError(
            f"the balancer {balancer!r} cannot allow, deny or limit sources", hint="--balancer ebpf can"
        )
    GuardRules.of(networks(_no_files(allow)), networks(_no_files(deny)))
    if limit is not None:
        Limit.parse(limit)


def _no_files(texts: tuple[str, ...]) -> list[str]:
    """Files are read when a group is joined."""
    return [text for text in texts if not text.startswith("@")]


def _check_weight(weight: int | None, balancer: str) -> None:
    if weight is None:
        return
    if not 0 <= weight <= MAX_WEIGHT:
        raise ConfigurationError(f"a weight is 0 to {MAX_WEIGHT}, not {weight}", hint="100 is what members have")
    if balancer in ("classic", "none"):
        raise ConfigurationError(f"the balancer {balancer!r} has no weights", hint="--balancer ebpf has")


def _check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"the {name} is {low} to {high} {unit}, not {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{value!r} is no {name}", hint=f"one of {', '.join(choices)}")
