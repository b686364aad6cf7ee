"""Users are read as they are written, and who took one on cannot come back."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb import privileges
from aiolb.errors import ConfigurationError, PrivilegeError
from aiolb.privileges import Identity

NOBODY = pwd.getpwnam("nobody")
UNKNOWN = "4000000000"

pytestmark = pytest.mark.usefixtures("nothing_left")

# What a process that dropped its privileges looks like, and what it can still do about it.
LOOK = """
import json, os, subprocess, sys, threading
from pathlib import Path
from aiolb import privileges
from aiolb.errors import AiolbError

def refused(call, *arguments):
    try:
        call(*arguments)
    except PermissionError:
        return True
    return False

def look(identity):
    status = dict(line.split(":", 1) for line in Path("/proc/thread-self/status").read_text().splitlines())
    return {
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "groups": sorted(os.getgroups()),
        "current": identity.current,
        "capabilities": sum(int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")),
        "refused": [
            refused(os.setuid, 0), refused(os.seteuid, 0), refused(os.setgid, 0), refused(os.setegid, 0),
            refused(os.setgroups, [0]), refused(os.chown, "/", 0, 0),
        ],
    }
"""


@pytest.fixture
def child(missing):
    """``child(code, *arguments, prefix=[...])``: the JSON that a process of root's own prints."""
    if os.geteuid() != 0:
        missing("only root can become somebody else")

    def run(code, *arguments, prefix=()):
        command = [*prefix, sys.executable, "-W", "error", "-c", LOOK + code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


@pytest.fixture
def setpriv(needs):
    """The command that runs another one with other ids and capabilities."""
    return needs("setpriv", "util-linux")


def nobody():
    """What a process looks like that is nobody for good."""
    return {
        "uids": [NOBODY.pw_uid] * 3,
        "gids": [NOBODY.pw_gid] * 3,
        "groups": sorted(os.getgrouplist("nobody", NOBODY.pw_gid)),
        "current": True,
        "capabilities": 0,
        "refused": [True] * 6,
    }


# --- reading


def test_a_user_brings_its_groups():
    """A name alone is the user with its own group and all that it is a member of."""
    groups = tuple(os.getgrouplist("nobody", NOBODY.pw_gid))
    assert privileges.parse("nobody") == Identity(NOBODY.pw_uid, NOBODY.pw_gid, groups, "nobody")


def test_a_group_is_the_only_one():
    """A name with a group is the user in that group alone."""
    daemon = grp.getgrnam("daemon").gr_gid
    assert privileges.parse("nobody:daemon") == Identity(NOBODY.pw_uid, daemon, (daemon,), "nobody:daemon")


def test_numbers():
    """Numbers do as names do, and name ids that no file knows."""
    assert privileges.parse(str(NOBODY.pw_uid)).gid == NOBODY.pw_gid
    assert privileges.parse(f"{UNKNOWN}:{UNKNOWN}") == Identity(
        4000000000, 4000000000, (4000000000,), f"{UNKNOWN}:{UNKNOWN}"
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "getent passwd"),
        (":", "getent passwd"),
        (":daemon", "getent passwd"),
        ("no such user", "getent passwd"),
        ("nobody:", "getent group"),
        ("nobody:no such group", "getent group"),
        ("nobody:daemon:more", "getent group"),
        (UNKNOWN, f"name the group too: {UNKNOWN}:{UNKNOWN}"),
        ("4294967295:1", "getent passwd"),
        ("nobody:4294967295", "getent group"),
        ("9" * 5000, "getent passwd"),
        ("-1", "getent passwd"),
        ("²", "getent passwd"),
        ("root", "nobody"),
        ("0", "nobody"),
        ("00:1", "nobody"),
        ("root:daemon", "nobody"),
        ("\0", "getent passwd"),
        ("\ud800", "getent passwd"),
    ],
)
def test_unknown(text, hint):
    """What names nobody, or root, is refused with a way to find another one."""
    with pytest.raises(ConfigurationError) as refused:
        privileges.parse(text)
    assert hint in refused.value.hint


@given(st.text())
def test_any_text_is_an_identity_or_refused(text):
    """No text leads to another error, or to root."""
    with suppress(ConfigurationError):
        assert privileges.parse(text).uid != 0


# --- dropping


def test_drop(child):
    """A process that dropped to a user has its ids and groups, no capability, and no way back."""
    code = 'identity = privileges.parse("nobody"); privileges.drop(identity); print(json.dumps(look(identity)))'
    assert child(code) == nobody()


def test_drop_to_numbers(child):
    """Ids that no file knows will do, and the group is the only one."""
    code = f'who = privileges.parse("{UNKNOWN}:5"); privileges.drop(who); print(json.dumps(look(who)))'
    assert child(code) == nobody() | {"uids": [4000000000] * 3, "gids": [5] * 3, "groups": [5]}


def test_drop_twice(child):
    """Who is that user already stays so, without any right to change."""
    code = """
identity = privileges.parse("nobody")
privileges.drop(identity)
privileges.drop(identity)
print(json.dumps(look(identity)))
"""
    assert child(code) == nobody()


def test_drop_takes_all_threads(child):
    """A thread that runs already is dropped too."""
    code = """
identity, go, found = privileges.parse("nobody"), threading.Event(), []
thread = threading.Thread(target=lambda: (go.wait(), found.append(look(identity))))
thread.start()
privileges.drop(identity)
go.set()
thread.join()
print(json.dumps(found))
"""
    assert child(code) == [nobody()]


def test_descriptors_stay(child, tmp_path):
    """What was open before is open afterwards, and what was not is out of reach."""
    secret = tmp_path / "secret"
    secret.write_text("kept")
    secret.chmod(0o600)
    code = """
with open(sys.argv[1]) as before:
    privileges.drop(privileges.parse("nobody"))
    print(json.dumps([before.read(), refused(open, sys.argv[1])]))
"""
    assert child(code, str(secret)) == ["kept", True]


REFUSED = """
identity = privileges.parse("nobody")
found = []
for attempt in (privileges.drop, privileges.check_may_switch):
    try:
        attempt(identity)
    except AiolbError as error:
        found.append([type(error).__name__, error.hint.split(",")[0], os.geteuid()])
print(json.dumps(found))
"""


def test_without_the_right(child, setpriv):
    """Another user, root without the capabilities and a user who would keep them are refused, and nothing is done."""
    refused = [["PrivilegeError", "start as root"]] * 2
    daemon = pwd.getpwnam("daemon").pw_uid
    another = [setpriv, "--reuid=daemon", "--regid=daemon", "--clear-groups"]
    powerless = [setpriv, "--bounding-set=-setuid", "--inh-caps=-setuid"]
    ambient = [*another, "--inh-caps=+setuid,+setgid", "--ambient-caps=+setuid,+setgid"]
    assert child(REFUSED, prefix=another) == [[*entry, daemon] for entry in refused]
    assert child(REFUSED, prefix=powerless) == [[*entry, 0] for entry in refused]
    assert child(REFUSED, prefix=ambient) == [[*entry, daemon] for entry in refused]


def test_capabilities_that_the_service_manager_gave(child, setpriv):
    """A user who has ambient capabilities is told that they would be kept."""
    groups = ",".join(map(str, os.getgrouplist("nobody", NOBODY.pw_gid)))
    ids = [setpriv, f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", f"--groups={groups}"]
    entry = ["StartError", "leave --user out", NOBODY.pw_uid]
    found = child(REFUSED, prefix=[*ids, "--inh-caps=+kill", "--ambient-caps=+kill"])
    assert found == [entry]


def test_a_kernel_that_keeps_capabilities(child, setpriv):
    """Secure bits that keep capabilities over the change are found out."""
    found = child(REFUSED, prefix=[setpriv, "--securebits=+no_setuid_fixup"])
    assert found[0] == ["StartError", "leave --user out", NOBODY.pw_uid]


def test_errors_are_the_kernels(monkeypatch):
    """What the kernel refuses on the way is told with its number."""
    identity = Identity(1, 1, (1,), "somebody")
    monkeypatch.setattr(privileges, "check_may_switch", lambda _: None)

    def refuse(_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", refuse)
    with pytest.raises(PrivilegeError, match="1:1") as refused:
        privileges.drop(identity)
    assert refused.value.errno == 1
