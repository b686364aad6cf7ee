"""`aiolb serve --log-file` as operators meet it: logrotate moves the file, and no event is lost or torn."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from deadline import DEADLINE
from serving import AIOLB

from aiolb.cli.main import main

ALONE = ["--bind", "127.0.0.1:0", "--balancer", "none"]

pytestmark = pytest.mark.usefixtures("logs_as_before", "nothing_left")


@pytest.fixture
def log(tmp_path):
    """Where the log file is."""
    return tmp_path / "aiolb.log"


def events_in(path):
    """The events in a log file; one that is torn fails the test, but for the last, which may be half written yet."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def named(path, name):
    """The events of that name in a log file."""
    return [event for event in events_in(path) if event["event"] == name]


@contextmanager
def running(*command, cwd):
    """A process that is stopped gracefully at the end, having written nothing to its outputs."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
            process.terminate()
            said = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        assert (process.returncode, said) == (0, ("", ""))


def test_logrotate(log, wait_until):
    """A single collector goes on in a new file after SIGUSR1; each event is in one of the two."""
    command = [*AIOLB, "serve", "discard", *ALONE, "--log-file", log.name, "--log-format", "json"]
    with running(*command, cwd=log.parent) as process:
        wait_until(lambda: named(log, "ready"), "it is ready")
        moved = log.rename(f"{log}.1")
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: named(log, "log_reopened"), "the log is reopened")
    assert [event["event"] for event in events_in(moved)] == ["ready", "signal"]
    assert [event["event"] for event in events_in(log)] == ["log_reopened", "signal", "stopping", "stopped"]
    assert {event["index"] for event in events_in(log)} == {0}
    assert events_in(moved)[-1]["name"] == "SIGUSR1"


def test_logrotate_in_vain(log, wait_until):
    """When the folder is gone, the old file goes on and says so."""
    folder = log.parent / "logs"
    folder.mkdir()
    command = [*AIOLB, "serve", "discard", *ALONE, "--log-file", str(folder / log.name), "--log-format", "json"]
    with running(*command, cwd=log.parent) as process:
        wait_until(lambda: named(folder / log.name, "ready"), "it is ready")
        moved = folder.rename(log.parent / "moved") / log.name
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: named(moved, "log_reopen_failed"), "that is logged")
    assert [event["event"] for event in events_in(moved)] == [
        *["ready", "signal", "log_reopen_failed", "signal", "stopping", "stopped"]
    ]
    assert not folder.exists()


SCRIPT = """
import os, signal, sys
from aiolb import Collector

class Mine(Collector):
    async def handle(self, datagram, addr):
        pass

if sys.argv[2] == "handled":
    signal.signal(signal.SIGUSR1, lambda *_: open("handled", "w").close())
Mine.run(bind="127.0.0.1:0", balancer="none", log_format="json", log_file=sys.argv[1])
"""


def test_a_script_of_ones_own(log, wait_until):
    """A class that is run from a script has a log file as well."""
    with running(sys.executable, "-c", SCRIPT, str(log), "free", cwd=log.parent) as process:
        wait_until(lambda: named(log, "ready"), "it is ready")
        log.unlink()
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: named(log, "log_reopened"), "the log is reopened")
    assert [event["event"] for event in events_in(log)] == ["log_reopened", "signal", "stopping", "stopped"]


def test_a_signal_that_the_user_handles(log, wait_until):
    """A handler of the user's for SIGUSR1 is left alone."""
    with running(sys.executable, "-c", SCRIPT, str(log), "handled", cwd=log.parent) as process:
        wait_until(lambda: named(log, "ready"), "it is ready")
        process.send_signal(signal.SIGUSR1)
        wait_until((log.parent / "handled").exists, "the handler has run")
    assert [event["event"] for event in events_in(log)] == ["ready", "signal", "stopping", "stopped"]


TALKATIVE = """
import structlog
from aiolb import Collector

class Talkative(Collector):
    async def handle(self, datagram, addr):
        structlog.get_logger().info("datagram", text=datagram.decode() * 1000)
        self.reply(datagram, addr)
"""


def ask(address, texts):
    """Send each text from a port of its own, and wait for its return."""
    host, port = address.rsplit(":", 1)
    for text in texts:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE)
            sock.connect((host, int(port)))
            sock.send(text.encode())
            assert sock.recv(100) == text.encode()


@pytest.mark.parametrize("to", ["the supervisor", "everybody"])
def test_logrotate_with_workers(log, wait_until, to):
    """A supervisor and its workers share a file, and go on in a new one together; no event is lost or torn.

    So too where a service manager sends the signal to every process of the service.
    """
    (log.parent / "app.py").write_text(TALKATIVE)
    command = [*AIOLB, "serve", "app.py:Talkative", *ALONE, "--workers", "3"]
    with running(*command, "--log-file", log.name, "--log-format", "json", cwd=log.parent) as process:
        wait_until(lambda: named(log, "supervising"), "it is supervising")
        address = named(log, "supervising")[0]["bind"]
        workers = {event["pid"] for event in named(log, "ready")}
        ask(address, [f"a{number:03}" for number in range(100)])
        moved = log.rename(f"{log}.1")
        for pid in [process.pid, *(workers if to == "everybody" else [])]:
            os.kill(pid, signal.SIGUSR1)
        wait_until(lambda: {event.get("index") for event in named(log, "log_reopened")} == {None, 0, 1, 2}, "reopened")
        ask(address, [f"b{number:03}" for number in range(100)])
    assert len(workers) == 3
    for path, letter in ((moved, "a"), (log, "b")):
        texts = sorted(event["text"] for event in named(path, "datagram"))
        assert texts == [f"{letter}{number:03}" * 1000 for number in range(100)]
    assert len(named(log, "stopping")) == 4
    assert len(named(log, "stopped")) == 1
    assert not named(moved, "worker_died")
    assert not named(log, "worker_died")


def test_a_new_worker_logs_to_the_new_file(log, wait_until):
    """Workers that are started after the file was moved log to the one of its name."""
    command = [*AIOLB, "serve", "discard", *ALONE, "--workers", "1", "--log-file", str(log), "--log-format", "json"]
    with running(*command, cwd=log.parent) as process:
        wait_until(lambda: named(log, "supervising"), "it is supervising")
        log.rename(f"{log}.1")
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(named(log, "log_reopened")) == 2, "the log is reopened")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: named(log, "restarted"), "the worker was replaced")
        (ready,) = named(log, "ready")
        assert ready["pid"] == named(log, "replaced")[0]["new"]


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_a_file_that_cannot_be_opened(tmp_path, options):
    """A log file that cannot be opened is told in one line before anything is started; exit status 2."""
    path = tmp_path / "missing" / "aiolb.log"
    done = CliRunner().invoke(main, ["serve", "discard", *ALONE, "--log-file", str(path), *options], prog_name="aiolb")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"aiolb: error: the log file {path} cannot be opened: No such file or directory",
        "  hint: --log-file FILE in a folder that exists, and in which this user may write",
    ]


def test_errors_are_still_told(log):
    """What fails the start is told on standard error, whatever the log goes to."""
    command = [*AIOLB, "serve", "nowhere.py:Mine", *ALONE, "--log-file", str(log)]
    for options in ([], ["--workers", "1"]):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.returncode != 0
        assert "aiolb: error: there is no file nowhere.py" in done.stderr.splitlines()
    assert Path(log).exists()
