"""`aiolb top` in a terminal: what it draws, which keys it takes, and that the terminal is as before after every end."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

import pytest
from deadline import DEADLINE

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A pseudo-terminal with a command on it."""

    def __init__(self, *command, columns=80, lines=24, **environment):
        self.leader, self.follower = pty.openpty()
        termios.tcsetwinsize(self.follower, (lines, columns))
        self.before = termios.tcgetattr(self.follower)
        variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            env=variables | {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | environment,
            start_new_session=True,
        )
        self.said = ""

    def wait_for(self, pattern):
        """Read until what was said since the last match has the pattern."""
        deadline = time.monotonic() + DEADLINE
        while not (found := re.search(pattern, self.said, re.DOTALL)):
            assert select.select([self.leader], [], [], max(deadline - time.monotonic(), 0))[0], self.said
            self.said += os.read(self.leader, 65536).decode()
        self.said = self.said[found.end() :]
        return found

    def press(self, keys):
        """Press keys."""
        os.write(self.leader, keys.encode())

    def end(self):
        """Wait for its end, and read the rest; the exit status. The terminal must be as before."""
        status = self.process.wait(DEADLINE)
        while select.select([self.leader], [], [], 0)[0]:
            self.said += os.read(self.leader, 65536).decode()
        assert termios.tcgetattr(self.follower) == self.before
        return status

    def close(self):
        """Kill it, and close the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


@pytest.fixture
def top(bpffs):
    """Run `aiolb top` for a group in a terminal of its own."""
    made = []

    def run(group, *options, **terminal):
        command = [sys.executable, "-W", "error", "-m", "aiolb", "top", str(group.address), "--bpffs", str(bpffs)]
        made.append(Terminal(*command, *options, **terminal))
        return made[-1]

    yield run
    for terminal in made:
        terminal.close()


def test_keys(cluster, top, sources_v4):
    """It shows the members' rates, sorts and changes the interval at a key, and ends with q."""
    group = cluster(3)
    terminal = top(group, "--interval", "0.5")
    terminal.wait_for(re.escape(ENTER))
    terminal.wait_for(r"3 of 3 members alive.*every 0\.5 s.*by rate.*MEMBER.*\[q\]uit")
    group.route(sources_v4(100))
    terminal.wait_for("█")
    terminal.press("m")
    terminal.wait_for("by member")
    terminal.press("+")
    terminal.wait_for("every 1 s")
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.said.endswith(LEAVE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_with_a_signal(cluster, top, number):
    """A signal ends it as q does."""
    terminal = top(cluster(3))
    terminal.wait_for(r"\[q\]uit")
    terminal.process.send_signal(number)
    assert terminal.end() == 0
    assert terminal.said.endswith(LEAVE)


def test_a_group_that_ends(cluster, top):
    """When the group is deleted, it says so on the terminal as it was before."""
    group = cluster(1)
    terminal = top(group, "--interval", "0.5")
    terminal.wait_for(r"\[q\]uit")
    group.group.delete()
    assert terminal.end() == 3
    terminal.wait_for(re.escape(LEAVE) + f"aiolb: error: the group at {group.address} is gone")


def test_a_dead_member(cluster, top):
    """A member that dies while it runs is shown as dead; only the lines that changed are sent."""
    group = cluster(3)
    terminal = top(group, "--interval", "0.5")
    terminal.wait_for(r"\[q\]uit")
    group.kill(1)
    terminal.wait_for("2 of 3 members alive")
    terminal.wait_for("hint: member 1 is dead, others get the sources.* 1  dead .*uit")
    assert "MEMBER" not in terminal.wait_for(r"(.*?every){2}").group()
    terminal.press("q")
    assert terminal.end() == 0


def test_suspended(cluster, top):
    """Ctrl-Z leaves the terminal as it was until the command goes on."""
    terminal = top(cluster(3))
    terminal.wait_for(r"\[q\]uit")
    # No shell is here to see a stopped job: an orphaned session ignores SIGTSTP, and so it goes on at once.
    terminal.press("\x1a")
    terminal.wait_for(re.escape(LEAVE) + ".*" + re.escape(ENTER) + r".*\[q\]uit")
    terminal.press("q")
    assert terminal.end() == 0


def test_the_size_changes(cluster, top):
    """Another size of the terminal gets a frame of that size."""
    terminal = top(cluster(128), "--interval", "0.5")
    terminal.wait_for("1 to 1[5-7] of 128 members")
    termios.tcsetwinsize(terminal.leader, (50, 100))
    terminal.wait_for(r"\x1b\[2J.*1 to 4\d of 128 members")
    terminal.press("q")
    assert terminal.end() == 0


@pytest.mark.parametrize(("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour(cluster, top, environment, colour):
    """Colours are used where the terminal and the user want them."""
    terminal = top(cluster(3), **environment)
    frame = terminal.wait_for(r"udp 127.*\[q\]uit").group()
    assert bool(re.search(r"\x1b\[[0-9;]*32m", frame)) == colour
    terminal.press("q")
    assert terminal.end() == 0


def test_a_dumb_terminal(cluster, top):
    """A terminal that can only print lines gets one frame after the other, and no control sequence."""
    terminal = top(cluster(3), "--interval", "0.5", TERM="dumb")
    frames = terminal.wait_for(r"(members alive.*no member tells its sources.*){2}").group()
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "\x1b" not in frames + terminal.said


@contextmanager
def sending(group, sources):
    """Datagrams that come in between two looks."""
    with subprocess.Popen(
        [sys.executable, "-m", "aiolb", "flood", str(group.address), "--rate", "200", "--sources", str(sources)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as flood:
        try:
            assert group.wait()
            yield
        finally:
            flood.kill()


def test_no_terminal(cluster, bpffs):
    """A pipe gets one frame with all members and all columns, and nothing but text."""
    group = cluster(3)
    command = [sys.executable, "-m", "aiolb", "top", "--bpffs", str(bpffs), "--interval", "0.5", "--sort", "member"]
    with sending(group, 60):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"TERM": "xterm"})
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"udp {group.address}  3 of 3 members alive")
    assert [line.split()[:2] for line in lines[4:7]] == [["0", "alive"], ["1", "alive"], ["2", "alive"]]
    assert all(float(line.split()[2]) > 0 for line in lines[4:7])
    assert "PID" in lines[3]
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
