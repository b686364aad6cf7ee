"""Probes: yes, no or unknown, with reasons, and nothing kept."""

from __future__ import annotations

import errno
import os

import pytest

from aiolb.bpf import compiler, pins, probe, program, syscall
from aiolb.bpf.probe import Support
from aiolb.errors import CompileError

PROBE = """
import json, sys
from pathlib import Path
from aiolb.bpf import probe
findings = probe.balancer(), probe.bpffs(Path(sys.argv[1]))
print(json.dumps([[finding.support.value, finding.hint] for finding in findings]))
"""


def refuse(number):
    """A kernel call that fails."""

    def call(*_, **__):
        raise OSError(number, os.strerror(number), "BPF_PROG_LOAD")

    return call


def test_the_balancer():
    """Where the kernel takes the balancer, the answer is yes."""
    finding = probe.balancer()
    assert finding
    assert (finding.support, finding.hint) == (Support.YES, None)


@pytest.mark.parametrize(
    ("number", "support"),
    [
        (errno.EPERM, Support.UNKNOWN),
        (errno.EINVAL, Support.NO),
        (errno.ENOSYS, Support.NO),
    ],
)
@pytest.mark.parametrize("call", ["map_create", "prog_load"])
def test_a_kernel_that_refuses(monkeypatch, call, number, support):
    """A missing feature is no; a missing privilege leaves the answer unknown."""
    monkeypatch.setattr(syscall, call, refuse(number))
    monkeypatch.setattr(syscall, "prog_verify", lambda *_, **__: "")
    finding = probe.balancer()
    assert finding.support is support
    assert not finding
    assert finding.reason


def test_a_program_that_the_verifier_refuses(monkeypatch):
    """A verifier's refusal is a no, with its reason, whatever the errno."""
    monkeypatch.setattr(program, "relocate", lambda *_: bytes.fromhex("bf200000000000009500000000000000"))
    finding = probe.balancer()
    assert (finding.support, finding.reason) == (Support.NO, "the verifier refused the program: R2 !read_ok")


def test_bpffs(bpffs, tmp_path):
    """A BPF file system is found where it is mounted, and missed where it is not, with the command that mounts it."""
    assert probe.bpffs(bpffs).support is Support.YES
    finding = probe.bpffs(tmp_path)
    assert (finding.support, finding.hint) == (Support.NO, f"as root: mount -t bpf bpf {tmp_path}")


def test_bpffs_that_may_not_be_written(bpffs, monkeypatch):
    """A BPF file system that this user may not write to is a no."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert probe.bpffs(bpffs).hint == "run as root"


def test_mounts_that_cannot_be_read(bpffs, monkeypatch):
    """Without /proc the answer is unknown."""
    monkeypatch.setattr(pins, "is_bpffs", refuse(errno.EACCES))
    assert probe.bpffs(bpffs).support is Support.UNKNOWN


def test_without_privilege(python, powerless, bpffs):
    """Without capabilities it is unknown whether the kernel has what the balancer needs."""
    balancer, _ = python(PROBE, bpffs, prefix=powerless)
    assert balancer == ["unknown", "run as root or with CAP_BPF; --balancer classic needs no privilege"]


def test_packets_in_flight(monkeypatch):
    """membarrier(2) can wait out the packets in flight, or cannot."""
    assert probe.packets_in_flight()
    monkeypatch.setattr(syscall, "membarrier", refuse(errno.EINVAL))
    finding = probe.packets_in_flight()
    assert (finding.support, finding.reason) == (Support.NO, "membarrier(2): Invalid argument")


def test_bcc(compiled, monkeypatch):
    """The real bcc is found with its version; where it is missing, the answer says how to install it."""
    monkeypatch.setattr(compiler, "compile_balancer", lambda: compiled)
    assert probe.bcc().reason == compiled.compiler

    def fail():
        raise CompileError("bcc is not installed", hint="apt-get install python3-bpfcc")

    monkeypatch.setattr(compiler, "compile_balancer", fail)
    finding = probe.bcc()
    assert (finding.support, finding.reason, finding.hint) == (
        *(Support.NO, "bcc is not installed"),
        "apt-get install python3-bpfcc",
    )
