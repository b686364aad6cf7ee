"""The capabilities that aiolb can use: what each is for, and whether this process has it."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h


class Capability(IntEnum):
    """Numbers of include/uapi/linux/capability.h."""

    CAP_NET_ADMIN = 12
    CAP_SYS_ADMIN = 21
    CAP_PERFMON = 38
    CAP_BPF = 39


# What the kernel lets CAP_SYS_ADMIN do as well: bpf_capable() and perfmon_capable(), include/linux/capability.h.
_PART_OF_SYS_ADMIN = frozenset({Capability.CAP_BPF, Capability.CAP_PERFMON})


def effective(proc: Path = Path("/proc")) -> frozenset[Capability]:
    """What this process may use, with what CAP_SYS_ADMIN includes. OSError without /proc (proc_pid_status(5))."""
    lines = (proc / "self/status").read_text().splitlines()
    bits = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    held = {capability for capability in Capability if bits >> capability & 1}
    return frozenset(held | _PART_OF_SYS_ADMIN if Capability.CAP_SYS_ADMIN in held else held)


def count_for_the_machine(proc: Path = Path("/proc")) -> bool:
    """Whether they count outside of a user namespace, which bpf(2) asks for; false for a rootless container's root."""
    return (proc / "self/ns/user").stat().st_ino == _INITIAL_USER_NAMESPACE
