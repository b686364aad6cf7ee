"""What could keep a collector from working well on this machine: checks, each with what was found and what to do."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from aiolb import capabilities, compiled_parts, kernel_checks, listening, port_check, sockets
from aiolb.address import PROTOCOLS
from aiolb.bpf import probe
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.probe import Finding, Support
from aiolb.capabilities import Capability
from aiolb.config import MIB, ServeConfig
from aiolb.diagnosis import Diagnosis, Level
from aiolb.errors import KernelError

PROC = Path("/proc")

_OK, _WARNING, _PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM


OLDEST_KERNEL = (5, 8)
"""The first with CAP_BPF, and with ring buffers (Linux kernel commit 457f44363a88)."""

USES = {
    Capability.CAP_BPF: ("loading the balancer", _PROBLEM),
    Capability.CAP_NET_ADMIN: ("receive buffers beyond net.core.rmem_max", _OK),
    Capability.CAP_PERFMON: ("--debug only", _WARNING),
    Capability.CAP_SYS_ADMIN: ("mounting a missing BPF file system", _OK),
}
"""What each capability is for, and how bad its lack is where no other check sees the consequence."""


def examine(names: Collection[GroupName], *, bpffs: Path = BPFFS) -> list[Diagnosis]:
    """All checks, for collectors of this user in these groups. Changes nothing and disturbs no running group.

    Raises KernelError without /proc.
    """
    try:
        return list(_examine(names, bpffs))
    except OSError as error:
        if not str(error.filename).startswith("/proc"):
            raise
        raise KernelError(
            f"{error.filename} cannot be read: {error.strerror}",
            errno=error.errno,
            hint="as root: mount -t proc proc /proc",
        ) from error


def _examine(names: Collection[GroupName], bpffs: Path) -> Iterator[Diagnosis]:
    protocols = [protocol for protocol in PROTOCOLS if any(name.protocol == protocol for name in names)]
    held, call = capabilities.effective(), probe.bpf_call()
    bpf = call.support is not Support.NO
    yield kernel(os.uname())
    yield from capability_checks(held, machine=capabilities.count_for_the_machine())
    yield Diagnosis("seccomp", _PROBLEM if not bpf else _OK if call else _WARNING, call.reason, call.hint)
    yield unprivileged_bpf(call, privileged=Capability.CAP_BPF in held)
    of_protocols = (rated for protocol in protocols for rated in kernel_checks.OF_PROTOCOL[protocol])
    for rated in (*kernel_checks.KERNEL, *of_protocols):
        yield rated.diagnose(bpf=bpf)
    yield bpf_file_system(bpffs, may_mount=Capability.CAP_SYS_ADMIN in held)
    yield kernel_checks.BCC.diagnose()
    if "udp" in protocols:
        yield compiled_parts.receiver()
        yield compiled_parts.sender()
        yield receive_buffer()
    if "tcp" in protocols:
        yield accept_queue()
    for name in names:
        yield port_check.check(name, bpffs, bpf=bpf)


def kernel(system: os.uname_result) -> Diagnosis:
    """Its release beside the oldest one that aiolb is for; what else it can do is probed, for releases are patched."""
    found = f"{system.sysname} {system.release}, {system.machine}"
    release = re.match(r"(\d+)\.(\d+)", system.release)
    if system.sysname == "Linux" and release and (int(release[1]), int(release[2])) >= OLDEST_KERNEL:
        return Diagnosis("kernel", _OK, found)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return Diagnosis("kernel", _WARNING, f"{found}; aiolb is for Linux {oldest} or newer", "install a newer kernel")


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
    ways = f"in a unit: AmbientCapabilities={name}; docker run --cap-add {short}"
    user = os.geteuid()
    if user == 0:
        return f"run as a root that has it; {ways}"
    given = f"--inh-caps=+{short.lower()} --ambient-caps=+{short.lower()}"
    return f"as root: setpriv --reuid={user} --regid={os.getegid()} --init-groups {given} aiolb serve …; {ways}"


def unprivileged_bpf(call: Finding, *, privileged: bool, proc: Path = PROC) -> Diagnosis:
    """The sysctl that is blamed most often, and matters on old kernels only, for who has no CAP_BPF.

    ``call``: what :func:`aiolb.bpf.probe.bpf_call` found.
    """
    check, name = "unprivileged bpf", "kernel.unprivileged_bpf_disabled"
    try:
        value = (proc / "sys" / name.replace(".", "/")).read_text().strip()
    except OSError:
        return Diagnosis(check, _OK, f"there is no {name}; the balancer needs CAP_BPF in any case")
    if privileged or value == "0" or call.support is not Support.UNKNOWN:
        return Diagnosis(check, _OK, f"{name} is {value}; the balancer needs CAP_BPF in any case")
    found = f"{name} is {value}, which keeps even a group that was prepared from who has no CAP_BPF (before Linux 5.19)"
    lasting = f"as root: echo {name}=0 > /etc/sysctl.d/60-aiolb-bpf.conf"
    if value == "1":  # it cannot be changed any more
        return Diagnosis(check, _WARNING, found, f"{lasting}, and restart the machine")
    return Diagnosis(check, _WARNING, found, f"as root: sysctl -w {name}=0", lasting)


def bpf_file_system(path: Path = BPFFS, *, may_mount: bool) -> Diagnosis:
    """Where groups are pinned. ``may_mount``: whether a collector of this user would mount a missing one."""
    finding = probe.bpffs(path)
    if not finding:
        if may_mount and path.is_dir() and not probe.is_mounted(path):
            found = f"{finding.reason}; aiolb serve mounts one, for this mount namespace alone"
            return Diagnosis("bpffs", _WARNING, found, finding.hint, finding.lasting)
        found = f"{finding.reason}; groups are pinned there"
        return Diagnosis("bpffs", _PROBLEM, found, finding.hint, finding.lasting)
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
    path, here = proc / "sys/net/core/rmem_max", False
    try:
        limit = int(path.read_text())
        here = bool(path.stat().st_mode & stat.S_IWUSR)
    except OSError:  # an older kernel shows it in the first network namespace only
        limit = None
    said = "net.core.rmem_max cannot be read here" if limit is None else f"net.core.rmem_max is {_mib(limit)}"
    if given < size:
        found = f"{_mib(given)} in place of the {_mib(size)} of --rcvbuf: {said}, the most without CAP_NET_ADMIN"
        return Diagnosis("receive buffer", _WARNING, found, *_sysctl("net.core.rmem_max", size, here=here))
    if limit is not None and limit < size:
        said += ", which does not matter with CAP_NET_ADMIN"
    return Diagnosis("receive buffer", _OK, f"{_mib(size)}, as --rcvbuf asks for; {said}")


def accept_queue(backlog: int = ServeConfig().backlog) -> Diagnosis:
    """Whether as many connections may wait to be accepted as ``backlog`` says."""
    limit = listening.backlog_limit()
    if limit is None or limit >= backlog:
        return Diagnosis("accept queue", _OK, f"{backlog} connections may wait, as --backlog says")
    found = f"{limit} connections may wait in place of the {backlog} of --backlog: net.core.somaxconn is {limit}"
    return Diagnosis("accept queue", _WARNING, found, *_sysctl("net.core.somaxconn", backlog))


def _sysctl(name: str, value: int, *, here: bool = True) -> tuple[str, str]:
    """The command that sets it, and the one that keeps it set; ``here``: whether this network namespace may."""
    who = "as root" if here else "as root on the host, not in a container"
    file = f"/etc/sysctl.d/60-aiolb-{name.rpartition('.')[2]}.conf"
    return f"{who}: sysctl -w {name}={value}", f"{who}: echo {name}={value} > {file}"


def _mib(size: int) -> str:
    return f"{size / MIB:.3g} MiB"
