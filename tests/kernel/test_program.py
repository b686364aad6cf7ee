"""Loading the program: placeholders, and what the kernel's refusals become."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest

from aiolb.bpf import program as programs
from aiolb.bpf import spec, syscall
from aiolb.bpf.maps import Maps
from aiolb.bpf.program import VerifierError
from aiolb.bpf.spec import ProgramSpec
from aiolb.errors import KernelError, PrivilegeError, UnsupportedError

INSTRUCTION = struct.Struct("=BBhi")
EXIT = INSTRUCTION.pack(0x95, 0, 0, 0)
RETURN_PASS = INSTRUCTION.pack(0xB7, 0, 0, 1) + EXIT
RETURN_UNINITIALISED = INSTRUCTION.pack(0xBF, 0x20, 0, 0) + EXIT  # r0 = r2

LOAD = """
import json
from aiolb.bpf import program, spec
from aiolb.errors import AiolbError
try:
    program.load(spec.ProgramSpec(bytes.fromhex("b700000001000000" "9500000000000000"), "x", "", ""), {})
except AiolbError as error:
    print(json.dumps([type(error).__name__, error.errno, str(error)]))
"""


def as_spec(instructions):
    """A program as data."""
    return ProgramSpec(instructions, "aiolb_test", "no source", "no compiler")


@pytest.fixture
def maps():
    """A group's maps, not pinned."""
    made = Maps.create("udp")
    yield made
    made.close()


def refuse(monkeypatch, number, log):
    """Let the kernel refuse every program."""

    def load(*_, **__):
        raise OSError(number, os.strerror(number), "BPF_PROG_LOAD")

    monkeypatch.setattr(syscall, "prog_load", load)
    monkeypatch.setattr(syscall, "prog_verify", lambda *_, **__: log)


def test_loads(program, maps):
    """Both programs are taken by the kernel, over the maps of a group."""
    fd = programs.load(program, maps.by_placeholder())
    assert str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:bpf-prog"
    os.close(fd)


def test_relocation():
    """Descriptors replace placeholders in the loads of maps, and nothing else is touched."""
    load_map = INSTRUCTION.pack(0x18, 0x11, 0, 3) + bytes(8)
    load_number = INSTRUCTION.pack(0x18, 0x01, 0, 3) + bytes(8)
    code = load_map + load_number + RETURN_PASS
    assert programs.relocate(code, {3: 42}) == (
        INSTRUCTION.pack(0x18, 0x11, 0, 42) + bytes(8) + load_number + RETURN_PASS
    )
    assert programs.relocate(code, {3: 3}) == code


def test_a_placeholder_without_a_map():
    """A program that wants a map that is not there is an error of ours."""
    with pytest.raises(KeyError):
        programs.relocate(spec.shipped().instructions, {})


def test_the_verifier_refuses():
    """A refusal of the verifier is one line, with the whole log beside it; nothing stays loaded."""
    with pytest.raises(VerifierError) as caught:
        programs.load(as_spec(RETURN_UNINITIALISED), {})
    assert str(caught.value) == "the verifier refused the program: R2 !read_ok"
    assert caught.value.errno == errno.EACCES
    assert "0: (bf) r0 = r2" in caught.value.log
    assert "processed 1 insns" in caught.value.log


def test_a_program_that_does_not_end():
    """A program without an end is refused, with the verifier's reason."""
    with pytest.raises(VerifierError, match=r"the verifier refused the program: .*last insn is not an exit or jmp"):
        programs.load(as_spec(INSTRUCTION.pack(0xB7, 0, 0, 1)), {})


def test_the_whole_log_of_a_program_that_is_taken(program, maps):
    """`prog_verify` gives the log of a program that the verifier takes too."""
    code = programs.relocate(program.instructions, maps.by_placeholder())
    log = syscall.prog_verify(syscall.PROG_TYPE_SK_REUSEPORT, code, license_text="GPL", name="aiolb_test")
    assert "processed " in log


def test_without_privilege(python, powerless):
    """Without CAP_BPF a program is refused as a matter of privilege."""
    name, number, message = python(LOAD, prefix=powerless)
    assert (name, number) == ("PrivilegeError", errno.EPERM)
    assert message == "the kernel does not let this user load BPF programs (BPF_PROG_LOAD: Operation not permitted)"


@pytest.mark.parametrize(
    ("number", "log", "kind", "message"),
    [
        (errno.EPERM, "", PrivilegeError, r"does not let this user load BPF programs \(BPF_PROG_LOAD: "),
        (errno.EINVAL, "", UnsupportedError, "this kernel has no SK_REUSEPORT programs"),
        (errno.ENOSYS, "", UnsupportedError, r"this kernel has no bpf\(2\)"),
        (errno.ENOMEM, "", KernelError, "the program cannot be loaded: Cannot allocate memory"),
        (errno.ENOMEM, "processed 9 insns\n", KernelError, "the program cannot be loaded: Cannot allocate memory"),
        (errno.EACCES, "", PrivilegeError, "does not let this user load BPF programs"),
        (errno.EACCES, "a\nthe reason\n", VerifierError, "refused the program: the reason$"),
        (errno.EINVAL, "a\nthe reason\nprocessed 9 insns\n", VerifierError, "refused the program: the reason$"),
        (
            errno.EINVAL,
            "120: (05) goto pc+0\nthe reason\ncur state: R0=1\nold state: R0=2\nprocessed 9 insns\n",
            VerifierError,
            "refused the program: the reason$",
        ),
        (errno.EINVAL, "7: (bf) r1 = r9\n", VerifierError, "refused the program: 7: "),
    ],
)
def test_what_the_kernel_answers(monkeypatch, number, log, kind, message):
    """Each answer of the kernel is an error of its own kind, with its errno."""
    refuse(monkeypatch, number, log)
    with pytest.raises(kind) as caught:
        programs.load(as_spec(RETURN_PASS), {})
    assert type(caught.value) is kind
    assert re.search(message, str(caught.value))
    assert caught.value.errno == number


@pytest.mark.parametrize(("interrupted", "loaded"), [(4, True), (5, False)])
def test_a_signal_interrupts_the_verifier(monkeypatch, interrupted, loaded):
    """A load that a signal interrupts is tried again, five times at most."""
    bpf, calls = syscall._bpf, iter(range(100))

    def interrupt(*arguments):
        if next(calls) < interrupted:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", "BPF_PROG_LOAD")
        return bpf(*arguments)

    monkeypatch.setattr(syscall, "_bpf", interrupt)
    if loaded:
        os.close(programs.load(as_spec(RETURN_PASS), {}))
    else:
        with pytest.raises(BlockingIOError):
            syscall.prog_load(syscall.PROG_TYPE_SK_REUSEPORT, RETURN_PASS, license_text="GPL", name="aiolb_test")
