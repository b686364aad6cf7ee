"""``aiolb flood --workers``: several sending processes that look like one."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import flooding
import pytest
from deadline import DEADLINE

from aiolb.errors import ConfigurationError, KernelError, StartError
from aiolb.stamp import stamp_from_wire

invoke, receive = flooding.invoke, flooding.receive
receiver, target = flooding.receiver, flooding.target
COMMAND = [sys.executable, "-m", "aiolb", "flood"]

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_count_is_shared(receiver, target, loop):
    """All workers together send the count, in one run, each source as often as from one process."""
    arguments = ("--count", "100", "--rate", "max", "--sources", "7", "--workers", "3", "--stamp", "--event-loop", loop)
    summary = json.loads(invoke(target, *arguments, "--json").stdout)
    stamps = [stamp_from_wire(datagram) for datagram in receive(receiver, 100)]
    assert {f"{stamp.run:016x}" for stamp in stamps} == {summary["run"]}
    assert len({(stamp.source, stamp.sequence) for stamp in stamps}) == 100
    assert (summary["workers"], summary["sources"]) == (3, 7)
    assert (summary["sent_datagrams"], summary["sent_bytes"], summary["failed_datagrams"]) == (100, 6400, 0)
    assert summary["sent_datagrams_per_source"] == {
        f"127.0.0.{source + 2}": len(range(source, 100, 7)) for source in range(7)
    }


def test_a_rate_and_a_duration_are_shared(receiver, target):
    """The rate is that of all workers together, and so is what a duration gives; one source is enough for many."""
    summary = json.loads(invoke(target, *["--rate", "1000", "--duration", "0.2", "--workers", "2", "--json"]).stdout)
    receive(receiver, 200)
    assert summary["sent_datagrams"] == 200
    assert summary["rate_asked_datagrams_per_second"] == 1000
    assert summary["sent_datagrams_per_source"] == {"127.0.0.1": 200}


def test_a_payload_reaches_the_workers(receiver, target, tmp_path):
    """The payload is the same, byte for byte."""
    file = tmp_path / "payload"
    file.write_bytes(b"\x00\xff\n")
    invoke(target, "--count", "4", "--workers", "2", "--payload", f"@{file}")
    assert receive(receiver, 4) == [b"\x00\xff\n"] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--gso", "65"], ConfigurationError, "trains of 65"),
        (["--sources", "203.0.113.0/30"], KernelError, "cannot send from 203"),
        (["--sources", "0"], ConfigurationError, "0 sources"),
    ],
)
def test_errors_of_workers_come_through(target, arguments, error, says):
    """What stops a worker at its start is told as if there were none, with the hint."""
    with pytest.raises(error, match=says) as caught:
        invoke(target, "--workers", "2", *arguments)
    assert caught.value.hint


def test_a_name_without_an_address():
    """A worker that finds no address for the target says so."""
    with pytest.raises(StartError, match="no address for"):
        invoke("no-such-host.invalid:9", "--workers", "2")


@contextmanager
def running(target, *arguments, **options):
    """The command with two workers in a process of its own, and the processes of the workers."""
    with subprocess.Popen(
        [*COMMAND, target, "--workers", "2", *arguments], stdout=subprocess.PIPE, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers_of(process):
    """The process ids of the workers."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def gone(pids):
    """Whether none of these processes runs any more; a zombie does not."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_signal_ends_all_with_one_summary(receiver, target, number, loop):
    """Ctrl-C and SIGTERM stop all workers; the summary counts what arrived, and no worker is left."""
    with running(target, "--json", "--event-loop", loop, stderr=subprocess.PIPE) as process:
        receiver.recv(1 << 16)
        pids = workers_of(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")
    receive(receiver, json.loads(out)["sent_datagrams"] - 1)
    assert len(pids) == 2
    assert gone(pids)


def test_a_worker_that_dies_is_told(receiver, target):
    """When a worker is killed, the others are stopped, and the command fails and names it."""
    with running(target, stderr=subprocess.PIPE) as process:
        receiver.recv(1 << 16)
        pids = workers_of(process)
        os.kill(pids[1], signal.SIGKILL)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (1, b"")
    assert f"(pid {pids[1]}) was killed by SIGKILL; the others were stopped".encode() in err
    assert gone(pids)


def test_workers_do_not_outlive_the_command(receiver, target, wait_until):
    """Even a command that is killed leaves no worker behind."""
    with running(target) as process:
        receiver.recv(1 << 16)
        pids = workers_of(process)
        process.kill()
        process.communicate(timeout=DEADLINE)
        wait_until(lambda: gone(pids), "the workers end")
    assert len(pids) == 2


def test_progress_of_all(receiver, target):
    """On a terminal the line shows what all workers sent, as they go."""
    ours, theirs = pty.openpty()
    try:
        with running(target, "--rate", "200", stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
            shown, deadline = b"", time.monotonic() + DEADLINE
            while b" of 200/s" not in shown or b"sent 0 " in shown.rpartition(b"\r")[2]:
                assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
                shown += os.read(ours, 1 << 16)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=DEADLINE)
    finally:
        os.close(theirs)
        os.close(ours)
    assert process.returncode == 0
    assert out.startswith(b"sent ")
    assert receiver.recv(1 << 16)
