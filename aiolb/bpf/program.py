"""Bytecode and maps become a program in the kernel."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from aiolb.bpf import syscall
from aiolb.bpf.spec import ProgramSpec
from aiolb.errors import KernelError, PrivilegeError, UnsupportedError

LICENSE = "GPL"
"""What the kernel is told; the source is dual-licensed (bpf_trace_printk asks for a GPL-compatible one)."""

_INSTRUCTION = struct.Struct("=BBhi")
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1


class VerifierError(KernelError):
    """The kernel's verifier refused the program; ``log`` is its whole output."""

    def __init__(self, message: str, *, log: str, errno: int | None = None) -> None:
        super().__init__(message, errno=errno, hint="please report this with the kernel's version")
        self.log = log


def relocate(instructions: bytes, descriptors: Mapping[int, int]) -> bytes:
    """Put map descriptors in the place of their placeholders. KeyError: a placeholder without a map."""
    patched = bytearray(instructions)
    for offset in range(0, len(patched), _INSTRUCTION.size):
        opcode, registers, distance, immediate = _INSTRUCTION.unpack_from(patched, offset)
        if opcode == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            _INSTRUCTION.pack_into(patched, offset, opcode, registers, distance, descriptors[immediate])
    return bytes(patched)


def load(spec: ProgramSpec, descriptors: Mapping[int, int]) -> int:
    """Load a program over its maps and return its descriptor; the caller closes it.

    ``descriptors`` maps placeholders to map descriptors. Raises PrivilegeError, UnsupportedError,
    VerifierError, KernelError.
    """
    instructions = relocate(spec.instructions, descriptors)
    try:
        return syscall.prog_load(syscall.PROG_TYPE_SK_REUSEPORT, instructions, license_text=LICENSE, name=spec.name)
    except OSError as error:
        raise _explain(error, instructions, spec.name) from error


def _explain(error: OSError, instructions: bytes, name: str) -> KernelError:
    # EACCES comes from the verifier too: only where it has nothing to say, it is a matter of privilege.
    log = syscall.prog_verify(syscall.PROG_TYPE_SK_REUSEPORT, instructions, license_text=LICENSE, name=name)
    reasons = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    if reasons:
        return VerifierError(f"the verifier refused the program: {reasons[-1]}", log=log, errno=error.errno)
    if (refused := privilege_error(error)) is not None:
        return refused
    if error.errno == errno.EINVAL:
        return UnsupportedError(
            f"this kernel has no SK_REUSEPORT programs ({error.strerror})",
            errno=error.errno,
            hint="Linux 5.8 or newer has; --balancer classic runs without",
        )
    return KernelError(f"the program cannot be loaded: {error.strerror}", errno=error.errno)


def privilege_error(error: OSError) -> KernelError | None:
    """What EPERM, EACCES or ENOSYS of a bpf(2) call means to the user; None for another errno."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            f"the kernel does not let this user load BPF programs ({error.filename}: {error.strerror})",
            errno=error.errno,
            hint="run as root or with CAP_BPF; --balancer classic needs no privilege",
        )
    if error.errno == errno.ENOSYS:
        return UnsupportedError("this kernel has no bpf(2)", errno=error.errno, hint="--balancer classic runs without")
    return None
