"""`aiolb serve --reload` as developers meet it: they save a file, and the next datagram meets the new code."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from deadline import DEADLINE

from aiolb.cli.main import main

COMMAND = [sys.executable, "-m", "aiolb", "serve", "--bind", "127.0.0.1:0", "--balancer", "none"]
APP = """
from aiolb import Collector
from answers import ANSWER

class Mine(Collector):
    async def handle(self, datagram, addr):
        self.reply(ANSWER, addr)
"""

pytestmark = pytest.mark.usefixtures("logs_as_before", "nothing_left")


@pytest.fixture
def project(tmp_path):
    """A folder with an application of two files."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "answers.py").write_text("ANSWER = b'1'\n")
    return tmp_path


class Served:
    """A running `aiolb serve` with its log and a client."""

    def __init__(self, process, log, wait_until):
        self.process = process
        self._log = log
        self._wait_until = wait_until

    def events(self, *names):
        """Its log events of these names so far."""
        text = self._log.read_text() if self._log.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [event for event in map(json.loads, whole) if event["event"] in names]

    def waited(self, name, count=1):
        """Wait until it has logged that many events of the name."""
        self._wait_until(lambda: len(self.events(name)) >= count, f"{count} {name}")
        return self.events(name)

    def ask(self):
        """What it answers now."""
        host, port = self.events("supervising")[0]["bind"].rsplit(":", 1)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE)
            sock.connect((host, int(port)))
            sock.send(b"?")
            return sock.recv(100)


@pytest.fixture
def served(project, wait_until):
    """Run `aiolb serve` with these arguments for the time of a block."""

    @contextmanager
    def serve(*arguments):
        log = project / "log"
        command = [*COMMAND, *arguments, "--reload", "--log-file", str(log), "--log-format", "json"]
        with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) as process:
            try:
                it = Served(process, log, wait_until)
                it.waited("supervising")
                yield it
                process.terminate()
                it.said = process.communicate(timeout=DEADLINE)[1]
            finally:
                process.kill()
            assert process.returncode == 0

    return serve


def save(path, text):
    """Put another file in the place of the path in one step, as many editors do: one event."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)
    return str(path)


@pytest.mark.parametrize("app", ["app.py:Mine", "app:Mine"])
def test_reload(served, project, app):
    """Without --workers there is one, and every change of a file is there when it says so, however fast it came."""
    with served(app) as it:
        assert it.ask() == b"1"
        for number in range(2, 5):
            # Of the same size, and maybe of the same second: bytecode of the one before would count as current.
            file = save(project / "answers.py", f"ANSWER = b'{number}'\n")
            it.waited("restarted", number - 1)
            assert it.ask() == str(number).encode()
        assert [event["workers"] for event in it.events("supervising", "restarted")] == [1] * 4
        assert [(event["changed"], event["files"]) for event in it.events("reloading")] == [(1, [file])] * 3
    assert it.said == ""
    assert not list(project.rglob("*.pyc"))


def test_several_workers(served, project):
    """All workers are replaced."""
    with served("app.py:Mine", "--workers", "2") as it:
        save(project / "answers.py", "ANSWER = b'2'\n")
        it.waited("restarted")
        assert {it.ask() for _ in range(20)} == {b"2"}
        assert sorted(event["index"] for event in it.events("ready")) == [0, 0, 1, 1]
        assert it.events("restarted")[0]["workers"] == 2


def test_a_version_that_fails(served, project):
    """A version that cannot be imported leaves the one before at work, shows why, and the next change tries again."""
    with served("app.py:Mine") as it:
        save(project / "answers.py", "ANSWER = \n")
        it.waited("replacement_failed")
        assert it.ask() == b"1"
        (project / "answers.py").unlink()
        it.waited("replacement_failed", 2)
        assert it.ask() == b"1"
        save(project / "answers.py", "ANSWER = b'3'\n")
        it.waited("restarted")
        assert it.ask() == b"3"
        assert [event["event"] for event in it.events("reloading", "replacement_failed", "restarted")] == [
            *["reloading", "replacement_failed"] * 2,
            *["reloading", "restarted"],
        ]
    assert "SyntaxError: invalid syntax" in it.said
    assert "ModuleNotFoundError: No module named 'answers'" in it.said


def test_other_files(served, project):
    """Only Python files count: the first change that is seen is that of the one that was changed last."""
    with served("app.py:Mine") as it:
        (project / "data.json").write_text("{}")
        (project / ".hidden.py").write_text("")
        file = save(project / "answers.py", "ANSWER = b'2'\n")
        it.waited("restarted")
        assert [event["files"] for event in it.events("reloading")] == [[file]]


MISTAKES = [
    (
        ["print"],
        "'print' has no files that could change",
        "--reload is for FILE.py:Class and package.module:Class",
    ),
    (["nowhere.py:Mine"], "there is no file nowhere.py", None),
    (["app.py:Mine", "--index", "1"], "--reload runs all members of the group", "leave --index and --count out"),
    (["app.py:Mine", "--workers", "0"], "a group has 1 to 1024 members, not 0", "--workers auto"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
@pytest.mark.usefixtures("project")
def test_mistakes(arguments, message, hint):
    """What cannot be reloaded is told before anything is started; exit status 2."""
    refused(arguments, message, hint)


def refused(arguments, message, hint):
    """Run a command that is expected to be refused in this process."""
    done = CliRunner().invoke(main, [*COMMAND[3:], *arguments, "--reload"], prog_name="aiolb")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"aiolb: error: {message}", *([f"  hint: {hint}"] if hint else [])]


def test_without_watchfiles(project, monkeypatch):
    """Without the package that it needs, the command that installs it is told."""
    monkeypatch.chdir(project)
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    refused(["app.py:Mine"], "--reload needs the package watchfiles", "pip install watchfiles")
