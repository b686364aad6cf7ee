"""What could keep a collector from working well on this machine: checks, each with what was found and what to do."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from aiolb import capabilities, port_check, sockets
from aiolb.address import Address
from aiolb.bpf import probe
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.probe import Finding, Support
from aiolb.capabilities import Capability
from aiolb.config import DEFAULT_BIND, MIB, ServeConfig
from aiolb.diagnosis import Diagnosis, Level
from aiolb.errors import KernelError
from aiolb.receive import choose

PROC = Path("/proc")

_NOT_ASKED = Finding(Support.UNKNOWN, "not asked, as bpf(2) is blocked")
_BUILD = "install a C compiler and Python's headers, then: pip install --force-reinstall --no-binary aiolb aiolb"
_OK, _WARNING, _PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM


@dataclass(frozen=True, slots=True)
class Rated:
    """A probe, how bad another answer than yes is, and in ``lost`` what is missing then.

    ``bpf``: whether it calls bpf(2).
    """

    check: str
    ask: Callable[[], Finding]
    lost: str
    no: Level = _WARNING
    unknown: Level = _WARNING
    bpf: bool = False

    def diagnose(self, *, bpf: bool = True) -> Diagnosis:
        """Ask, but not where it takes bpf(2) and ``bpf`` says that this may not be called."""
        finding = self.ask() if bpf or not self.bpf else _NOT_ASKED
        if finding:
            return Diagnosis(self.check, _OK, finding.reason)
        if finding.support is Support.UNKNOWN and self.unknown is not _PROBLEM:
            return Diagnosis(self.check, self.unknown, finding.reason, finding.hint)
        level = self.no if finding.support is Support.NO else self.unknown
        return Diagnosis(self.check, level, f"{finding.reason}; {self.lost}", finding.hint)


KERNEL = (
    Rated(
        "balancer",
        probe.balancer,
        "without it there is no failover, no takeover and no statistics",
        no=_PROBLEM,
        unknown=_PROBLEM,
        bpf=True,
    ),
    Rated("batch updates", probe.batch_updates, "a group cannot be made without", no=_PROBLEM, bpf=True),
    Rated("batch lookups", probe.batch_lookups, "without, statistics cost a call for each value", bpf=True),
    Rated("ring buffer", probe.ring_buffer, "a group cannot be made without", no=_PROBLEM, bpf=True),
    Rated("memlock", probe.memlock, "where maps count, each group takes some MiB of it", bpf=True),
    Rated("membarrier", probe.packets_in_flight, "without, a member that leaves waits 0.2 s"),
    Rated("UDP GRO", probe.receive_trains, "without, datagrams are received one by one"),
    Rated("UDP GSO", probe.send_trains, "without, aiolb flood sends datagrams one by one"),
)
BCC = Rated("bcc", probe.bcc, "only --compile and --debug need it")

USES = {
    Capability.CAP_BPF: ("loading the balancer", _PROBLEM),
    Capability.CAP_NET_ADMIN: ("receive buffers beyond net.core.rmem_max", _OK),
    Capability.CAP_PERFMON: ("--debug only", _WARNING),
    Capability.CAP_SYS_ADMIN: ("mounting a missing BPF file system", _OK),
}
"""What each capability is for, and how bad its lack is where no other check sees the consequence."""


def examine(addresses: Iterable[Address] = DEFAULT_BIND, *, bpffs: Path = BPFFS) -> list[Diagnosis]:
    """All checks, for collectors of this user on these addresses. Changes nothing and disturbs no running group.

    Raises KernelError without /proc.
    """
    try:
        return list(_examine(addresses, bpffs))
    except OSError as error:
        if not str(error.filename).startswith("/proc"):
            raise
        raise KernelError(
            f"{error.filename} cannot be read: {error.strerror}",
            errno=error.errno,
            hint="as root: mount -t proc proc /proc",
        ) from error


def _examine(addresses: Iterable[Address], bpffs: Path) -> Iterator[Diagnosis]:
    held, call = capabilities.effective(), probe.bpf_call()
    bpf = call.support is not Support.NO
    yield from capability_checks(held, machine=capabilities.count_for_the_machine())
    yield Diagnosis("seccomp", _PROBLEM if not bpf else _OK if call else _WARNING, call.reason, call.hint)
    yield unprivileged_bpf()
    for rated in KERNEL:
        yield rated.diagnose(bpf=bpf)
    yield bpf_file_system(bpffs, may_mount=Capability.CAP_SYS_ADMIN in held)
    yield BCC.diagnose()
    yield receiver()
    yield sender()
    yield receive_buffer()
    for address in addresses:
        yield port_check.check(address, bpffs, bpf=bpf)


def capability_checks(held: frozenset[Capability], *, machine: bool = True) -> Iterator[Diagnosis]:
    """A check for each capability; ``machine``: whether they count outside of a user namespace."""
    for capability, (use, level) in USES.items():
        name = capability.name
        if capability in held and machine:
            yield Diagnosis(name, _OK, f"held; for {use}")
        elif capability in held:
            found = f"held inside of a user namespace only, where it does not count; for {use}"
            yield Diagnosis(name, level, found, None if level is _OK else "run aiolb outside of the user namespace")
        else:
            yield Diagnosis(name, level, f"not held; for {use}", None if level is _OK else _how_to_get(name))


def _how_to_get(name: str) -> str:
    short = name.removeprefix("CAP_")
    return f"run as root; in a unit: AmbientCapabilities={name}; docker run --cap-add {short}"


def unprivileged_bpf(proc: Path = PROC) -> Diagnosis:
    """The sysctl that is blamed most often, and never matters here."""
    name = "kernel.unprivileged_bpf_disabled"
    try:
        value = (proc / "sys" / name.replace(".", "/")).read_text().strip()
    except OSError:
        return Diagnosis("unprivileged bpf", _OK, f"there is no {name}; the balancer needs CAP_BPF in any case")
    return Diagnosis("unprivileged bpf", _OK, f"{name} is {value}; the balancer needs CAP_BPF in any case")


def bpf_file_system(path: Path = BPFFS, *, may_mount: bool) -> Diagnosis:
    """Where groups are pinned. ``may_mount``: whether a collector of this user would mount a missing one."""
    finding = probe.bpffs(path)
    if not finding:
        if may_mount and path.is_dir() and not probe.is_mounted(path):
            found = f"{finding.reason}; aiolb serve mounts one, for this mount namespace alone"
            return Diagnosis("bpffs", _WARNING, found, finding.hint)
        return Diagnosis("bpffs", _PROBLEM, f"{finding.reason}; groups are pinned there", finding.hint)
    shared = probe.bpffs_of_the_machine(path)
    found = f"{finding.reason}, writable; {shared.reason}"
    if shared.support is Support.NO and _in_network_of_the_machine():
        # The same port, and two file systems to look for its group in: each side would make a group of its own.
        return Diagnosis(
            "bpffs",
            _WARNING,
            found,
            f"nsenter --mount=/proc/1/ns/mnt aiolb serve …; docker run -v {path}:{path}",
        )
    return Diagnosis("bpffs", _OK, found)


def _in_network_of_the_machine() -> bool:
    try:
        return (PROC / "1/ns/net").stat().st_ino == (PROC / "self/ns/net").stat().st_ino
    except OSError:
        return False


def receive_buffer(size: int = ServeConfig().rcvbuf, proc: Path = PROC) -> Diagnosis:
    """Whether a socket gets ``size`` bytes of receive buffer; ``proc`` is where net.core.rmem_max is read."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sockets.set_receive_buffer(sock, size)
        given = sockets.receive_buffer(sock)
    try:
        limit = int((proc / "sys/net/core/rmem_max").read_text())
    except OSError:  # an older kernel shows it in the first network namespace only
        limit = None
    said = "net.core.rmem_max cannot be read here" if limit is None else f"net.core.rmem_max is {_mib(limit)}"
    if given < size:
        found = f"{_mib(given)} in place of the {_mib(size)} of --rcvbuf: {said}, the most without CAP_NET_ADMIN"
        return Diagnosis("receive buffer", _WARNING, found, f"as root: sysctl -w net.core.rmem_max={size}")
    if limit is not None and limit < size:
        said += ", which does not matter with CAP_NET_ADMIN"
    return Diagnosis("receive buffer", _OK, f"{_mib(size)}, as --rcvbuf asks for; {said}")


def _mib(size: int) -> str:
    return f"{size / MIB:.3g} MiB"


def receiver() -> Diagnosis:
    """Whether what receives, runs handlers and replies is compiled."""
    try:
        choose.compiled()
    except ImportError as error:
        return _plain("receiver", error, "aiolb.receive")
    return Diagnosis("receiver", _OK, "compiled: receiving, steps of handlers, replies")


def sender() -> Diagnosis:
    """Whether what sends is compiled."""
    try:
        importlib.import_module("aiolb.send._fast")
    except ImportError as error:
        return _plain("sender", error, "aiolb.send")
    return Diagnosis("sender", _OK, "compiled")


def _plain(check: str, error: ImportError, package: str) -> Diagnosis:
    found = f"in plain Python, which is slower: {_why(error, package)}"
    if os.environ.get(choose.REQUIRE_FAST) == "1":
        return Diagnosis(check, _PROBLEM, f"{found}; {choose.REQUIRE_FAST}=1 forbids that", _BUILD)
    return Diagnosis(check, _WARNING, found, _BUILD)


def _why(error: ImportError, package: str) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    folder = Path(__file__).parent / package.rpartition(".")[2]
    built = {path.name.partition(".")[2] for path in folder.glob("_fast*.so")}
    if built and not any(f".{suffix}" in EXTENSION_SUFFIXES for suffix in built):
        return f"built for another Python ({', '.join(sorted(built))})"
    return f"not built ({error})"
