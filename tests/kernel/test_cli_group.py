"""`aiolb group`: what it prints, makes, refuses and takes away."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import subprocess
import sys
from contextlib import closing

import pytest

from aiolb.address import Address
from aiolb.bpf import deletion, pins, spec, syscall
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.group_name import GroupName
from aiolb.errors import GroupError

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def program():
    """One program is enough here."""
    return spec.shipped()


@pytest.fixture
def group(bpffs):
    """Run `aiolb group` in the tests' own bpffs: exit status, output, errors."""

    def run(*arguments):
        command = [sys.executable, "-m", "aiolb", "group", *map(str, arguments), "--bpffs", str(bpffs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    return run


def test_create(group, bpffs, address):
    """It makes what was asked for, for a user; once more it changes the count, and no seed or key."""
    options = ["--count", "3", "--key", "prefix/24,64", "--seed", "7", "--strict"]
    assert group("create", address, "--owner", "nobody", *options) == (
        0,
        [
            f"{address} is prepared for nobody: 3 members, key prefix/24,64",
            f"as nobody: aiolb serve --bind {address} --index 0 --balancer ebpf --bpffs {bpffs}",
        ],
        [],
    )
    assert group("create", address, "--owner", "daemon", "--count", "1")[1][0] == (
        f"{address} is prepared for daemon: 1 member, key prefix/24,64"
    )
    with closing(Group.open(address, bpffs=bpffs)) as made:
        assert (made.config.count, made.config.seed, made.config.strict, str(made.key)) == (1, 7, True, "prefix/24,64")
        assert (made.owner.uid, made.owner.prepared) == (pwd.getpwnam("daemon").pw_uid, True)
    for options in (["--seed", "8"], ["--key", "source"]):
        status, lines, errors = group("create", address, *options)
        assert (status, lines) == (3, [])
        assert errors[1].endswith(f"stop its members, then aiolb group delete {address} --bpffs {bpffs}")
    assert group("delete", address) == (0, [f"deleted {address}"], [])
    assert list(bpffs.glob("aiolb")) == []


def test_create_for_connections(group, bpffs):
    """A group of connections is told apart, and how to join it."""
    assert group("create", "tcp:127.0.0.1:9", "--owner", "nobody") == (
        0,
        [
            "tcp:127.0.0.1:9 is prepared for nobody: 1 member, key source",
            f"as nobody: aiolb serve --bind 127.0.0.1:9 --protocol tcp --index 0 --balancer ebpf --bpffs {bpffs}",
        ],
        [],
    )
    assert group("show", "127.0.0.1:9")[0] == 3
    assert group("show", "tcp:127.0.0.1:9")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["127.0.0.1:0"], "127.0.0.1:0 has no port", "e.g. 127.0.0.1:9000"),
        (
            ["127.0.0.1:9", "--owner", "root"],
            "'root' is root, which keeps its privileges",
            "name another user, e.g. nobody, or leave --owner out",
        ),
        (["127.0.0.1:9", "--count", "1025"], "a group has 1 to 1024 members, not 1025", "--count 1 … 1024"),
        (["localhost:9"], "'localhost' in 'localhost:9' is no IP address", "e.g. 127.0.0.1:10001 or [::1]:10001"),
    ],
)
def test_what_cannot_be_created(group, bpffs, arguments, error, hint):
    """It is wrong usage, told in one line, and nothing is made."""
    status, lines, errors = group("create", *arguments)
    assert (status, lines) == (2, [])
    assert errors == [f"aiolb: error: {error}", *([f"  hint: {hint}"] if hint else [])]
    assert list(bpffs.glob("aiolb")) == []


def test_a_group_of_another_user(group, cluster):
    """A group with live members of one user is not given to another: all sockets of a port are one user's."""
    made = cluster(2)
    status, _, errors = group("create", made.address, "--owner", "nobody")
    assert (status, errors[0]) == (
        3,
        f"aiolb: error: the group at {made.address} cannot be nobody's: member 0 is pid {os.getpid()} of user root",
    )
    assert not made.group.owner.prepared


def test_show(group, cluster):
    """The facts of a group and of each member, for people and as JSON; without a name those of all groups."""
    made = cluster(3, members=[0, 2], strict=True)
    status, lines, _ = group("show", made.address)
    assert status == 0
    assert lines[:7] == [
        str(made.address),
        "  protocol  udp",
        "  key       source",
        f"  seed      {made.group.config.seed}",
        "  strict    yes",
        "  owner     root:root",
        "  members   3, 2 alive",
    ]
    assert [line.split()[:4] for line in lines[9:]] == [
        ["0", "yes", str(os.getpid()), "root"],
        ["1", "no", "-", "-"],
        ["2", "yes", str(os.getpid()), "root"],
    ]
    assert max(map(len, lines)) <= 80
    group("create", "[::1]:9", "--owner", f"nobody:{NOBODY.pw_gid}")
    first, second = json.loads(group("show", "--json")[1][0])
    assert (first["group"], first["alive"], first["prepared"]) == (str(made.address), 2, False)
    assert first["seed"] == str(made.group.config.seed)  # as in `aiolb status --json`
    assert [member["slots"] for member in first["members"]] == [made.group.slots.count(index) for index in range(3)]
    assert first["members"][1] == {
        **dict.fromkeys(["pid", "uid", "user", "since"]),
        "index": 1,
        "alive": False,
        "slots": made.group.slots.count(1),
    }
    assert (second["group"], second["count"], second["prepared"]) == ("[::1]:9", 1, True)
    assert second["owner"].startswith("nobody:")
    assert group("show", "[::1]:10")[0] == 3
    assert [line for line in group("show")[1] if not line.startswith(" ") and line] == [str(made.address), "[::1]:9"]


def test_nothing_to_show(group):
    """Without any group that is said."""
    assert group("show") == (
        3,
        [],
        ["aiolb: error: there is no group in this network namespace", "  hint: start a collector first"],
    )


def test_delete(group, cluster, bpffs):
    """A group with a live member is deleted by force alone; its members go on."""
    made = cluster(2, members=[1])
    status, lines, errors = group("delete", made.address)
    assert (status, lines) == (3, [])
    assert errors[0] == f"aiolb: error: the group at {made.address} has live members: 1"
    assert errors[1].endswith(
        f"(aiolb group show {made.address} --bpffs {bpffs} names their processes), or add --force"
    )
    assert group("delete", made.address, "--force")[:2] == (0, [f"deleted {made.address}; 1 member of it still alive"])
    assert group("delete", made.address)[0] == 3
    assert made.group.alive() == {1}


@pytest.mark.parametrize("arguments", [[], ["127.0.0.1:9", "--stale"]])
def test_delete_one_or_the_stale(group, arguments):
    """Either one group is named, or --stale is said."""
    assert group("delete", *arguments) == (
        2,
        [],
        ["aiolb: error: name one group, or say --stale", "  hint: aiolb group show lists them"],
    )


def test_delete_the_stale(group, cluster, bpffs, make_netns):
    """Groups without a live member go, those of other network namespaces too; live and prepared ones stay."""
    live, dead = cluster(1, members=[0]), cluster(1, members=[0])
    netns = make_netns()
    with closing(netns.call(_abandoned, bpffs)):
        pass
    dead.kill(0)
    group("create", "127.0.0.1:9")
    assert len(list(bpffs.glob("aiolb/*/*"))) == 4
    status, lines, _ = group("delete", "--stale")
    assert status == 0
    folders = {str(pins.Pins.at(folder).name): folder for folder in bpffs.glob("aiolb/*/*")}
    assert folders.keys() == {str(live.address), "127.0.0.1:9"}
    assert sorted(line.split()[0] for line in lines) == ["deleted", "deleted", "kept"]
    assert f"kept {folders['127.0.0.1:9']}, which was prepared; name it to delete it" in lines
    group("delete", "127.0.0.1:9")
    assert group("delete", "--stale") == (0, ["no group is without a live member"], [])


def _abandoned(bpffs):
    """A group that nobody is in, in the network namespace of this thread."""
    with Group.opened_or_created(Address("127.0.0.1", 7), GroupOptions(bpffs=bpffs)) as made:
        return made


def test_delete_another_layout(group, cluster, bpffs):
    """A group that this version cannot open can be deleted, as the hint of the refusal says; with members by force."""
    made = cluster(1, members=[0])
    made.group._write_config(layout=99)
    (folder,) = bpffs.glob("aiolb/*/*")
    (folder / "slots").unlink()
    assert group("show", made.address)[0] == 3
    assert group("delete", made.address)[0] == 3
    made.kill(0)
    assert group("delete", made.address)[0] == 0
    assert not folder.exists()


def test_delete_what_is_half_made(group, cluster, bpffs):
    """Pins that were left of a group, without its members, are deleted too."""
    made = cluster(1, members=[])
    (folder,) = bpffs.glob("aiolb/*/*")
    (folder / "targets").unlink()
    fd = syscall.obj_get(str(folder / "config"))
    syscall.obj_pin(fd, str(folder / "targets"))
    os.close(fd)
    assert group("delete", made.address)[0] == 0
    assert list(bpffs.glob("aiolb")) == []


def test_a_lock_that_is_held(cluster, bpffs, monkeypatch):
    """Nothing is deleted while another process works on the group."""
    made = cluster(1, members=[])
    (folder,) = bpffs.glob("aiolb/*/*")
    monkeypatch.setattr(pins, "LOCK_TIMEOUT", 0.01)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(GroupError, match="has held the lock"):
            deletion.delete(GroupName("udp", made.address), bpffs)
    finally:
        os.close(fd)
    assert (folder / "config").exists()
