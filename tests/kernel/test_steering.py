"""How a socket joins: each balancer, what is missing for it, and that a failed join leaves nothing behind."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import classic, compiler, pins, steering, syscall
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.steering import JoinOptions, join
from aiolb.errors import (
    CompileError,
    ConfigurationError,
    GroupError,
    KernelError,
    MemberTakenError,
    UnsupportedError,
)

# Joins a free port, as another user if asked to, and prints what came of it.
JOIN = """
import json, os, sys
from pathlib import Path
from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import pins
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.steering import JoinOptions, join
from aiolb.errors import AiolbError

balancer, bpffs, port, uid = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
try:
    with sockets.reserved_port(Address("127.0.0.1", port)) as address:
        joined = join(
            address,
            sockets.bind_reuseport,
            JoinOptions(balancer=balancer, group=GroupOptions(count=1, bpffs=bpffs)),
        )
    reason = joined.fallback
    answer = {"balancer": joined.balancer, "mounted": pins.is_bpffs(bpffs)}
    joined.sock.close()
    joined.place.close(forget=True)
except AiolbError as error:
    reason, answer = error, {}
if reason is not None:
    answer |= {"error": type(reason).__name__, "message": str(reason), "hint": reason.hint}
print(json.dumps(answer))
"""
NOBODY = 65534


def options(bpffs, **named):
    """What a collector asks for, on the tests' bpffs."""
    group = GroupOptions(bpffs=bpffs, count=named.pop("count", None))
    return JoinOptions(**{"balancer": "ebpf", "group": group} | named)


@pytest.fixture
def joining(bpffs, address):
    """Join the free port; closed, and forgotten, at the end: ``joining(index=1, count=2)``."""
    made = []

    def run(**named):
        made.append(join(address, sockets.bind_reuseport, options(bpffs, **named)))
        return made[-1]

    yield run
    for joined in made:
        joined.sock.close()
        joined.place.close(forget=True)


def test_ebpf(joining):
    """The eBPF balancer gives the socket its place in the group."""
    joined = joining(index=1, count=3)
    assert (joined.balancer, joined.place.count, joined.fallback) == ("ebpf", 3, None)
    assert joined.place.group.alive() == {1}
    assert (joined.place.displaced, joined.place.leave(), joined.place.leave()) == (False, True, False)


def test_auto_is_ebpf(joining):
    """`auto` takes the eBPF balancer where it can."""
    joined = joining(balancer="auto")
    assert (joined.balancer, joined.fallback) == ("ebpf", None)


@pytest.mark.parametrize("balancer", ["classic", "none"])
def test_places_without_a_group(joining, bpffs, balancer):
    """Without eBPF there is no group: no pins, nothing to leave or to take over."""
    joined = joining(balancer=balancer, count=2)
    assert (joined.balancer, joined.place.count, joined.fallback) == (balancer, 2, None)
    assert (joined.place.displaced, joined.place.leave()) == (False, False)
    assert list(bpffs.glob("aiolb")) == []


def test_the_count_is_the_groups(joining):
    """Who asks for no count joins with the group's."""
    joining(index=0, count=3)
    assert joining(index=2).place.count == 3


def test_takeover(joining):
    """A held index is refused before a socket is bound, and replaced with takeover."""
    old = joining()
    with pytest.raises(MemberTakenError):
        joining()
    new = joining(takeover=True)
    assert (old.place.displaced, new.place.displaced) == (True, False)


def test_a_refused_index_binds_nothing(bpffs, address, joining):
    """Joining at an index that is held does not touch the port."""
    joining()
    with pytest.raises(MemberTakenError):
        join(address, lambda _: pytest.fail("bound"), options(bpffs))


def test_an_index_outside_of_a_new_group(bpffs, address):
    """A new group has one member if no count is asked for; a larger index is refused, and no group is left."""
    with pytest.raises(ConfigurationError, match=rf"index 2 is outside of the group at {address}, which has 1 member"):
        join(address, sockets.bind_reuseport, options(bpffs, index=2))
    assert list(bpffs.glob("aiolb")) == []


def test_a_failed_bind_leaves_no_group(bpffs, address):
    """When the port cannot be bound, the group that was made for it goes again."""

    def fail(_):
        raise KernelError("no")

    with pytest.raises(KernelError, match="no"):
        join(address, fail, options(bpffs))
    assert list(bpffs.glob("aiolb")) == []


@pytest.mark.parametrize("call", ["attach_reuseport", "map_update"])
def test_a_failed_join_closes_the_socket(bpffs, address, monkeypatch, call):
    """When the kernel does not take the bound socket, it is closed, and the group goes again."""
    bound = []

    def bind(address):
        bound.append(sockets.bind_reuseport(address))
        monkeypatch.setattr(syscall, call, refuse)
        return bound[0]

    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument", call)

    with pytest.raises(KernelError, match="the socket cannot join the group") as caught:
        join(address, bind, options(bpffs))
    assert caught.value.errno == errno.EINVAL
    assert bound[0].fileno() == -1
    assert list(bpffs.glob("aiolb")) == []


def test_no_takeover_with_the_classic_balancer(bpffs, address):
    """The classic balancer cannot take a place over, and says which can."""
    with pytest.raises(GroupError, match="cannot take a place over") as caught:
        join(address, sockets.bind_reuseport, options(bpffs, balancer="classic", takeover=True))
    assert caught.value.hint == "--balancer ebpf can"


@pytest.mark.parametrize(("balancer", "expected"), [("ebpf", None), ("auto", "classic")])
def test_a_kernel_without_the_program_type(bpffs, address, monkeypatch, balancer, expected):
    """Where the kernel has no SK_REUSEPORT programs, `ebpf` fails and `auto` is classic, with the reason."""

    def unknown(*_, **__):
        raise OSError(errno.EINVAL, "Invalid argument", "BPF_PROG_LOAD")

    monkeypatch.setattr(syscall, "prog_load", unknown)
    monkeypatch.setattr(syscall, "prog_verify", lambda *_, **__: "")
    if expected is None:
        with pytest.raises(UnsupportedError, match="this kernel has no SK_REUSEPORT programs"):
            join(address, sockets.bind_reuseport, options(bpffs, balancer=balancer))
    else:
        joined = join(address, sockets.bind_reuseport, options(bpffs, balancer=balancer))
        joined.sock.close()
        assert (joined.balancer, type(joined.fallback)) == (expected, UnsupportedError)
    assert list(bpffs.glob("aiolb")) == []


@pytest.mark.parametrize("asked", [{"compile": True}, {"debug": True}])
def test_auto_does_not_hide_a_compiler_that_fails(bpffs, address, monkeypatch, asked):
    """Who asks for a compiled balancer gets the compiler's error, with `auto` too."""

    def fail(**_):
        raise CompileError("bcc is not installed")

    monkeypatch.setattr(compiler, "compile_balancer", fail)
    with pytest.raises(CompileError):
        join(address, sockets.bind_reuseport, options(bpffs, balancer="auto", **asked))


def test_the_compiled_balancer_is_loaded(joining, monkeypatch, compiled, compiled_debug):
    """`compile` and `debug` load what bcc makes at that moment."""
    programs = {False: compiled, True: compiled_debug}
    monkeypatch.setattr(compiler, "compile_balancer", lambda *, debug, **_: programs[debug])
    for asked in ("compile", "debug"):
        joined = joining(takeover=True, **{asked: True})
        assert joined.place.group.config.program == programs[asked == "debug"].digest


def test_mounts_bpffs(python, private_mounts, tmp_path):
    """As root, a missing bpffs is mounted."""
    missing = tmp_path / "bpf"
    missing.mkdir()
    assert python(JOIN, "ebpf", missing, 0, 0, prefix=private_mounts) == {"balancer": "ebpf", "mounted": True}
    assert not pins.is_bpffs(missing)


def test_a_mistyped_bpffs(python, private_mounts, tmp_path):
    """A folder that is not there is no place to mount anything: nothing is made."""
    answer = python(JOIN, "ebpf", tmp_path / "mistyped", 0, 0, prefix=private_mounts)
    assert answer["error"] == "KernelError"
    assert answer["message"].endswith("mistyped, and mounting it failed: No such file or directory")
    mistyped = tmp_path / "mistyped"
    assert answer["hint"].startswith(f"as root: mkdir -p {mistyped} && mount -t bpf bpf {mistyped};")
    assert not (tmp_path / "mistyped").exists()


def test_a_folder_inside_of_bpffs(bpffs, joining):
    """A group may live in a folder of a bpffs: nothing is mounted over it."""

    def mounts():
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(bpffs) in line]  # other tests mount theirs at the same time

    folder = bpffs / "inside"
    folder.mkdir()
    before = mounts()
    joined = joining(group=GroupOptions(bpffs=folder))
    assert list(folder.glob("aiolb/*/*/prog"))
    assert (len(before), mounts()) == (1, before)
    joined.sock.close()
    joined.place.group.delete()
    folder.rmdir()


def test_processes_that_mount_bpffs_at_the_same_time(python, private_mounts, tmp_path):
    """When several find bpffs missing at the same time, one mounts it: a second mount would hide the first's groups."""
    code = """
import sys, threading
from pathlib import Path
from aiolb.address import Address
from aiolb.bpf import pins

folder, barrier, real = Path(sys.argv[1]), threading.Barrier(5), pins.is_bpffs
first = threading.local()

def is_bpffs(path):
    mounted = real(path)
    if not hasattr(first, "look"):
        first.look = mounted
        barrier.wait(10)
    return mounted

def lock():
    with pins.Pins(Address("127.0.0.1", 9), bpffs=folder).locked(create=True):
        pass

pins.is_bpffs = is_bpffs
threads = [threading.Thread(target=lock) for _ in range(5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(Path("/proc/self/mountinfo").read_text().count(str(folder)))
"""
    assert python(code, tmp_path, prefix=private_mounts) == 1


def test_without_bpffs_and_privilege(python, powerless, tmp_path):
    """Without the privilege to mount bpffs, the error says how; `auto` is classic, with that reason."""
    refused = {
        "error": "PrivilegeError",
        "message": f"no BPF file system is mounted at {tmp_path}, and mounting it failed: Operation not permitted",
        "hint": f"as root: mount -t bpf bpf {tmp_path}; docker run -v {tmp_path}:{tmp_path}",
    }
    assert python(JOIN, "ebpf", tmp_path, 0, 0, prefix=powerless) == refused
    classic_instead = {"balancer": "classic", "mounted": False} | refused
    assert python(JOIN, "auto", tmp_path, 0, 0, prefix=powerless) == classic_instead


def test_without_privilege(python, powerless, bpffs):
    """Without CAP_BPF, `ebpf` fails with what to do, `auto` is classic with that reason, and no pins are left."""
    answer = python(JOIN, "ebpf", bpffs, 0, 0, prefix=powerless)
    assert answer["error"] == "PrivilegeError"
    assert answer["message"].startswith("the kernel does not let this user load BPF programs (BPF_")
    hint = "run as root or with CAP_BPF (docker run --cap-add BPF); --balancer classic needs no privilege"
    assert answer["hint"] == hint
    fallback = python(JOIN, "auto", bpffs, 0, 0, prefix=powerless)
    assert fallback == {"balancer": "classic", "mounted": True} | answer
    assert list(bpffs.glob("aiolb")) == []


def test_others_on_the_port(joining, address):
    """Who joins a group on a port where another process has a socket of its own is told of that process."""
    code = """
import os, socket, sys
from aiolb import sockets
from aiolb.address import Address
sock = sockets.bind_reuseport(Address("127.0.0.1", int(sys.argv[1])))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(address.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        pid = int(other.stdout.readline())
        assert [holder.pid for holder in joining(index=0, count=2).others] == [pid]
        other.communicate("")
    assert joining(index=1).others == ()


def test_with_one_capability(python, needs, bpffs):
    """CAP_BPF is all that the eBPF balancer asks for."""
    prefix = [needs("setpriv", "util-linux"), "--bounding-set=-all,+bpf", "--inh-caps=-all"]
    assert python(JOIN, "ebpf", bpffs, 0, 0, prefix=prefix) == {"balancer": "ebpf", "mounted": True}


@pytest.mark.parametrize(("balancer", "joined"), [("ebpf", {}), ("auto", {"balancer": "classic", "mounted": True})])
def test_another_user(python, bpffs, balancer, joined):
    """A user who may not write to bpffs is told so, and is served by the classic balancer."""
    answer = python(JOIN, balancer, bpffs, 0, NOBODY)
    folder = bpffs / "aiolb" / str(pins.network_namespace())
    start = f"this user may not create the group's folder {folder}/udp_127-0-0-1_"
    port = answer.pop("message").removeprefix(start)
    command = f"aiolb group create 127.0.0.1:{port} --owner nobody --bpffs {bpffs}"
    assert answer == joined | {
        "error": "PrivilegeError",
        "hint": f"as root: {command}; --balancer classic needs no privilege",
    }


def test_another_users_group(python, bpffs, joining, address):
    """A group of root's is not opened for another user, and a classic program not mixed into it."""
    joining()
    answer = python(JOIN, "ebpf", bpffs, address.port, NOBODY)
    (folder,) = bpffs.glob("aiolb/*/*")
    assert answer == {
        "error": "PrivilegeError",
        "message": f"this user may not open the group in {folder}: Permission denied",
        "hint": f"as root: aiolb group create {address} --owner nobody --bpffs {bpffs}",
    }
    for balancer in ("auto", "classic"):
        answer = python(JOIN, balancer, bpffs, address.port, NOBODY)
        assert answer["error"] == "GroupError"
        assert answer["message"].startswith(f"a group with the eBPF balancer is running at {address} (user root")


def test_classic_is_not_mixed_into_a_group(python, bpffs, joining, address):
    """A classic program is refused where a group is alive, and the group's members go on undisturbed."""
    joined = joining()
    answer = python(JOIN, "classic", bpffs, address.port, 0)
    assert answer["error"] == "GroupError"
    assert "a group with the eBPF balancer is running" in answer["message"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address.host, address.port))
    joined.sock.settimeout(10)
    assert joined.sock.recv(10) == b"x"


def test_pins_of_a_dead_group_do_not_stop_the_classic_balancer(python, bpffs, address):
    """Pins outlive their group: where no member is alive, classic members may share the port."""
    dead = join(address, sockets.bind_reuseport, options(bpffs))
    dead.sock.close()
    first = join(address, sockets.bind_reuseport, options(bpffs, balancer="classic"))
    assert python(JOIN, "classic", bpffs, address.port, 0)["balancer"] == "classic"
    first.sock.close()
    dead.place.close(forget=True)


def test_classic_members_share_the_sources(bpffs, cluster, sources_v4):
    """The classic program that each member attaches steers as its twin says, in bind order."""
    asked, group, sources = options(bpffs, balancer="classic", count=3), cluster(1), sources_v4(300)
    # The socket that reserves the port is the first one on it: only when it is closed is a member number 0.
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        members = [join(address, sockets.bind_reuseport, asked)]
    members += [join(address, sockets.bind_reuseport, asked) for _ in range(2)]
    group.send(sources, to=address)
    group.sockets |= {f"classic {number}": member.sock for number, member in enumerate(members)}
    assert group.receive(300) == {source: f"classic {classic.choose(source, 3)}" for source in sources}


def test_packets_in_flight_are_waited_for(monkeypatch):
    """Where membarrier(2) waits, nothing else does; where it cannot, a fixed time is waited."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(syscall, "membarrier", lambda: None)
    steering.wait_for_packets_in_flight()
    assert slept == []

    def missing():
        raise OSError(errno.ENOSYS, "Function not implemented", "membarrier")

    monkeypatch.setattr(syscall, "membarrier", missing)
    steering.wait_for_packets_in_flight()
    assert slept == [steering.FALLBACK_SETTLE]


def test_membarrier():
    """The kernel's membarrier(2) takes the command that waits for packets in flight."""
    syscall.membarrier()
