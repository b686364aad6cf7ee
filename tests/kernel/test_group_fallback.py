"""What all members of a group get where bpffs or programs cannot be had, and that they disturb nobody then."""

from __future__ import annotations

import os

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.members import join_all
from aiolb.bpf.pins import network_namespace
from aiolb.bpf.steering import JoinOptions

NOBODY = 65534

# Joins with three members, and prints what came of it.
JOIN = """
import json, subprocess, sys
from pathlib import Path
from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import steering, syscall
from aiolb.bpf.group import GroupOptions
from aiolb.bpf.members import join_all
from aiolb.bpf.steering import JoinOptions
from aiolb.errors import AiolbError

balancer, bpffs, port, how = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if how == "readonly":
    syscall.mount_bpffs(str(bpffs))
    subprocess.run(["mount", "-o", "remount,ro", str(bpffs)], check=True)
steering.BPFFS = bpffs
group = GroupOptions(count=3, bpffs=None if how == "unpinned" else bpffs)
options = JoinOptions(balancer=balancer, takeover=how == "takeover", group=group)
try:
    with sockets.reserved_port(Address("127.0.0.1", port)) as address:
        members = join_all(address, sockets.bind_reuseport, options)
    answer = {"balancer": members.balancer, "pinned": members.pinned, "members": len(members)}
    for name in ("unpinned", "fallback"):
        if reason := getattr(members, name):
            answer[name] = [type(reason).__name__, str(reason), reason.hint]
    members.close(forget=True)
except AiolbError as error:
    answer = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
print(json.dumps(answer))
"""


@pytest.fixture
def foreign(bpffs):
    """A folder of the bpffs that belongs to another user, as far as capabilities do not help."""
    folder = bpffs / "foreign"
    folder.mkdir()
    (folder / "aiolb").mkdir(mode=0o755)
    (folder / "aiolb").chmod(0o755)
    os.chown(folder / "aiolb", NOBODY, NOBODY)
    return folder


def refusal(folder):
    """Why bpffs cannot be mounted without the privilege."""
    return (
        "PrivilegeError",
        f"no BPF file system is mounted at {folder}, and mounting it failed: Operation not permitted",
        f"as root: mount -t bpf bpf {folder}; docker run -v {folder}:{folder}",
    )


def test_no_bpffs(python, with_bpf, tmp_path):
    """Who may load programs but not mount bpffs gets a group that is not pinned, with the reason."""
    answer = python(JOIN, "auto", tmp_path, 0, "", prefix=with_bpf)
    assert answer == {"balancer": "ebpf", "pinned": False, "members": 3, "unpinned": list(refusal(tmp_path))}


@pytest.mark.parametrize(("balancer", "how"), [("ebpf", ""), ("auto", "takeover"), ("ebpf", "takeover")])
def test_no_bpffs_and_no_way_around(python, with_bpf, tmp_path, balancer, how):
    """Who asks for `ebpf`, or for a takeover, is told why there is none."""
    answer = python(JOIN, balancer, tmp_path, 0, how, prefix=with_bpf)
    assert answer == dict(zip(("error", "message", "hint"), refusal(tmp_path), strict=True))


@pytest.mark.parametrize("balancer", ["auto", "ebpf"])
def test_none_wanted(python, with_bpf, tmp_path, balancer):
    """Who wants no bpffs needs none, and there is nothing to explain."""
    answer = python(JOIN, balancer, tmp_path, 0, "unpinned", prefix=with_bpf)
    assert answer == {"balancer": "ebpf", "pinned": False, "members": 3}


def test_a_folder_of_another_user(python, with_bpf, foreign):
    """Where the group's folder may not be made, the group is not pinned."""
    answer = python(JOIN, "auto", foreign, 0, "", prefix=with_bpf)
    kind, message, hint = answer.pop("unpinned")
    assert answer == {"balancer": "ebpf", "pinned": False, "members": 3}
    assert (kind, hint) == (
        "PrivilegeError",
        "run as root, with CAP_DAC_OVERRIDE; --balancer classic needs no privilege",
    )
    assert message.startswith(f"this user may not create the group's folder {foreign}/aiolb/{network_namespace()}")


def test_a_read_only_bpffs(python, private_mounts, tmp_path):
    """A bpffs that can only be read, as in a sandbox, is one where no folder may be made."""
    answer = python(JOIN, "auto", tmp_path, 0, "readonly", prefix=private_mounts)
    kind, message, _ = answer.pop("unpinned")
    assert answer == {"balancer": "ebpf", "pinned": False, "members": 3}
    assert (kind, message.startswith("this user may not create the group's folder")) == ("PrivilegeError", True)


@pytest.mark.parametrize("how", ["", "unpinned"])
def test_no_programs(python, powerless, bpffs, how):
    """Who may not load programs gets the classic balancer, with that reason, wherever groups could be pinned."""
    answer = python(JOIN, "auto", bpffs, 0, how, prefix=powerless)
    kind, message, hint = answer.pop("fallback")
    assert answer == {"balancer": "classic", "pinned": False, "members": 3}
    assert kind == "PrivilegeError"
    assert hint == "run as root or with CAP_BPF (docker run --cap-add BPF); --balancer classic needs no privilege"
    assert message.startswith("the kernel does not let this user load BPF programs (BPF_")
    assert list(bpffs.glob("aiolb")) == []


def test_neither_bpffs_nor_programs(python, powerless, tmp_path):
    """Where both are missing, the reason for the classic balancer is the one that matters: programs."""
    answer = python(JOIN, "auto", tmp_path, 0, "", prefix=powerless)
    assert (answer["balancer"], answer["fallback"][1].partition(" (")[0]) == (
        "classic",
        "the kernel does not let this user load BPF programs",
    )


@pytest.mark.parametrize(("balancer", "how"), [("ebpf", "unpinned"), ("classic", ""), ("auto", "")])
def test_a_running_group_is_left_alone(python, with_bpf, bpffs, balancer, how):
    """A program of one's own is not attached to the sockets of a group that is alive, if it can be opened or not."""
    options = JoinOptions(balancer="ebpf", group=GroupOptions(count=1, bpffs=bpffs))
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        members = join_all(address, sockets.bind_reuseport, options)
    (folder,) = bpffs.glob("aiolb/*/*")
    folder.chmod(0 if balancer == "auto" else 0o700)
    answer = python(JOIN, balancer, bpffs, address.port, how, prefix=with_bpf)
    members.close(forget=True)
    assert answer["error"] == "GroupError"
    assert answer["message"].startswith(f"a group with the eBPF balancer is running at {address} (")
