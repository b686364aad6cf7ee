"""What this kernel and this user can do: yes, no or unknown, each with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from aiolb.bpf import compiler, pins, program, spec, syscall
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.maps import Maps
from aiolb.errors import CompileError, KernelError, PrivilegeError


class Support(Enum):
    """The answer of a probe."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A probe's answer: ``reason`` says what was found, ``hint`` what to do where it is not YES."""

    support: Support
    reason: str
    hint: str | None = None

    def __bool__(self) -> bool:
        return self.support is Support.YES


def balancer() -> Finding:
    """Whether the shipped balancer can be loaded: creates its maps, loads it, keeps nothing."""
    try:
        maps = Maps.create("udp")
    except OSError as error:
        return _finding(program.privilege_error(error) or error)
    try:
        os.close(program.load(spec.shipped(), maps.by_placeholder()))
    except KernelError as error:
        return _finding(error)
    finally:
        maps.close()
    return Finding(Support.YES, "the kernel takes the balancer")


def bpffs(path: Path = BPFFS) -> Finding:
    """Whether groups can be pinned: a BPF file system is mounted at ``path`` and this user may write there."""
    try:
        mounted = pins.is_bpffs(path)
    except OSError as error:
        return Finding(Support.UNKNOWN, f"{error.filename} cannot be read: {error.strerror}")
    if not mounted:
        return Finding(Support.NO, f"no BPF file system at {path}", f"as root: mount -t bpf bpf {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(Support.NO, f"this user may not write to {path}", "run as root")
    return Finding(Support.YES, f"mounted at {path}")


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
