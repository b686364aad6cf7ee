"""`aiolb doctor` names what is caused on purpose: no bpffs, no CAP_BPF, a wrong bcc, small buffers, taken ports."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from deadline import DEADLINE

from aiolb import port_check, sockets
from aiolb.address import Address
from aiolb.bpf import abi, probe, syscall
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.members import join_all
from aiolb.bpf.steering import JoinOptions
from aiolb.diagnosis import Level

NOBODY = 65534
DOCTOR = [sys.executable, "-m", "aiolb", "doctor", "--json"]
# The same, but for half a second that bcc takes.
WITHOUT_BCC = """
from aiolb import kernel_checks
from aiolb.cli import main
kernel_checks.BCC = kernel_checks.Rated("bcc", kernel_checks.probe.packets_in_flight, "")
main()
"""
QUICK = [sys.executable, "-c", WITHOUT_BCC, *DOCTOR[3:]]
PACKAGE = Path(port_check.__file__).parent
GIVE_BPF = "run as a root that has it; in a unit: AmbientCapabilities=CAP_BPF; docker run --cap-add BPF"

# Answers bpf(2) in its own way for itself and its children, then runs the command.
FILTERED = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
load, equal, answer = (0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[2])), (6, 0, 0, int(sys.argv[1]))
program = load, equal, answer, (6, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program), 32)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HP", 4, ctypes.addressof(code)), 0, 0) == 0
os.execv(sys.argv[3], sys.argv[3:])
"""

# Has a port until its input ends, as another user.
HOLDER = """
import os, socket, sys
os.setresuid(int(sys.argv[1]), int(sys.argv[1]), int(sys.argv[1]))
sock = socket.socket(type=getattr(socket, sys.argv[3]))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(sys.argv[2]))
sock.bind(("127.0.0.1", 0))
if sock.type == socket.SOCK_STREAM:
    sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""

BUFFER = """
import json, sys
from aiolb import doctor
found = doctor.receive_buffer(int(sys.argv[1]))
print(json.dumps([found.level.value, found.found, found.fix]))
"""


@pytest.fixture
def free():
    """An address that nobody has."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        pass
    return str(address)


@pytest.fixture
def diagnose(free, bpffs):
    """What `aiolb doctor` finds, by check, and its status: ``diagnose(prefix=[...])``."""

    def run(*arguments, prefix=(), command=QUICK):
        if "--bpffs" not in arguments:
            arguments += ("--bpffs", str(bpffs))
        done = subprocess.run(
            [*prefix, *command, free, *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE
        )
        assert done.stderr == ""
        return {one.pop("check"): one for one in json.loads(done.stdout)["checks"]}, done.returncode

    return run


def without_lasting(one):
    """What was found where nothing has to be done for good."""
    assert one.pop("lasting") is None
    return one


def capabilities(*names):
    """The command that runs another one with these capabilities alone."""
    return ["setpriv", f"--bounding-set=-all{''.join(f',+{name}' for name in names)}", "--inh-caps=-all"]


def test_all_is_well(diagnose):
    """Where the tests of the kernel run there is no problem; status 0."""
    found, status = diagnose(command=DOCTOR)
    assert [check for check, one in found.items() if one["level"] == "problem"] == []
    assert status == 0
    for check in ("CAP_BPF", "seccomp", "balancer", "batch updates", "batch lookups", "ring buffer", "bcc"):
        assert (found[check]["level"], found[check]["fix"]) == ("ok", None), check


def test_no_cap_bpf(diagnose, powerless):
    """Without CAP_BPF that is a problem, and so is the balancer; what cannot be asked then is unknown, not missing."""
    found, status = diagnose(prefix=powerless)
    assert status == 1
    assert without_lasting(found["CAP_BPF"]) == {
        "level": "problem",
        "found": "not held; for loading the balancer",
        "fix": GIVE_BPF,
    }
    assert found["balancer"]["level"] == "problem"
    for check in ("batch updates", "batch lookups", "ring buffer", "memlock"):
        assert without_lasting(found[check]) == {"level": "warning", "found": "not known without CAP_BPF", "fix": None}


def test_cap_bpf_alone(diagnose, needs):
    """CAP_BPF alone is enough for everything but --debug and large buffers."""
    needs("setpriv", "util-linux")
    found, status = diagnose(prefix=capabilities("bpf"))
    assert status == 0
    levels = {check: one["level"] for check, one in found.items()}
    assert {levels["CAP_BPF"], levels["balancer"], levels["memlock"], levels["bpffs"]} == {"ok"}
    assert levels["CAP_PERFMON"] == "warning"


def test_root_of_a_user_namespace(diagnose, needs):
    """Capabilities that count inside of a user namespace only are none for bpf(2), and that is said."""
    found, status = diagnose(prefix=[needs("unshare", "util-linux"), "--user", "--map-root-user"])
    assert status == 1
    assert found["CAP_BPF"]["found"].startswith("held inside of a user namespace only")
    assert found["balancer"]["level"] == "problem"


def test_no_bpffs(diagnose, private_mounts, tmp_path):
    """Without a BPF file system: a warning where a collector would mount it, a problem where it could not."""
    no_bpffs = [*private_mounts, "sh", "-c", 'mount -t tmpfs none /sys/fs/bpf && exec "$@"', "sh"]
    at = ("--bpffs", "/sys/fs/bpf")
    fix = "as root: mount -t bpf bpf /sys/fs/bpf"
    found, status = diagnose(*at, prefix=no_bpffs)
    assert (found["bpffs"]["level"], found["bpffs"]["fix"], status) == ("warning", fix, 0)
    found, status = diagnose(*at, prefix=[*no_bpffs, *capabilities("bpf")])
    assert (found["bpffs"]["level"], found["bpffs"]["fix"], status) == ("problem", fix, 1)
    assert found["bpffs"]["found"] == "no BPF file system at /sys/fs/bpf; groups are pinned there"
    found, status = diagnose("--bpffs", str(tmp_path / "none"))
    assert (found["bpffs"]["level"], status) == ("problem", 1)


def test_no_bpffs_is_mended(diagnose, private_mounts, tmp_path):
    """The commands that doctor names mount the file system, now and at the next start of the machine."""
    begin = f"mkdir -p {tmp_path}/bpf && touch {tmp_path}/fstab && mount --bind {tmp_path}/fstab /etc/fstab"
    at = ("--bpffs", f"{tmp_path}/bpf")

    def after(*commands):
        script = " && ".join([begin, *commands, 'exec "$@"'])
        return diagnose(*at, prefix=[*private_mounts, "sh", "-c", script, "sh"])[0]["bpffs"]

    found = after()
    fix, lasting = (found[name].removeprefix("as root: ") for name in ("fix", "lasting"))
    mended = after(fix)
    assert (mended["fix"], mended["lasting"]) == (None, None)
    mended = after(lasting, "mount --all")
    assert (mended["fix"], mended["lasting"]) == (None, None)
    assert mended["found"].startswith(f"mounted at {tmp_path}/bpf, writable")


def test_a_missing_capability_is_mended(diagnose, powerless):
    """The command that doctor names gives a user that is not root what it lacks."""
    nobody = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    found, status = diagnose(prefix=[*powerless, *nobody])
    assert (found["CAP_BPF"]["level"], status) == ("problem", 1)
    command, end, _ = found["CAP_BPF"]["fix"].removeprefix("as root: ").partition(" aiolb serve …; ")
    assert end
    found, _ = diagnose(prefix=command.split())
    assert {found[check]["level"] for check in ("CAP_BPF", "balancer", "ring buffer", "memlock")} == {"ok"}


def test_a_bpffs_that_is_read_only(diagnose, private_mounts, tmp_path):
    """A BPF file system that may be read only is a problem, with the command that changes it."""
    prefix = [*private_mounts, "sh", "-c", f'mount -t bpf -o ro bpf {tmp_path} && exec "$@"', "sh"]
    found, status = diagnose("--bpffs", str(tmp_path), prefix=prefix)
    assert (found["bpffs"]["level"], status) == ("problem", 1)
    assert found["bpffs"]["fix"] == f"as root: mount -o remount,rw {tmp_path}"


@pytest.mark.parametrize(
    ("where", "level"),
    [("outside", "ok"), ("inside", "warning")],
)
def test_a_bpffs_of_ones_own(diagnose, needs, tmp_path, where, level):
    """A BPF file system that pid 1, in the same network, does not see is a warning: each side has its own groups."""
    unshare = needs("unshare", "util-linux")
    mount = f"mount -t bpf bpf {tmp_path}"
    again = f'exec {unshare} --mount sh -c \'{mount if where == "inside" else ":"} && exec "$@"\' sh "$@"'
    # A first process with all capabilities that ours has, and a shell that stays pid 1 meanwhile.
    script = f"{':' if where == 'inside' else mount}; ({again}); exit $?"
    prefix = [unshare, "--pid", "--fork", "--mount", "--mount-proc", "sh", "-c", script, "sh"]
    found, status = diagnose("--bpffs", str(tmp_path), prefix=prefix)
    assert (found["bpffs"]["level"], status) == (level, 0)
    assert ("pid 1 does not see it" in found["bpffs"]["found"]) is (where == "inside")
    assert ("pid 1 sees the same" in found["bpffs"]["found"]) is (where == "outside")


def test_a_wrong_bcc(diagnose, private_mounts, tmp_path, missing):
    """PyPI's unrelated bcc in the place of the real one is named with its path; only compiling is lost."""
    real = Path("/usr/lib/python3/dist-packages/bcc")
    if not real.is_dir():
        missing("python3-bpfcc is not installed, so there is no place to put another bcc")
    (tmp_path / "__init__.py").write_text("")
    prefix = [*private_mounts, "sh", "-c", f'mount --bind {tmp_path} {real} && exec "$@"', "sh"]
    found, status = diagnose(prefix=prefix, command=DOCTOR)
    assert status == 0
    assert found["bcc"]["level"] == "warning"
    assert found["bcc"]["found"].startswith(f"{real} is an unrelated package that has the name bcc on PyPI")
    assert found["bcc"]["found"].endswith("; only --compile and --debug need it")
    assert found["bcc"]["fix"].startswith(f"{sys.executable} -m pip uninstall bcc, then apt-get install python3-bpfcc")


def test_a_small_rmem_max(python, powerless):
    """A limit below what is asked for: a warning without CAP_NET_ADMIN, and said not to matter with it."""
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    size = limit * 2
    level, _, fix = python(BUFFER, size, prefix=powerless)
    assert (level, fix) == ("warning", f"as root: sysctl -w net.core.rmem_max={size}")
    level, found, fix = python(BUFFER, size)
    assert (level, fix) == ("ok", None)
    assert found.endswith("which does not matter with CAP_NET_ADMIN")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (0x80000000, "a seccomp filter kills the process that calls bpf(2)"),
        (0x00050000 | 1, "a seccomp filter blocks bpf(2): Operation not permitted"),
        (0x00050000 | 38, "a seccomp filter hides bpf(2), or this kernel has none"),
        (0x7FFF0000, None),
    ],
    ids=["killed", "EPERM", "ENOSYS", "allowed"],
)
def test_seccomp(diagnose, action, reason):
    """A filter that blocks bpf(2) in any way is a problem that doctor survives; one that lets it through is none."""
    number = syscall._NUMBERS[platform.machine()][0]
    found, status = diagnose(prefix=[sys.executable, "-c", FILTERED, str(action), str(number)])
    if reason is None:
        assert (found["seccomp"]["level"], found["seccomp"]["found"], status) == (
            "ok",
            "a filter lets bpf(2) through",
            0,
        )
        return
    fix = "docker run --cap-add BPF; in a unit: add bpf to SystemCallFilter="
    assert without_lasting(found["seccomp"]) == {"level": "problem", "found": reason, "fix": fix}
    assert found["balancer"]["found"].startswith("not asked, as bpf(2) is blocked; ")
    assert status == 1


@pytest.fixture
def holder():
    """Another process that has a port: ``holder(uid, reuseport)`` gives its address and pid; ``wait()`` for all."""
    started = []

    def wait():
        for process in started:
            process.wait(timeout=DEADLINE)

    def start(uid, *, reuseport, kind="SOCK_DGRAM"):
        command = [sys.executable, "-c", HOLDER, str(uid), str(int(reuseport)), kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return Address("127.0.0.1", int(process.stdout.readline())), process.pid

    start.wait = wait
    yield start
    for process in started:
        process.communicate()


PROTOCOLS = [("udp", "SOCK_DGRAM"), ("tcp", "SOCK_STREAM")]


@pytest.mark.parametrize(("protocol", "kind"), PROTOCOLS)
def test_a_port_that_is_taken(diagnose, holder, protocol, kind):
    """A foreign socket without SO_REUSEPORT is a problem, one with it a warning; the commands end their processes."""
    (alone, first), (shared, second) = holder(0, reuseport=False, kind=kind), holder(0, reuseport=True, kind=kind)
    ask = (str(alone), str(shared), "--protocol", protocol)
    alone, shared = GroupName(protocol, alone), GroupName(protocol, shared)
    found, status = diagnose(*ask)
    assert without_lasting(found[str(alone)]) == {
        "level": "problem",
        "found": f"held by a socket without SO_REUSEPORT (pid {first}, user root)",
        "fix": f"choose another port, or: kill {first}",
    }
    assert without_lasting(found[str(shared)]) == {
        "level": "warning",
        "found": f"a socket with SO_REUSEPORT is in no eBPF group (pid {second}, user root): "
        "with members on the same port it gets nothing",
        "fix": f"unless it is a collector with another balancer: choose another port, or: kill {second}",
    }
    assert status == 1
    for name in (alone, shared):
        subprocess.run(found[str(name)]["fix"].partition("or: ")[2].split(), check=True)
    holder.wait()
    found, status = diagnose(*ask)
    assert ({found[str(alone)]["found"], found[str(shared)]["found"]}, status) == ({"free"}, 0)


@pytest.mark.parametrize(("protocol", "kind"), PROTOCOLS)
def test_a_port_of_the_other_protocol(diagnose, holder, protocol, kind):
    """Datagrams and connections have ports of their own: the other's are free."""
    address, _ = holder(0, reuseport=False, kind=kind)
    (other,) = {"udp", "tcp"} - {protocol}
    found, status = diagnose(str(address), "--protocol", other)
    assert (found[str(GroupName(other, address))]["found"], status) == ("free", 0)


@pytest.mark.parametrize(("protocol", "kind"), PROTOCOLS)
@pytest.mark.parametrize("reuseport", [True, False])
def test_a_port_of_another_user(diagnose, holder, reuseport, protocol, kind):
    """Another user's socket is a problem even with SO_REUSEPORT: all of a group are one user's."""
    address, pid = holder(NOBODY, reuseport=reuseport, kind=kind)
    found, status = diagnose(str(address), "--protocol", protocol)
    assert without_lasting(found[str(GroupName(protocol, address))]) == {
        "level": "problem",
        "found": f"held by another user (pid {pid}, user nobody): all sockets of a group need the same one",
        "fix": f"run aiolb as that user, or: kill {pid}",
    }
    assert status == 1


def test_a_group_of_connections(bpffs):
    """A group of connections that is pinned is as it should be; a stranger beside it is told."""
    with sockets.reserved_port(Address("127.0.0.1", 0), "tcp") as address:
        options = JoinOptions(balancer="ebpf", group=GroupOptions(protocol="tcp", count=2, bpffs=bpffs))
        joined = join_all(address, partial(sockets.bind_listening, backlog=8), options)
        found = port_check.check(GroupName("tcp", address), bpffs)
        assert (found.level, found.found) == (Level.OK, f"a group of 2 with 2 alive (pid {os.getpid()})")
        assert port_check.check(GroupName("udp", address), bpffs).found == "free"
        with sockets.bind_listening(address, backlog=8):
            found = port_check.check(GroupName("tcp", address), bpffs)
            assert (found.level, "is in no eBPF group" in found.found) == (Level.WARNING, True)
        for one in joined:
            one.place.leave()
            one.sock.close()
        joined.close()


def test_compiled_parts_that_are_missing(diagnose, tmp_path, monkeypatch):
    """A package whose compiled parts nobody has built is told as such, with the command; a problem where required."""
    shutil.copytree(PACKAGE, tmp_path / "aiolb", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIOLB_REQUIRE_FAST", raising=False)
    found, status = diagnose()
    for part in ("receiver", "sender"):
        assert found[part]["level"] == "warning"
        assert found[part]["found"].startswith("in plain Python, which is slower: not built (")
        assert found[part]["fix"] == (
            "as root: apt-get install gcc libc6-dev python3-dev, then: "
            f"{sys.executable} -m pip install --force-reinstall --no-deps --no-binary aiolb aiolb"
        )
    assert status == 0
    monkeypatch.setenv("AIOLB_REQUIRE_FAST", "1")
    found, status = diagnose()
    assert (found["receiver"]["level"], found["sender"]["level"], status) == ("problem", "problem", 1)


def test_unprivileged_bpf(diagnose, private_mounts, powerless, tmp_path):
    """kernel.unprivileged_bpf_disabled is told with its value, and blamed only where it keeps bpf(2) from this user."""
    (tmp_path / "value").write_text("1\n")
    script = f'mount --bind {tmp_path}/value /proc/sys/kernel/unprivileged_bpf_disabled && exec "$@"'
    found, status = diagnose(prefix=[*private_mounts, "sh", "-c", script, "sh", *powerless])
    said = "kernel.unprivileged_bpf_disabled is 1"
    assert found["unprivileged bpf"]["found"].startswith(said)
    assert (found["unprivileged bpf"]["level"] == "ok") is bool(probe.bpf_call())
    assert (found["CAP_BPF"]["level"], status) == ("problem", 1)


def test_connections_that_cannot_be_moved(diagnose, powerless):
    """Whether waiting connections are moved is asked of the kernel, and not known without CAP_BPF."""
    found, status = diagnose("--protocol", "tcp")
    assert (found["migration"]["level"], status) == ("ok", 0)
    found, status = diagnose("--protocol", "tcp", prefix=powerless)
    assert (found["migration"]["found"], found["balancer"]["level"], status) == (
        "not known without CAP_BPF",
        "problem",
        1,
    )


def test_a_group(cluster, bpffs):
    """A running group is as it should be, and is told with who is alive."""
    group = cluster(count=3, members=[0, 2])
    found = port_check.check(GroupName("udp", group.address), bpffs)
    assert (found.level, found.found) == (Level.OK, f"a group of 3 with 2 alive (pid {os.getpid()})")


def test_a_stranger_beside_a_group(cluster, bpffs):
    """A socket on the group's port that is no member is told from the members."""
    group = cluster(count=2)
    group.bind("stranger")
    found = port_check.check(GroupName("udp", group.address), bpffs)
    assert found.level is Level.WARNING
    assert found.found.startswith(f"a group of 2 with 2 alive (pid {os.getpid()}); a socket with SO_REUSEPORT is in no")


def test_a_group_at_another_address(cluster, bpffs):
    """Members of another group on the port are none to end, but what comes to their address is theirs."""
    group = cluster(count=2)
    found = port_check.check(GroupName("udp", Address("0.0.0.0", group.address.port)), bpffs)
    assert found.level is Level.WARNING
    assert found.found == (
        f"another group has the port (pid {os.getpid()}, user root): "
        f"it is bound to {group.address}, and the narrower address gets what is sent to it"
    )
    assert found.fix == "choose another port, unless that is what you want"


def test_a_group_that_may_not_be_looked_at(diagnose, cluster, powerless):
    """As many sockets as there are members are taken for them where they cannot be told apart; one more is not."""
    group = cluster(count=2)
    found, _ = diagnose(str(group.address), prefix=powerless)
    assert found[str(group.address)]["level"] == "ok"
    group.bind("stranger")
    found, _ = diagnose(str(group.address), prefix=powerless)
    assert found[str(group.address)]["level"] == "warning"
    assert "this user may not look at" in found[str(group.address)]["found"]


def test_a_group_without_members(cluster, bpffs):
    """The port of a group that nobody is alive in is free, and the group is told."""
    group = cluster(count=2)
    group.kill(0, 1)
    found = port_check.check(GroupName("udp", group.address), bpffs)
    assert (found.level, found.found) == (Level.OK, "free; a group of 2 with 0 alive")


@pytest.mark.parametrize("alive", [True, False])
def test_a_group_of_another_version(cluster, bpffs, alive):
    """A group whose maps are those of another version is a problem, with what joining it would say."""
    group = cluster(count=1)
    if not alive:
        group.kill(0)
    layout = group.group._maps.read("config", 0)
    group.group._maps.write("config", 0, b"\xff\xff\xff\xff" + layout[4:])
    try:
        found = port_check.check(GroupName("udp", group.address), bpffs)
    finally:
        group.group._maps.write("config", 0, layout)
    assert found.level is Level.PROBLEM
    assert found.found.endswith(
        f"holds a group with layout 4294967295, and this aiolb works with layout {abi.LAYOUT_VERSION}"
    )
    assert found.fix is not None


def test_looking_takes_nothing(cluster, bpffs, diagnose):
    """While doctor looks at a group every datagram still reaches its member, and the group is as before."""
    group = cluster(count=3)
    before = group.group.config, group.group.slots, group.group.alive()
    found, status = diagnose(str(group.address), "--bpffs", str(bpffs))
    assert (found[str(group.address)]["level"], status) == ("ok", 0)
    assert (group.group.config, group.group.slots, group.group.alive()) == before
    assert len(sockets.sockets_on(group.address)) == 3
