"""`--user`: handlers run as a user without privileges; what root made goes on working."""

from __future__ import annotations

import json
import os
import pwd
import signal
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import supervision

from aiolb.bpf.group import Group

TESTS = Path(__file__).parent.parent


Client = supervision.Client

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def folder():
    """A folder that nobody may write to, as root's in /tmp may not be read."""
    with tempfile.TemporaryDirectory(prefix="aiolb-test-") as path:
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        yield Path(path)


@pytest.fixture
def options(address, bpffs):
    """Where to receive."""
    return ["--bind", str(address), "--bpffs", str(bpffs)]


def status_of(pid):
    """What the kernel says of a process: ids, groups and capabilities."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def assert_powerless(pid):
    """The process is nobody for good, and may do nothing more than nobody."""
    status = status_of(pid)
    assert status["Uid"] == [str(NOBODY.pw_uid)] * 4
    assert status["Gid"] == [str(NOBODY.pw_gid)] * 4
    groups = set(os.getgrouplist("nobody", NOBODY.pw_gid))
    assert {int(group) for group in status["Groups"]} <= groups
    assert [int(status[name][0], 16) for name in ("CapPrm", "CapEff", "CapAmb")] == [0, 0, 0]


async def test_workers(options, folder, address):
    """Workers run as nobody from before the application is imported, after a restart too; the supervisor stays root."""
    app = supervision.write_app(folder / "app.py", start="import os; assert os.getuid() != 0")
    report = folder / "report.json"
    async with supervision.Supervisor(
        app, *options, "--workers", "1", "--user", "nobody", "--report", str(report)
    ) as run:
        await run.event("supervising")
        with Client(address) as client:
            first = await client.ask()
            assert_powerless(first.pid)
            os.kill(first.pid, signal.SIGKILL)
            await run.event("ready", nth=2)
            second = await client.ask()
        assert first.uid == second.uid == NOBODY.pw_uid
        assert second.pid != first.pid
        assert_powerless(second.pid)
        assert status_of(run.pid)["Uid"] == ["0"] * 4
        assert await run.stop() == 0
    assert run.lines == []
    assert json.loads(report.read_text())["handled"] == 1


async def test_a_single_collector(options, folder, address, bpffs):
    """It drops its privileges once it has joined, receives, takes its place back, leaves its group and reports."""
    app = supervision.write_app(folder / "app.py")
    report = folder / "report.json"
    async with supervision.Supervisor(app, *options, "--user", "nobody:nogroup", "--report", str(report)) as run:
        assert (await run.event("ready"))["balancer"] == "ebpf"
        assert_powerless(run.pid)
        with Client(address) as client, closing(Group.open(address, bpffs=bpffs)) as group:
            assert (await client.ask()).uid == NOBODY.pw_uid
            (before,) = group.alive()
            group.leave(before, group.cookie_of(before))
            await run.event("place_restored")
            assert (await client.ask()).pid == run.pid
            assert await run.stop() == 0
            assert group.alive() == set()
    assert json.loads(report.read_text())["handled"] == 2
    assert run.lines == []


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["single", "supervisor"])
async def test_an_unknown_user(options, workers):
    """A user that is not there is wrong usage: told in one line, and nothing is started."""
    async with supervision.Supervisor("discard", *options, "--user", "nobody-of-that-name", *workers) as run:
        assert await run.ended() == 2
    assert run.lines == [
        "aiolb: error: there is no user 'nobody-of-that-name'",
        "  hint: getent passwd lists them; useradd --system NAME",
    ]
    assert run.events == []


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["single", "supervisor"])
async def test_without_the_right_to_switch(options, powerless, workers):
    """Who may not become another user is told so before anything is received; exit status 3."""
    arguments = ["discard", *options, "--balancer", "none", "--user", "nobody", *workers]
    async with supervision.Supervisor(*arguments, prefix=tuple(powerless)) as run:
        assert await run.ended() == 3
    assert run.lines == [
        "aiolb: error: this process (uid 0) may not run anything as nobody",
        "  hint: start as root, with CAP_SETUID and CAP_SETGID, or leave --user out",
    ]
    assert run.named("ready") == []
