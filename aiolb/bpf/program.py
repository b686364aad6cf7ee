"""Bytecode and maps become a program in the kernel."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress

from aiolb.bpf import syscall
from aiolb.bpf.spec import ProgramSpec
from aiolb.errors import KernelError, PrivilegeError, UnsupportedError

LICENSE = "GPL"
"""What the kernel is told; the source is dual-licensed (bpf_trace_printk asks for a GPL-compatible one)."""

_REPORT = "please report this with the kernel's version"
_FOLLOWED = re.compile(r"^(\d+): \(", re.MULTILINE)  # an instruction in the verifier's log
_STATE = re.compile(r"\d+: |; |(?:cur|old) state:|from \d+ to ")  # what it goes by, and no reason
_INSTRUCTION = struct.Struct("=BBhi")
_LD_IMM64 = 0x18
_PSEUDO_MAP = (1, 2)  # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE


class VerifierError(KernelError):
    """The kernel's verifier refused the program; ``log`` is its whole output."""

    def __init__(self, message: str, *, log: str, errno: int | None = None, hint: str = _REPORT) -> None:
        super().__init__(message, errno=errno, hint=hint)
        self.log = log


def relocate(instructions: bytes, descriptors: Mapping[int, int]) -> bytes:
    """Put map descriptors in the place of their placeholders. KeyError: a placeholder without a map."""
    patched = bytearray(instructions)
    for offset in range(0, len(patched), _INSTRUCTION.size):
        opcode, registers, distance, immediate = _INSTRUCTION.unpack_from(patched, offset)
        if opcode == _LD_IMM64 and registers >> 4 in _PSEUDO_MAP:
            _INSTRUCTION.pack_into(patched, offset, opcode, registers, distance, descriptors[immediate])
    return bytes(patched)


def load(spec: ProgramSpec, descriptors: Mapping[int, int]) -> int:
    """Load a program over its maps and return its descriptor; the caller closes it.

    ``descriptors`` maps placeholders to map descriptors. Raises PrivilegeError, UnsupportedError,
    VerifierError, KernelError.
    """
    kind, instructions = syscall.PROG_TYPE_SK_REUSEPORT, relocate(spec.instructions, descriptors)
    use = syscall.SK_REUSEPORT_SELECT_OR_MIGRATE if spec.migrates else syscall.SK_REUSEPORT_SELECT
    try:
        return syscall.prog_load(kind, instructions, license_text=LICENSE, name=spec.name, attach_type=use)
    except OSError as error:
        # EACCES comes from the verifier too: only where it has nothing to say, it is a matter of privilege.
        log = syscall.prog_verify(kind, instructions, license_text=LICENSE, name=spec.name, attach_type=use)
        raise _explain(error, log, spec.places) from error


def load_first(specs: Sequence[ProgramSpec], descriptors: Mapping[int, int]) -> tuple[int, ProgramSpec]:
    """Load the first program that this kernel takes; as :func:`load`, whose last error is raised."""
    *preferred, last = specs
    for spec in preferred:
        with suppress(UnsupportedError, VerifierError):
            return load(spec, descriptors), spec
    return load(last, descriptors), last


def _explain(error: OSError, log: str, places: Mapping[int, str] | None) -> KernelError:
    reasons = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    if reasons:
        said = [line for line in reasons if not _STATE.match(line)] or reasons
        reason = f"the verifier refused the program: {said[-1]}"
        if places is not None:
            place = _place(log, places)
            hint = "--verifier-log FILE keeps all that it said; docs/how-to/keys.md says what it asks for"
            return VerifierError(f"{place}: {reason}" if place else reason, log=log, errno=error.errno, hint=hint)
        return VerifierError(reason, log=log, errno=error.errno)
    if (refused := privilege_error(error)) is not None:
        return refused
    if error.errno == errno.EINVAL:
        return UnsupportedError(
            f"this kernel has no SK_REUSEPORT programs ({error.strerror})",
            errno=error.errno,
            hint="Linux 5.8 or newer has; --balancer classic runs without",
        )
    return KernelError(f"the program cannot be loaded: {error.strerror}", errno=error.errno)


def _place(log: str, places: Mapping[int, str]) -> str | None:
    """The line of a key file that the verifier was at, or had been at last, when it gave up."""
    followed = [int(number) for number in _FOLLOWED.findall(log)]
    return next((places[number] for number in reversed(followed) if number in places), None)


def privilege_error(error: OSError) -> KernelError | None:
    """What EPERM, EACCES or ENOSYS of a bpf(2) call means to the user; None for another errno."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            f"the kernel does not let this user load BPF programs ({error.filename}: {error.strerror})",
            errno=error.errno,
            hint="run as root or with CAP_BPF (docker run --cap-add BPF); --balancer classic needs no privilege",
        )
    if error.errno == errno.ENOSYS:
        return UnsupportedError("this kernel has no bpf(2)", errno=error.errno, hint="--balancer classic runs without")
    return None
