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


def test_bpffs_that_is_not_there(tmp_path):
    """A path that is not there is a no, with the commands that make it one."""
    path = tmp_path / "none"
    finding = probe.bpffs(path)
    assert (finding.support, finding.reason) == (Support.NO, f"there is no {path}")
    assert finding.hint == f"as root: mkdir -p {path} && mount -t bpf bpf {path}"
    assert not probe.is_mounted(path)


MAP_PROBES = [probe.ring_buffer, probe.batch_updates, probe.batch_lookups]


@pytest.mark.parametrize("ask", [*MAP_PROBES, probe.memlock, probe.receive_trains, probe.send_trains])
def test_features(ask):
    """All that is probed for is there, in a kernel that the tests can run on."""
    assert ask().support is Support.YES


@pytest.mark.parametrize(
    ("number", "support", "reason"),
    [
        (errno.EPERM, Support.UNKNOWN, "not known without CAP_BPF"),
        (errno.EINVAL, Support.NO, "BPF_PROG_LOAD: Invalid argument"),
        (524, Support.NO, "BPF_PROG_LOAD: not supported"),
    ],
)
@pytest.mark.parametrize("ask", MAP_PROBES)
def test_maps_that_are_refused(monkeypatch, ask, number, support, reason):
    """A kernel without a kind of map is a no, with its words; a missing privilege leaves the answer unknown."""
    monkeypatch.setattr(syscall, "map_create", refuse(number))
    finding = ask()
    assert (finding.support, finding.reason) == (support, reason)


@pytest.mark.parametrize(
    ("ask", "call"), [(probe.batch_updates, "map_update_batch"), (probe.batch_lookups, "map_lookup_batch")]
)
def test_batch_operations_that_are_missing(monkeypatch, ask, call):
    """A kernel that has the map but not the operation is a no, and the map is closed again."""
    monkeypatch.setattr(syscall, call, refuse(524))
    assert ask().support is Support.NO


@pytest.mark.parametrize(
    ("number", "support", "reason"),
    [
        (errno.EBADF, Support.YES, "no filter"),
        (errno.EPERM, Support.UNKNOWN, "the kernel refuses bpf(2) to this user: Operation not permitted"),
        (errno.ENOSYS, Support.NO, "this kernel has no bpf(2)"),
    ],
)
def test_bpf_call_without_a_filter(monkeypatch, number, support, reason):
    """Without a seccomp filter it is the kernel that answers, and is named for it."""
    monkeypatch.setattr(probe, "_is_filtered", lambda: False)
    monkeypatch.setattr(syscall, "bpf_errno", lambda: number)
    finding = probe.bpf_call()
    assert (finding.support, finding.reason) == (support, reason)


@pytest.mark.parametrize(("held", "who"), [(True, "filter"), (False, "filter, or the lack of CAP_BPF,")])
def test_bpf_call_that_a_filter_refuses(monkeypatch, held, who):
    """Who has CAP_BPF knows that it was the filter; without, an older kernel may have refused."""
    monkeypatch.setattr(probe, "_is_filtered", lambda: True)
    monkeypatch.setattr(probe, "_errno_in_child", lambda: errno.EPERM)
    monkeypatch.setattr(probe, "_has_bpf", lambda: held)
    finding = probe.bpf_call()
    assert (finding.support, finding.reason) == (
        Support.NO,
        f"a seccomp {who} blocks bpf(2): Operation not permitted",
    )


def test_bpf_errno(python, powerless):
    """The call that cannot succeed gets to the kernel, which sees that there is no such descriptor."""
    assert syscall.bpf_errno() in {errno.EBADF, errno.EBADFD}
    code = "from aiolb.bpf import syscall; print(syscall.bpf_errno())"
    assert python(code, prefix=powerless) in {errno.EBADF, errno.EBADFD, errno.EPERM}


def test_without_privilege(python, powerless, bpffs):
    """Without capabilities it is unknown whether the kernel has what the balancer needs."""
    balancer, _ = python(PROBE, bpffs, prefix=powerless)
    hint = "run as root or with CAP_BPF (docker run --cap-add BPF); --balancer classic needs no privilege"
    assert balancer == ["unknown", hint]


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
