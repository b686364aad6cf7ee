"""Checks and how bad they are, from what was found; and `aiolb doctor` as its users meet it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiolb import compiled_parts, doctor, kernel_checks, sockets
from aiolb.address import Address
from aiolb.bpf import probe
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.probe import Finding, Support
from aiolb.capabilities import Capability
from aiolb.cli.main import main
from aiolb.config import ServeConfig
from aiolb.diagnosis import Diagnosis, Level
from aiolb.errors import KernelError
from aiolb.kernel_checks import Rated
from aiolb.receive import choose

pytestmark = pytest.mark.usefixtures("nothing_left")

YES = Finding(Support.YES, "there")
NO = Finding(Support.NO, "not there", "make it")
UNKNOWN = Finding(Support.UNKNOWN, "who knows")
EXTENSIONS = ("aiolb.receive._fast", "aiolb.receive._fast_replies", "aiolb.receive._fast_step", "aiolb.send._fast")


@pytest.mark.parametrize(
    ("finding", "unknown", "expected"),
    [
        (YES, Level.WARNING, Diagnosis("x", Level.OK, "there")),
        (NO, Level.WARNING, Diagnosis("x", Level.PROBLEM, "not there; a pity", "make it")),
        (UNKNOWN, Level.WARNING, Diagnosis("x", Level.WARNING, "who knows")),
        (UNKNOWN, Level.PROBLEM, Diagnosis("x", Level.PROBLEM, "who knows; a pity")),
    ],
)
def test_a_probe_is_rated(finding, unknown, expected):
    """Yes is good, no as bad as it was rated, and what is unknown is not said to be lost unless that is a problem."""
    rated = Rated("x", lambda: finding, "a pity", no=Level.PROBLEM, unknown=unknown)
    assert rated.diagnose() == expected


def test_nothing_calls_bpf_where_it_is_blocked():
    """A probe that would call bpf(2) is not asked, one that would not is."""
    rated = Rated("x", lambda: pytest.fail("asked"), "a pity", bpf=True)
    assert rated.diagnose(bpf=False) == Diagnosis("x", Level.WARNING, "not asked, as bpf(2) is blocked")
    assert Rated("x", lambda: YES, "a pity").diagnose(bpf=False).level is Level.OK


@pytest.mark.parametrize(
    ("held", "machine", "levels"),
    [
        (set(Capability), True, ["ok", "ok", "ok", "ok"]),
        ({Capability.CAP_BPF}, True, ["ok", "ok", "warning", "ok"]),
        (set(), True, ["problem", "ok", "warning", "ok"]),
        (set(Capability), False, ["problem", "ok", "warning", "ok"]),
    ],
)
def test_capabilities(held, machine, levels):
    """CAP_BPF is needed and CAP_PERFMON is good to have; what is missing comes with a way to get it."""
    found = list(doctor.capability_checks(frozenset(held), machine=machine))
    assert [one.check for one in found] == ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"]
    assert [one.level.value for one in found] == levels
    assert [one.fix is None for one in found] == [level == "ok" for level in levels]
    missing = next((one for one in found if one.level is Level.PROBLEM), None)
    if missing and machine:
        assert missing.fix.endswith("; in a unit: AmbientCapabilities=CAP_BPF; docker run --cap-add BPF")


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("5.8.0", Level.OK),
        ("5.10.0-28-amd64", Level.OK),
        ("6.18.44-fc", Level.OK),
        ("10.0", Level.OK),
        ("5.7.19", Level.WARNING),
        ("4.19.0-27-cloud-amd64", Level.WARNING),
        ("unknown", Level.WARNING),
    ],
)
def test_the_kernel(release, level):
    """Its release is told; one that is too old is named as such, with what to do."""
    found = doctor.kernel(os.uname_result(("Linux", "host", release, "#1 SMP", "x86_64")))
    assert (found.check, found.level) == ("kernel", level)
    assert found.found.startswith(f"Linux {release}, x86_64")
    assert (found.fix is None) is (level is Level.OK)


@pytest.fixture
def unprivileged_bpf(tmp_path):
    """What is said of the sysctl: ``unprivileged_bpf("2", privileged=False, support=Support.UNKNOWN)``."""

    def ask(value, *, privileged, support):
        (tmp_path / "sys/kernel").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/kernel/unprivileged_bpf_disabled").write_text(f"{value}\n")
        return doctor.unprivileged_bpf(Finding(support, "so"), privileged=privileged, proc=tmp_path)

    return ask


def test_no_sysctl_of_unprivileged_bpf(tmp_path):
    """Its absence is told."""
    found = doctor.unprivileged_bpf(YES, privileged=True, proc=tmp_path).found
    assert found == "there is no kernel.unprivileged_bpf_disabled; the balancer needs CAP_BPF in any case"


@pytest.mark.parametrize(
    ("value", "privileged", "support"),
    [
        ("2", True, Support.YES),
        ("1", False, Support.YES),  # a kernel that keeps loading from this user, and nothing else
        ("0", False, Support.UNKNOWN),
        ("2", False, Support.NO),  # a filter is told in its own check
    ],
)
def test_unprivileged_bpf(unprivileged_bpf, value, privileged, support):
    """The sysctl is told, and that it does not matter where it does not."""
    found = unprivileged_bpf(value, privileged=privileged, support=support)
    said = f"kernel.unprivileged_bpf_disabled is {value}; the balancer needs CAP_BPF in any case"
    assert found == Diagnosis("unprivileged bpf", Level.OK, said)


def test_unprivileged_bpf_of_an_old_kernel(unprivileged_bpf):
    """Where it keeps prepared groups from who has no CAP_BPF, the command says how to change it, if it can be."""
    found = unprivileged_bpf("2", privileged=False, support=Support.UNKNOWN)
    assert (found.level, found.fix) == (Level.WARNING, "as root: sysctl -w kernel.unprivileged_bpf_disabled=0")
    assert found.lasting.endswith("echo kernel.unprivileged_bpf_disabled=0 > /etc/sysctl.d/60-aiolb-bpf.conf")
    fixed = unprivileged_bpf("1", privileged=False, support=Support.UNKNOWN)
    assert (fixed.lasting, fixed.fix) == (None, f"{found.lasting}, and restart the machine")


def test_how_to_get_a_capability(monkeypatch):
    """Who is not root gets a command that keeps the user."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.getegid", lambda: 100)
    found = next(doctor.capability_checks(frozenset()))
    assert found.fix.startswith(
        "as root: setpriv --reuid=1000 --regid=100 --init-groups --inh-caps=+bpf --ambient-caps=+bpf aiolb serve …; "
    )


@pytest.mark.parametrize(("limit", "level"), [(4096, Level.OK), (None, Level.OK), (128, Level.WARNING)])
def test_the_accept_queue(monkeypatch, limit, level):
    """A queue of connections that the kernel shortens is a warning, with the command that raises the sysctl."""
    monkeypatch.setattr("aiolb.listening.backlog_limit", lambda: limit)
    found = doctor.accept_queue()
    assert found.level is level
    if level is Level.WARNING:
        assert found.found.startswith("128 connections may wait in place of the 4096 of --backlog")
        assert found.fix == "as root: sysctl -w net.core.somaxconn=4096"
        assert found.lasting == "as root: echo net.core.somaxconn=4096 > /etc/sysctl.d/60-aiolb-somaxconn.conf"


@pytest.mark.parametrize(
    ("number", "support"), [(22, Support.NO), (524, Support.NO), (1, Support.UNKNOWN), (None, Support.YES)]
)
def test_migration(monkeypatch, number, support):
    """Whether connections can be moved is yes, no (an older kernel refuses the kind of program) or unknown."""
    asked = []

    class Nothing:
        def by_placeholder(self):
            return {}

        def close(self):
            pass

    def load(*_, attach_type, **__):
        asked.append(attach_type)
        if number is not None:
            raise OSError(number, "no", "BPF_PROG_LOAD")
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(probe.Maps, "create", lambda _: Nothing())
    monkeypatch.setattr(probe.program, "relocate", lambda instructions, _: instructions)
    monkeypatch.setattr(probe.program.syscall, "prog_load", load)
    monkeypatch.setattr(probe.program.syscall, "prog_verify", lambda *_, **__: "")
    found = probe.migration()
    assert (found.support, asked) == (support, [40])
    assert (found.hint == "use Linux 5.14 or newer") == (number == 22)


@pytest.fixture
def rmem_max(tmp_path):
    """A folder in place of /proc, with a limit: ``rmem_max(1 << 20)``."""

    def write(limit):
        (tmp_path / "sys/net/core").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/net/core/rmem_max").write_text(f"{limit}\n")
        return tmp_path

    return write


@pytest.fixture
def given(monkeypatch):
    """The kernel gives a receive buffer of so many bytes: ``given(4096)``."""

    def give(size):
        monkeypatch.setattr(sockets, "receive_buffer", lambda _: size)

    return give


def test_a_small_receive_buffer(rmem_max, given):
    """A buffer that the sysctl cuts is a warning, with the command that raises the sysctl."""
    given(212_992)
    assert doctor.receive_buffer(proc=rmem_max(212_992)) == Diagnosis(
        "receive buffer",
        Level.WARNING,
        "0.203 MiB in place of the 20 MiB of --rcvbuf: net.core.rmem_max is 0.203 MiB, the most without CAP_NET_ADMIN",
        "as root: sysctl -w net.core.rmem_max=20971520",
        "as root: echo net.core.rmem_max=20971520 > /etc/sysctl.d/60-aiolb-rmem_max.conf",
    )


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (1 << 20, "net.core.rmem_max is 1 MiB, which does not matter with CAP_NET_ADMIN"),
        (32 << 20, "net.core.rmem_max is 32 MiB"),
    ],
)
def test_a_whole_receive_buffer(rmem_max, given, limit, found):
    """A small sysctl does not matter where the kernel gives the buffer all the same."""
    given(ServeConfig().rcvbuf)
    diagnosis = doctor.receive_buffer(proc=rmem_max(limit))
    assert (diagnosis.level, diagnosis.found) == (Level.OK, f"20 MiB, as --rcvbuf asks for; {found}")


def test_a_limit_that_is_set_elsewhere(rmem_max, given):
    """In a network namespace of its own, where the sysctl cannot be set, the command is for the host."""
    given(212_992)
    proc = rmem_max(212_992)
    (proc / "sys/net/core/rmem_max").chmod(0o444)
    found = doctor.receive_buffer(proc=proc)
    assert found.fix == "as root on the host, not in a container: sysctl -w net.core.rmem_max=20971520"


def test_a_limit_that_is_not_shown(tmp_path, given):
    """Where the sysctl cannot be read, in a network namespace of an older kernel, the buffer itself tells."""
    given(1 << 20)
    found = doctor.receive_buffer(proc=tmp_path)
    assert found.level is Level.WARNING
    assert "net.core.rmem_max cannot be read here" in found.found


def test_the_default_is_what_serve_asks_for():
    """A small buffer is one below the default of --rcvbuf."""
    assert "as --rcvbuf asks for" in doctor.receive_buffer(1).found
    assert ServeConfig().rcvbuf == 20 << 20


@pytest.fixture
def not_compiled(monkeypatch):
    """The compiled parts cannot be imported."""
    monkeypatch.delenv(choose.REQUIRE_FAST, raising=False)
    for name in EXTENSIONS:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("check", [compiled_parts.receiver, compiled_parts.sender])
def test_plain_parts(check, monkeypatch):
    """Parts in plain Python are a warning with the reason, and a problem where the compiled ones are required."""
    found = check()
    assert (found.level, found.found.partition(": ")[0]) == (Level.WARNING, "in plain Python, which is slower")
    checkout = Path(compiled_parts.__file__).parent.parent
    source = f"--editable {checkout}" if (checkout / "pyproject.toml").exists() else "--no-binary aiolb aiolb"
    assert found.fix == (
        "as root: apt-get install gcc libc6-dev python3-dev, then: "
        f"{sys.executable} -m pip install --force-reinstall --no-deps {source}"
    )
    monkeypatch.setenv(choose.REQUIRE_FAST, "1")
    required = check()
    assert (required.level, required.found) == (Level.PROBLEM, f"{found.found}; AIOLB_REQUIRE_FAST=1 forbids that")


@pytest.mark.usefixtures("not_compiled")
def test_parts_for_another_python(monkeypatch, tmp_path):
    """Parts that another version of Python compiled are told from those that nobody did."""
    (tmp_path / "receive").mkdir()
    monkeypatch.setattr(compiled_parts, "_PACKAGE", tmp_path)
    assert ": not built (" in compiled_parts.receiver().found
    (tmp_path / "receive/_fast.cpython-39-x86_64-linux-gnu.so").touch()
    assert compiled_parts.receiver().found.endswith(": built for another Python (cpython-39-x86_64-linux-gnu.so)")
    (tmp_path / f"receive/_fast{EXTENSION_SUFFIXES[0]}").touch()
    assert ": not built (" in compiled_parts.receiver().found


def test_parts_that_cannot_be_loaded(monkeypatch):
    """A compiled part that the linker refuses is told with the linker's words."""

    def fail():
        raise ImportError("undefined symbol: recvmmsg")

    monkeypatch.delenv(choose.REQUIRE_FAST, raising=False)
    monkeypatch.setattr(choose, "compiled", fail)
    assert compiled_parts.receiver().found == "in plain Python, which is slower: undefined symbol: recvmmsg"


def test_compiled_parts():
    """What is said of the compiled parts is true of this machine."""
    for check, module in (
        (compiled_parts.receiver(), "aiolb.receive._fast_step"),
        (compiled_parts.sender(), "aiolb.send._fast"),
    ):
        assert (check.level is Level.OK) is (importlib.util.find_spec(module) is not None), check.found


@pytest.mark.parametrize(("may_mount", "level"), [(True, Level.WARNING), (False, Level.PROBLEM)])
def test_no_bpffs(tmp_path, may_mount, level):
    """A missing BPF file system is a problem, unless a collector would mount it; the fix mounts it in any case."""
    found = doctor.bpf_file_system(tmp_path, may_mount=may_mount)
    assert (found.level, found.fix) == (level, f"as root: mount -t bpf bpf {tmp_path}")
    assert found.found.startswith(f"no BPF file system at {tmp_path}; ")


def test_no_folder_for_bpffs(tmp_path):
    """Where not even the folder is there nobody can mount anything on it."""
    path = tmp_path / "bpf"
    found = doctor.bpf_file_system(path, may_mount=True)
    assert (found.level, found.fix) == (Level.PROBLEM, f"as root: mkdir -p {path} && mount -t bpf bpf {path}")


def test_without_proc(monkeypatch):
    """Without /proc hardly anything can be said: one error that tells how to get it."""

    def fail():
        raise FileNotFoundError(2, "No such file or directory", "/proc/self/status")

    monkeypatch.setattr(doctor.capabilities, "effective", fail)
    with pytest.raises(KernelError, match="/proc/self/status cannot be read: No such file") as caught:
        doctor.examine([])
    assert caught.value.hint == "as root: mount -t proc proc /proc"


@pytest.fixture
def free():
    """An address that nobody has."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        pass
    return address


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch):
    """The tests of bcc are elsewhere: it takes half a second."""
    monkeypatch.setattr(kernel_checks, "BCC", Rated("bcc", lambda: YES, "a pity"))


def run(*arguments, **environment):
    """What `aiolb doctor` prints, and its status."""
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(main, ["doctor", *map(str, arguments)])


@pytest.fixture
def taken():
    """An address that a socket without SO_REUSEPORT has."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield Address(*sock.getsockname())


def test_json(free, taken):
    """With --json everything is one object; a problem makes the status 1."""
    done = run(free, taken, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    checks = {one["check"]: one for one in said["checks"]}
    assert checks[str(free)] == {"check": str(free), "level": "ok", "found": "free", "fix": None, "lasting": None}
    assert checks[str(taken)]["level"] == "problem"
    assert checks[str(taken)]["fix"] == f"choose another port, or: kill {os.getpid()}"
    levels = [one["level"] for one in said["checks"]]
    assert (said["problems"], said["warnings"]) == (levels.count("problem"), levels.count("warning"))
    assert {*checks} == {
        *(
            "kernel",
            "CAP_BPF",
            "CAP_NET_ADMIN",
            "CAP_PERFMON",
            "CAP_SYS_ADMIN",
            "seccomp",
            "unprivileged bpf",
            "balancer",
        ),
        *("batch updates", "batch lookups", "ring buffer", "memlock", "membarrier", "UDP GRO", "UDP GSO", "bpffs"),
        *("bcc", "receiver", "sender", "receive buffer", str(free), str(taken)),
    }


def test_checks_of_connections(free):
    """With --protocol tcp what is for datagrams alone is left out, and what is for connections is there."""
    for arguments in ([free, "--protocol", "tcp"], [f"tcp:{free}"]):
        names = {one["check"] for one in json.loads(run(*arguments, "--json").stdout)["checks"]}
        assert {"migration", "accept queue", f"tcp:{free}"} < names
        assert not names & {str(free), "UDP GRO", "UDP GSO", "receiver", "sender", "receive buffer"}


def test_checks_of_both(free):
    """With addresses of both protocols everything is looked at, and the ports are told apart."""
    names = [one["check"] for one in json.loads(run(free, f"tcp:{free}", "--json").stdout)["checks"]]
    assert {"migration", "accept queue", "UDP GRO", "receiver", "receive buffer", str(free), f"tcp:{free}"} < {*names}
    assert len(names) == len({*names})


def some(level, check="x", fix=None, lasting=None):
    """A diagnosis."""
    return Diagnosis(check, level, f"found that it is {level.value}, " * 6, fix, lasting)


@pytest.mark.parametrize(
    ("levels", "status", "summary"),
    [
        ([Level.OK], 0, "no problems, no warnings"),
        ([Level.OK, Level.WARNING], 0, "no problems, 1 warning"),
        ([Level.PROBLEM, Level.WARNING, Level.WARNING], 1, "1 problem, 2 warnings"),
        ([Level.PROBLEM, Level.PROBLEM], 1, "2 problems, no warnings"),
    ],
)
def test_status_and_summary(monkeypatch, levels, status, summary):
    """The last line counts problems and warnings; only a problem makes the status 1."""
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: [some(level) for level in levels])
    done = run()
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (status, summary)


def test_in_a_pipe(monkeypatch):
    """In a pipe every check is one line, however long, and its fix another one; there is no colour."""
    found = [some(Level.PROBLEM, fix="sysctl -w " + "x" * 100, lasting="echo x"), some(Level.OK, "longer name")]
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: found)
    lines = run().stdout.splitlines()
    assert lines[0] == f"problem  x            {found[0].found}"
    assert lines[1] == f"         fix: {found[0].fix}"
    assert lines[2] == "         for good: echo x"
    assert lines[3] == f"ok       longer name  {found[1].found}"
    assert len(lines) == 5


def test_in_a_terminal(monkeypatch):
    """A terminal of 80 columns is not overrun, a command that fits stays in one line, and NO_COLOR is heeded."""
    found = [some(Level.PROBLEM, fix="as root: sysctl -w net.core.rmem_max=20971520"), some(Level.WARNING)]
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: found)
    coloured = run(FORCE_COLOR="1", TERM="xterm", NO_COLOR="").stdout
    assert "\x1b[" in coloured
    plain = run(FORCE_COLOR="1", TERM="xterm", NO_COLOR="1").stdout
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in plain.splitlines()) <= 80
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)
    assert f"         fix: {found[0].fix}" in [line.rstrip() for line in plain.splitlines()]


def test_the_default_address(monkeypatch):
    """Without an address it is the one that `aiolb serve` has; with --bpffs, that file system."""
    asked = []
    monkeypatch.setattr(doctor, "examine", lambda *asks, **how: asked.append((*asks, how)) or [])
    assert run("--json").exit_code == 0
    assert run("127.0.0.1:9", "udp:[::1]:10", "--bpffs", "/x", "--protocol", "tcp", "--json").exit_code == 0
    assert asked == [
        ([GroupName("udp", Address("0.0.0.0", 10001))], {"bpffs": Path("/sys/fs/bpf")}),
        (
            [GroupName("tcp", Address("127.0.0.1", 9)), GroupName("udp", Address("::1", 10))],
            {"bpffs": Path("/x")},
        ),
    ]


def test_a_wrong_address():
    """What is no address is wrong usage."""
    done = run("127.0.0.1:x")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (2, "aiolb: error: 'x' in '127.0.0.1:x' is no port")


def test_a_kernel_that_counts_maps(monkeypatch):
    """Where maps count for RLIMIT_MEMLOCK it is said so, with the limit, and the limit is as before."""
    before = probe.resource.getrlimit(probe.resource.RLIMIT_MEMLOCK)

    def ask(*_, **__):
        if probe.resource.getrlimit(probe.resource.RLIMIT_MEMLOCK)[0] == 0:
            raise PermissionError(1, "Operation not permitted", "BPF_MAP_CREATE")

    monkeypatch.setattr(probe, "_ask_map", ask)
    found = probe.memlock()
    assert found.support is Support.NO
    assert found.reason.startswith("this kernel counts maps for RLIMIT_MEMLOCK, which is ")
    assert probe.resource.getrlimit(probe.resource.RLIMIT_MEMLOCK) == before
