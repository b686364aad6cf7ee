"""What this kernel and this user can do: yes, no or unknown, each with its reason."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from aiolb import capabilities, sockets
from aiolb.bpf import compiler, pins, program, spec, syscall
from aiolb.bpf.abi import BPFFS, MAP_TYPE_ARRAY, MAP_TYPE_PERCPU_ARRAY, MAP_TYPE_RINGBUF
from aiolb.bpf.maps import Maps, possible_cpus
from aiolb.bpf.program import VerifierError
from aiolb.bpf.spec import ProgramSpec
from aiolb.capabilities import Capability
from aiolb.errors import CompileError, KernelError, PrivilegeError, UnsupportedError
from aiolb.send import gso

_NOT_SUPPORTED = 524  # ENOTSUPP, a number of the kernel's own (include/linux/errno.h)
_SECCOMP_FILTERED = 2
_NO_BPF = "not known without CAP_BPF"
_ASK = "import runpy, sys; sys.stdout.write(str(runpy.run_path(sys.argv[1])['bpf_errno']()))"


class Support(Enum):
    """The answer of a probe."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A probe's answer: ``reason`` says what was found, ``hint`` what to do where it is not YES.

    ``lasting``: what keeps what was done beyond a restart of the machine.
    """

    support: Support
    reason: str
    hint: str | None = None
    lasting: str | None = None

    def __bool__(self) -> bool:
        return self.support is Support.YES


def balancer() -> Finding:
    """Whether the shipped balancer can be loaded: creates its maps, loads it, keeps nothing."""
    error = _refusal("udp", spec.shipped())
    return Finding(Support.YES, "the kernel takes the balancer") if error is None else _finding(error)


def migration() -> Finding:
    """Whether the balancer may move waiting TCP connections of a closed socket (SELECT_OR_MIGRATE, Linux 5.14)."""
    error = _refusal("tcp", spec.shipped(spec.MIGRATING))
    if error is None:
        return Finding(Support.YES, "waiting connections are moved when a socket is closed (SELECT_OR_MIGRATE)")
    if isinstance(error, UnsupportedError | VerifierError):
        return Finding(Support.NO, "this kernel's programs do not move waiting connections", "use Linux 5.14 or newer")
    return Finding(Support.UNKNOWN, _NO_BPF) if isinstance(error, PrivilegeError) else _finding(error)


def _refusal(protocol: str, bytecode: ProgramSpec) -> OSError | None:
    """Why the kernel does not take a program over its maps; None where it does."""
    try:
        maps = Maps.create(protocol)
    except OSError as error:
        return program.privilege_error(error) or error
    try:
        os.close(program.load(bytecode, maps.by_placeholder()))
    except KernelError as error:
        return error
    finally:
        maps.close()
    return None


def bpf_call() -> Finding:
    """Whether bpf(2) gets to the kernel, or a seccomp filter stops it.

    A filter may kill who calls it, so under one it is a child process that does.
    """
    filtered = _is_filtered()
    number = _errno_in_child() if filtered else syscall.bpf_errno()
    if number is None:
        return Finding(Support.NO, "a seccomp filter kills the process that calls bpf(2)", _UNFILTER)
    if number in (errno.EPERM, errno.EACCES):
        if filtered:
            who = "a seccomp filter" if _has_bpf() else "a seccomp filter, or the lack of CAP_BPF,"
            return Finding(Support.NO, f"{who} blocks bpf(2): {os.strerror(number)}", _UNFILTER)
        return Finding(Support.UNKNOWN, f"the kernel refuses bpf(2) to this user: {os.strerror(number)}")
    if number == errno.ENOSYS:
        if filtered:
            return Finding(Support.NO, "a seccomp filter hides bpf(2), or this kernel has none", _UNFILTER)
        return Finding(Support.NO, "this kernel has no bpf(2)", "use a kernel with CONFIG_BPF_SYSCALL")
    return Finding(Support.YES, "a filter lets bpf(2) through" if filtered else "no filter")


_UNFILTER = "docker run --cap-add BPF; in a unit: add bpf to SystemCallFilter="


def _has_bpf() -> bool:
    with suppress(OSError):
        return Capability.CAP_BPF in capabilities.effective()
    return False


def _is_filtered() -> bool:
    """Whether a seccomp filter looks at the system calls of this process (proc_pid_status(5))."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Seccomp:"):
                return int(line.split()[1]) == _SECCOMP_FILTERED
    return False


def _errno_in_child() -> int | None:
    """What bpf(2) answers to a child process; None when the filter killed it."""
    command = [sys.executable, "-I", "-c", _ASK, syscall.__file__]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own file
    if child.returncode == -signal.SIGSYS:
        return None
    return int(child.stdout)


def ring_buffer() -> Finding:
    """Whether there are ring buffers, which carry the balancer's decisions to user space (Linux 5.8)."""
    return _map_probe("there are ring buffers", lambda: _ask_map(MAP_TYPE_RINGBUF, key=0, value=0, entries=4096))


def batch_updates() -> Finding:
    """Whether many values of a map can be written in one call (Linux 5.6)."""

    def write(fd: int) -> None:
        syscall.map_update_batch(fd, [0, 1], bytes(8))

    return _map_probe("many values are written in one call", lambda: _ask_map(MAP_TYPE_ARRAY, ask=write))


def batch_lookups() -> Finding:
    """Whether the counters of all CPUs can be read in one call (Linux 5.13); else each is read by itself."""

    def read(fd: int) -> None:
        syscall.map_lookup_batch(fd, 2, 8 * possible_cpus())

    return _map_probe("all counters are read in one call", lambda: _ask_map(MAP_TYPE_PERCPU_ARRAY, value=8, ask=read))


def _ask_map(
    kind: int, *, key: int = 4, value: int = 4, entries: int = 2, ask: Callable[[int], None] | None = None
) -> None:
    fd = syscall.map_create(kind, key_size=key, value_size=value, entries=entries, name="aiolb_probe")
    try:
        if ask is not None:
            ask(fd)
    finally:
        os.close(fd)


def _map_probe(yes: str, ask: Callable[[], None]) -> Finding:
    try:
        ask()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return Finding(Support.UNKNOWN, _NO_BPF)
        why = "not supported" if error.errno == _NOT_SUPPORTED else error.strerror
        return Finding(Support.NO, f"{error.filename}: {why}")
    return Finding(Support.YES, yes)


def memlock() -> Finding:
    """Whether maps are free of RLIMIT_MEMLOCK (Linux 5.11); NO: each counts for the user's limit.

    Asks by making a map while the limit of this process is 0, for a moment.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        _ask_map(MAP_TYPE_ARRAY)
    except OSError:
        return Finding(Support.UNKNOWN, _NO_BPF)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        _ask_map(MAP_TYPE_ARRAY)
    except PermissionError:
        size = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
        return Finding(Support.NO, f"this kernel counts maps for RLIMIT_MEMLOCK, which is {size}")
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return Finding(Support.YES, "maps do not count for RLIMIT_MEMLOCK")


def receive_trains() -> Finding:
    """Whether a socket can be handed several datagrams in one piece (UDP_GRO, Linux 5.0)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if sockets.enable_gro(sock):
            return Finding(Support.YES, "trains are received in one piece (UDP_GRO)")
    return Finding(Support.NO, "no UDP_GRO")


def send_trains() -> Finding:
    """Whether a socket can send several datagrams in one piece (UDP_SEGMENT, Linux 4.18)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_UDP, gso.UDP_SEGMENT, 1000)
        except OSError as error:
            return Finding(Support.NO, f"no UDP_SEGMENT: {error.strerror}")
    return Finding(Support.YES, "trains are sent in one piece (UDP_SEGMENT)")


def bpffs(path: Path = BPFFS) -> Finding:
    """Whether groups can be pinned: a BPF file system is mounted at ``path`` and this user may write there."""
    try:
        mounted = pins.is_bpffs(path)
    except FileNotFoundError:
        return _unmounted(path, f"there is no {path}")
    except OSError as error:
        return Finding(Support.UNKNOWN, f"{error.filename} cannot be read: {error.strerror}")
    if not mounted:
        return _unmounted(path, f"no BPF file system at {path}")
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return Finding(Support.NO, f"{path} is mounted read-only", f"as root: mount -o remount,rw {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(Support.NO, f"this user may not write to {path}", "run as root")
    return Finding(Support.YES, f"mounted at {path}")


def _unmounted(path: Path, reason: str) -> Finding:
    return Finding(Support.NO, reason, f"as root: {pins.mount_command(path)}", _at_boot(path))


def _at_boot(path: Path) -> str | None:
    """What mounts it when the machine starts; None where systemd does so by itself (sd_booted(3))."""
    if path == BPFFS and Path("/run/systemd/system").is_dir():
        return None
    return f"as root: echo 'bpf {path} bpf rw,nosuid,nodev,noexec,mode=700 0 0' >> /etc/fstab"


def is_mounted(path: Path = BPFFS) -> bool:
    """Whether a BPF file system is mounted at ``path``; false where that cannot be seen."""
    try:
        return pins.is_bpffs(path)
    except OSError:
        return False


def bpffs_of_the_machine(path: Path = BPFFS) -> Finding:
    """Whether pid 1 sees the same BPF file system at ``path``: else groups are shared inside of this one alone."""
    namespace = Path("/proc/self/ns/mnt").readlink()
    try:
        found = Path(f"/proc/1/root{path}").stat().st_dev
        same_file_system = found == path.stat().st_dev
    except PermissionError:
        return Finding(Support.UNKNOWN, f"seen in the mount namespace {namespace}")
    except OSError:
        same_file_system = False
    if same_file_system:
        return Finding(Support.YES, "pid 1 sees the same")
    return Finding(Support.NO, f"it belongs to the mount namespace {namespace}, and pid 1 does not see it")


def bcc() -> Finding:
    """Whether bcc is there, is the real one, and compiles the balancer (about half a second)."""
    try:
        return Finding(Support.YES, compiler.compile_balancer().compiler)
    except CompileError as error:
        return Finding(Support.NO, str(error), error.hint)


def packets_in_flight() -> Finding:
    """Whether membarrier(2) can wait out the packets in flight; else leaving a group waits a fixed time."""
    try:
        syscall.membarrier()
    except OSError as error:
        return Finding(Support.NO, f"membarrier(2): {error.strerror}")
    return Finding(Support.YES, "membarrier(2) waits for an RCU grace period")


def _finding(error: Exception) -> Finding:
    hint = getattr(error, "hint", None)
    if isinstance(error, PrivilegeError):
        # EPERM comes before the kernel looks at the program: what it can do stays unknown.
        return Finding(Support.UNKNOWN, str(error), hint)
    return Finding(Support.NO, str(error), hint)
