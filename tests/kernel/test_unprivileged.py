"""What a user without any capability can do, at each level, and what it is told it cannot."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import sysconfig
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import supervision
from serving import AIOLB

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import ownership, spec
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.pins import names_of
from aiolb.bpf.preparation import prepare
from aiolb.privileges import parse

NOBODY = pwd.getpwnam("nobody")
DAEMON = pwd.getpwuid(1)
ROOT = Path(__file__).parent.parent.parent

# Begins what runs as nobody: who it is, and how it sends and receives.
START = """
import json, os, socket, sys, warnings
from pathlib import Path
import aiolb
from aiolb.bpf.group import Group
from aiolb import sockets
from aiolb.address import Address
from aiolb.errors import AiolbError

bpffs, port = Path(sys.argv[1]), int(sys.argv[2])
address = Address("127.0.0.1", port)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
assert [status[name].strip().strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [""] * 5
assert (os.getuid(), os.geteuid(), os.getgroups()) == (65534, 65534, [])
SOURCES = [f"127.7.0.{number}" for number in range(1, 61)]

def send():
    for source in SOURCES:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(source.encode(), (address.host, address.port))

def received(sock):
    found = set()
    while True:
        try:
            found.add(sock.recv(100).decode())
        except BlockingIOError:
            return found

def told(action):
    try:
        action()
    except AiolbError as error:
        return [type(error).__name__, str(error), error.hint]
    return None
"""

# Joins, and tells why it may not.
JOIN = """
with aiolb.bind(address) as sock:
    print(json.dumps(told(lambda: aiolb.join(sock, index=0, balancer="ebpf", bpffs=bpffs))))
"""

EVERYTHING = """
first, second, third, new = (aiolb.bind(address) for _ in range(4))
zero = aiolb.join(first, index=0, balancer="ebpf", bpffs=bpffs)
one = aiolb.join(second, index=1, balancer="ebpf", bpffs=bpffs)
group = zero.group

def steered(**members):
    send()
    owners = {name: {s for s in SOURCES if group.locate(s).member == index} for name, (_, index) in members.items()}
    return all(owners.values()) and {name: received(sock) for name, (sock, _) in members.items()} == owners

answer = {"count": zero.count, "joined": steered(first=(first, 0), second=(second, 1))}
answer["taken"] = told(lambda: aiolb.join(new, index=1, balancer="ebpf", bpffs=bpffs))[0]
over = aiolb.join(new, index=1, balancer="ebpf", takeover=True, bpffs=bpffs)
answer["taken over"] = [one.displaced, over.displaced, steered(first=(first, 0), new=(new, 1))]
answer["left"] = [over.leave(), {group.locate(source).member for source in SOURCES} == {0}]
send()
answer["left"].append(received(first) == set(SOURCES))
answer["restored"] = [over.restore(), steered(first=(first, 0), new=(new, 1))]
two = aiolb.join(third, index=2, count=3, balancer="ebpf", bpffs=bpffs)
answer["grown"] = [zero.count, steered(first=(first, 0), new=(new, 1), third=(third, 2))]
with_slots = Group.open(address, bpffs=bpffs)
with_slots.move_slots({slot: 2 for slot, owner in enumerate(with_slots.slots) if owner == 0})
answer["moved"] = [{group.locate(s).member for s in SOURCES} == {1, 2}, steered(new=(new, 1), third=(third, 2))]
answer["outside"] = sorted(received(first))
with_slots.close()
with aiolb.open_group(address, bpffs=bpffs) as opened:
    answer["looked"] = [[member.alive, member.uid] for member in opened.statistics().members]
for place, sock in ((zero, first), (over, new), (two, third)):
    place.leave()
    sock.close()
    place.close(forget=True)
one.close(forget=True)
second.close()
print(json.dumps(answer))
"""


def closed_to_nobody(folder):
    """The folder on the way there that nobody may not enter."""
    return ownership.closed_to(folder, NOBODY.pw_uid, [NOBODY.pw_gid])


@pytest.fixture
def python_of_nobody(missing):
    """A Python that nobody may start, as a supervisor starts workers, and the environment that has our packages."""
    # Of what setpriv itself starts the path is looked up while it still has capabilities; that misleads.
    pythons = [Path(sys.executable), Path(f"/usr/bin/python3.{sys.version_info.minor}")]
    usable = [
        str(python)
        for python in pythons
        if python.exists() and not any(map(closed_to_nobody, (python.parent, python.resolve().parent)))
    ]
    if not usable:
        missing("no Python of this version that nobody may start (apt-get install python3)")
    return usable[0], {**os.environ, "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"}


@pytest.fixture
def unprivileged(needs, missing):
    """The command that runs another one as nobody, with no capability and no way to get one."""
    if (closed := closed_to_nobody(ROOT)) is not None:
        missing(f"nobody may not enter {closed}, in which this checkout is")
    ids = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    return [needs("setpriv", "util-linux"), *ids, "--inh-caps=-all", "--bounding-set=-all"]


@pytest.fixture
def as_nobody(python_of_nobody, unprivileged, bpffs, address):
    """Run code after START as nobody; the JSON that it prints."""
    python, env = python_of_nobody

    def run(code):
        command = [*unprivileged, python, "-W", "error", "-c", START + code, str(bpffs), str(address.port)]
        child = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert (child.returncode, child.stderr) == (0, ""), child.stderr
        return json.loads(child.stdout)

    return run


@pytest.fixture
def address():
    """A free port of 127.0.0.1 that is kept free for nobody: all sockets of a port belong to one user."""
    with ExitStack() as stack:
        os.seteuid(NOBODY.pw_uid)
        try:
            free = stack.enter_context(sockets.reserved_port(Address("127.0.0.1", 0)))
        finally:
            os.seteuid(0)
        yield free


@pytest.fixture
def prepared(bpffs, address):
    """Prepare a group for nobody: ``prepared(count=2)``; it is taken away at the end."""

    def run(**options):
        prepare(address, GroupOptions(bpffs=bpffs, **options), parse("nobody")).close()
        (folder,) = bpffs.glob("aiolb/*/*")
        return folder

    yield run
    with closing(Group.open(address, bpffs=bpffs)) as group:
        group.delete()


def test_a_prepared_group(prepared, as_nobody, bpffs, address):
    """Members of nobody join, serve, take over, leave, return, grow the group and move slots; the group stays."""
    folder = prepared(count=2)
    for _ in range(2):  # another process finds it as the first one did
        answer = as_nobody(EVERYTHING)
        assert answer == {
            "count": 2,
            "joined": True,
            "taken": "MemberTakenError",
            "taken over": [True, False, True],
            "left": [True, True, True],
            "restored": [True, True],
            "grown": [3, True],
            "moved": [True, True],
            "outside": [],
            "looked": [[True, NOBODY.pw_uid]] * 3,
        }
        assert (folder / "config").exists()
        with closing(Group.open(address, bpffs=bpffs)) as group:
            assert group.alive() == set()
            assert (group.owner.uid, group.owner.prepared) == (NOBODY.pw_uid, True)
            group.resize(2)


def test_the_limits_of_a_prepared_group(prepared, as_nobody, bpffs, address):
    """Its owner can neither delete it, nor add pins to it, nor change its seed, nor make another group."""
    folder = prepared(count=1, seed=7)
    code = """
from aiolb.bpf import deletion
from aiolb.bpf.group_name import GroupName
answer = {"delete": told(lambda: deletion.delete(GroupName("udp", address), bpffs))}
(folder,) = bpffs.glob("aiolb/*/*")
answer["writable"] = os.access(folder, os.W_OK)
with aiolb.bind(address) as sock:
    answer["seed"] = told(lambda: aiolb.join(sock, index=0, seed=8, balancer="ebpf", bpffs=bpffs))
with aiolb.bind("127.0.0.1:0") as sock:
    answer["other"] = told(lambda: aiolb.join(sock, index=0, balancer="ebpf", bpffs=bpffs))[0]
print(json.dumps(answer))
"""
    answer = as_nobody(code)
    assert answer == {
        "delete": [
            "PrivilegeError",
            f"this user may not remove the group in {folder}: Permission denied",
            "run as root",
        ],
        "writable": False,
        "seed": [
            "GroupError",
            f"the group at {address} has the seed 7, not 8",
            f"leave --seed out, or start afresh: stop its members, then aiolb group delete {address} --bpffs {bpffs}",
        ],
        "other": "PrivilegeError",
    }


async def test_a_supervisor(prepared, unprivileged, python_of_nobody, bpffs, address):
    """A supervisor without privileges makes no group of its own: its workers are the members of the prepared one."""
    prepared(count=2)
    python, env = python_of_nobody
    command, prefix = (python, "-m", "aiolb"), tuple(unprivileged)
    options = ["--bind", str(address), "--bpffs", str(bpffs), "--workers", "2"]
    async with supervision.Supervisor("echo", *options, command=command, env=env, prefix=prefix) as run:
        assert (await run.event("supervising"))["balancer"] == "ebpf"
        with closing(Group.open(address, bpffs=bpffs)) as group:
            assert group.alive() == {0, 1}
            assert {member.uid for member in group.statistics().members} == {NOBODY.pw_uid}
        assert await run.stop() == 0
    assert run.named("balancer_fallback") == run.named("unpinned") == []


def test_the_classic_balancer(as_nobody, bpffs):
    """Without a group that was prepared, `auto` is classic, and warns; sources stay on one member, and no more."""
    code = """
socks = [aiolb.bind("127.0.0.1:0")]
address = Address(*socks[0].getsockname())
socks += [aiolb.bind(address) for _ in range(2)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    places = [aiolb.join(sock, index=index, count=3, bpffs=bpffs) for index, sock in enumerate(socks)]
send()
first = [received(sock) for sock in socks]
send()
new = aiolb.bind(address)
answer = {
    "balancers": [place.balancer for place in places],
    "warned": [str(warning.message).partition(":")[0] for warning in caught],
    "same": [received(sock) for sock in socks] == first,
    "all": sorted(map(len, first))[0] > 0 and sum(map(len, first)) == 60,
    "left": places[0].leave(),
    "takeover": told(lambda: aiolb.join(new, index=1, count=3, takeover=True, balancer="classic", bpffs=bpffs)),
    "group": told(lambda: places[0].group),
    "ebpf": told(lambda: aiolb.join(new, index=1, count=3, balancer="ebpf", bpffs=bpffs))[0],
}
for sock in (*socks, new):
    sock.close()
print(json.dumps(answer))
"""
    answer = as_nobody(code)
    warned = answer.pop("warned")
    assert all(text.startswith("the classic balancer steers 127.0.0.1") for text in warned)
    assert answer == {
        "balancers": ["classic"] * 3,
        "same": True,
        "all": True,
        "left": False,
        "takeover": ["GroupError", "the classic balancer cannot take a place over", "--balancer ebpf can"],
        "group": ["GroupError", "the balancer 'classic' keeps no table of who gets what", "balancer='ebpf' does"],
        "ebpf": "PrivilegeError",
    }
    assert list(bpffs.glob("aiolb")) == []


def test_a_folder_that_is_closed(prepared, as_nobody, bpffs):
    """Where bpffs is open to root alone, as systemd mounts it, that is said: when preparing and when joining."""
    prepared(count=1)
    bpffs.chmod(0o700)
    try:
        assert as_nobody(JOIN) == [
            "PrivilegeError",
            f"this user may not enter {bpffs}, below which groups are pinned",
            f"as root: chmod o+x {bpffs}; --balancer classic needs no privilege",
        ]
        command = ["group", "create", "127.0.0.1:9", "--owner", "nobody", "--bpffs", str(bpffs)]
        done = subprocess.run([*AIOLB, *command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (
            3,
            f"aiolb: error: nobody may not enter {bpffs}, below which groups are pinned\n  hint: chmod o+x {bpffs}\n",
        )
    finally:
        bpffs.chmod(0o755)


def test_another_user_s_group(as_nobody, bpffs, address):
    """Who may not open a group that another user has made for itself is told whose it is."""
    with Group.opened_or_created(address, GroupOptions(bpffs=bpffs)) as group, closing(group):
        (folder,) = bpffs.glob("aiolb/*/*")
        for path in (*folder.iterdir(), folder):
            os.chown(path, DAEMON.pw_uid, DAEMON.pw_gid)
        assert as_nobody(JOIN) == [
            "PrivilegeError",
            f"this user may not open the group in {folder}: Permission denied",
            f"run as {DAEMON.pw_name}, or as root: aiolb group create {address} --owner nobody --bpffs {bpffs}",
        ]
        group.delete()


def test_another_program(prepared, as_nobody, bpffs, address, compiled_debug):
    """Root may give a prepared group another version of the program: the owner stays, and joins with that one."""
    folder = prepared(count=2)
    before = (folder / "prog").stat()
    prepared(program=compiled_debug)
    after = (folder / "prog").stat()
    assert before.st_ino != after.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    code = """
with aiolb.bind(address) as sock, aiolb.join(sock, index=0, balancer="ebpf", bpffs=bpffs) as place:
    send()
    print(json.dumps(place.group.statistics().members[0].packets))
"""
    assert as_nobody(code) == 60
    with closing(Group.open(address, bpffs=bpffs)) as group:
        assert group.config.program == compiled_debug.digest != spec.shipped().digest


@pytest.fixture
def serve_as_nobody(unprivileged, python_of_nobody, bpffs, address):
    """Run `aiolb serve discard` as nobody until it is ready, and stop it; how it was warned of its program."""
    python, env = python_of_nobody

    async def run(*options):
        arguments = ["discard", "--bind", str(address), "--bpffs", str(bpffs), *options]
        command = (python, "-m", "aiolb")
        async with supervision.Supervisor(*arguments, command=command, env=env, prefix=tuple(unprivileged)) as process:
            await process.event("ready")
            assert await process.stop() == 0
        return process.named("program_kept")

    return run


@pytest.mark.parametrize("how", [["--index", "0"], ["--workers", "2"]], ids=["alone", "supervised"])
async def test_a_program_that_is_kept(prepared, serve_as_nobody, aiolb, compiled_debug, how):
    """Who asks for another program and may not load it is warned once; nobody is for whom root has made it."""
    folder = prepared(count=2)
    (_, address), bpffs = names_of(folder.name), folder.parents[2]
    (warning,) = await serve_as_nobody(*how, "--debug")
    create = f"group create {address} --owner nobody --bpffs {bpffs}"
    assert (warning["level"], warning["hint"]) == (
        "warning",
        f"leave --compile and --debug out, or as root, with the same option: aiolb {create}",
    )
    assert warning["reason"].startswith(f"nobody may not give the group at {address} another program")
    aiolb(*create.split()[:-2], "--debug")
    with closing(Group.open(address, bpffs=bpffs)) as group:
        assert (group.config.program, group.owner.uid) == (compiled_debug.digest, NOBODY.pw_uid)
    assert [await serve_as_nobody(*how, *options) for options in ((), ("--debug",))] == [[], []]


@pytest.mark.parametrize("how", [["--index", "0"], ["--workers", "1"]], ids=["alone", "supervised"])
async def test_root_in_another_user_s_group(bpffs, how):
    """Root is told whom it locks out when it joins a group that it has prepared for a user; in its own it is not."""
    with sockets.reserved_port(Address("127.0.0.1", 0)) as address:
        options = ["--bind", str(address), "--bpffs", str(bpffs)]
        warnings = []
        for user in (parse("nobody"), None):
            prepare(address, GroupOptions(bpffs=bpffs), user).close()
            async with supervision.Supervisor("discard", *options, *how) as run:
                await run.event("ready")
                assert await run.stop() == 0
            warnings += run.named("owner_locked_out")
        with closing(Group.open(address, bpffs=bpffs)) as group:
            group.delete()
    (warning,) = warnings
    assert (warning["level"], warning["hint"]) == (
        "warning",
        f"run as nobody, or take the group back: aiolb group create {address} --bpffs {bpffs}",
    )
    who = f"the group at {address} is prepared for nobody, who cannot join while a member of root is alive"
    assert warning["reason"].startswith(who)


def test_the_pins_of_a_prepared_group(prepared, bpffs, address):
    """Pins are the owner's, and the folder is root's, which the owner may read; those above can be entered by all."""
    (bpffs / "aiolb").mkdir(mode=0o700)
    folder = prepared(count=2)
    assert {(pin.stat().st_uid, pin.stat().st_mode & 0o777) for pin in folder.iterdir()} == {(NOBODY.pw_uid, 0o600)}
    assert (folder.stat().st_uid, folder.stat().st_gid) == (0, NOBODY.pw_gid)
    assert folder.stat().st_mode & 0o777 == 0o551
    assert {above.stat().st_mode & 0o777 for above in list(folder.parents)[:2]} == {0o755}
    prepare(address, GroupOptions(bpffs=bpffs), parse(f"nobody:{NOBODY.pw_gid}"), shared=True).close()
    assert {pin.stat().st_mode & 0o777 for pin in folder.iterdir()} == {0o660}
    assert folder.stat().st_mode & 0o777 == 0o551


def test_links_in_the_folder(prepared, tmp_path):
    """Who had the folder can plant links in it: they are removed, and root gives away nothing that they lead to."""
    folder = prepared(count=1)
    secret = tmp_path / "secret"
    secret.write_text("of root's")
    secret.chmod(0o640)
    before = secret.stat()
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    (folder / "planted").symlink_to(secret)
    prepared(count=1)
    assert not (folder / "planted").is_symlink()
    assert (secret.stat().st_uid, secret.stat().st_mode) == (before.st_uid, before.st_mode)
    assert (folder.stat().st_uid, (folder / "config").stat().st_uid) == (0, NOBODY.pw_uid)


def test_the_folder_is_not_the_owner_s(prepared, as_nobody):
    """The owner of a prepared group cannot make its folder writable, and so replaces nothing in it."""
    folder = prepared(count=1)
    code = """
(folder,) = bpffs.glob("aiolb/*/*")
answer = []
for action in (lambda: folder.chmod(0o700), lambda: (folder / "planted").symlink_to("/"), (folder / "prog").unlink):
    try:
        action()
    except OSError as error:
        answer.append(type(error).__name__)
print(json.dumps(answer))
"""
    assert as_nobody(code) == ["PermissionError"] * 3
    assert folder.stat().st_uid == 0


def test_root_forgets_no_prepared_group(prepared, bpffs, address):
    """A member of root's that forgets its group when it goes leaves a prepared one where it is."""
    folder = prepared(count=1)
    with closing(Group.open(Address("127.0.0.1", address.port), bpffs=bpffs)) as group:
        group.delete_if_empty()
    assert (folder / "config").exists()
    assert os.geteuid() == 0
