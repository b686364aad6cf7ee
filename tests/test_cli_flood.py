"""``aiolb flood``: its options, its summary, its progress line, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import flooding
import pytest
from deadline import DEADLINE

from aiolb.cli.flood_progress import line as progress_line
from aiolb.cli.flood_progress import recent_rate
from aiolb.errors import ConfigurationError, KernelError
from aiolb.send.statistics import PublisherStatistics
from aiolb.stamp import stamp_from_wire

invoke, receive = flooding.invoke, flooding.receive
receiver, target = flooding.receiver, flooding.target


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_summary_for_people(receiver, target, loop):
    """The summary names what was sent, where to, from how many sources, and the rate."""
    result = invoke(target, "--count", "20", "--rate", "1000", "--sources", "4", "--event-loop", loop)
    receive(receiver, 20)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == f"sent 20 datagrams (1,280 bytes) to {target}"
    assert second.startswith("from 4 sources in 0.")
    assert second.endswith("/s of 1,000/s asked")
    assert result.stderr == ""


def test_a_summary_for_programs(receiver, target):
    """With --json one object is printed, its keys name the units, and it says which run the stamps are of."""
    result = invoke(target, "--count", "9", "--rate", "max", "--sources", "2", "--stamp", "--size", "40", "--json")
    runs = {stamp_from_wire(datagram).run for datagram in receive(receiver, 9)}
    summary = json.loads(result.stdout)
    assert {int(summary["run"], 16)} == runs
    assert summary["elapsed_seconds"] > 0
    assert summary["rate_reached_datagrams_per_second"] > 0
    del summary["run"], summary["elapsed_seconds"], summary["rate_reached_datagrams_per_second"]
    assert summary == {
        "target": target,
        "sent_datagrams": 9,
        "sent_bytes": 360,
        "sent_trains": 2,
        "failed_datagrams": 0,
        "rate_asked_datagrams_per_second": None,
        "datagram_bytes": 40,
        "sources": 2,
        "workers": 1,
        "sent_datagrams_per_source": {"127.0.0.2": 5, "127.0.0.3": 4},
        "errors": {},
    }


def test_without_a_stamp_there_is_no_run(receiver, target):
    """Datagrams that are not stamped belong to no run."""
    assert json.loads(invoke(target, "--count", "1", "--json").stdout)["run"] is None
    receive(receiver, 1)


def test_trains(receiver, target):
    """Trains of a length are sent when asked for, and told in the summary."""
    result = invoke(target, "--count", "20", "--rate", "max", "--gso", "8")
    receive(receiver, 20)
    assert result.stdout.startswith(f"sent 20 datagrams (1,280 bytes, 3 trains) to {target}\n")


def test_trains_of_no_number(target):
    """Wrong usage is click's to tell."""
    result = invoke(target, "--gso", "many")
    assert result.exit_code == 2
    assert "'many' is no number of datagrams, and neither auto nor off" in result.stderr


def test_a_duration_of_nothing(receiver, target):
    """A duration of 0 sends nothing, and says so."""
    assert invoke(target, "--duration", "0").stdout.startswith("sent 0 datagrams (0 bytes)")
    receive(receiver, 0)


def test_one_datagram(receiver, target):
    """One is told of as one."""
    assert invoke(target, "--count", "1").stdout.startswith("sent 1 datagram (64 bytes)")
    receive(receiver, 1)


def test_nobody_listens(receiver, target):
    """Refusals are told in the summary, and are no failure."""
    receiver.connect(("127.0.0.1", 9))  # keeps the port, and takes nothing from us
    result = invoke(target, "--count", "20", "--rate", "1000")
    assert result.exit_code == 0
    assert result.stdout.startswith("sent 20 datagrams")
    assert "errors: refused " in result.stdout
    assert "nobody listens there, or did not all the time, or a guard drops" in result.stdout


def test_payloads(receiver, target, tmp_path):
    """A payload is text, or what a file holds, byte for byte."""
    file = tmp_path / "payload"
    file.write_bytes(b"\x00\xff\n")
    invoke(target, "--count", "1", "--payload", "grüß")
    invoke(target, "--count", "1", "--payload", f"@{file}")
    invoke(target, "--count", "1", "--payload", "ab", "--size", "5")
    assert receive(receiver, 3) == ["grüß".encode(), b"\x00\xff\n", b"ababa"]


def test_a_payload_file_that_is_not_there(target, tmp_path):
    """A payload that cannot be read is an error that names the file."""
    with pytest.raises(ConfigurationError, match=r"no-such-file.*: No such file") as caught:
        invoke(target, "--payload", f"@{tmp_path}/no-such-file")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rate", "0"], ConfigurationError),
        (["--rate", "nan"], ConfigurationError),
        (["--count", "-1"], ConfigurationError),
        (["--gso", "65"], ConfigurationError),
        (["--sources", "many"], ConfigurationError),
        (["--size", "99999"], ConfigurationError),
        (["--sources", "203.0.113.0/30"], KernelError),
    ],
)
def test_errors_come_through(target, arguments, error):
    """The command leaves our errors to the group, which tells them and picks the exit code."""
    with pytest.raises(error):
        invoke(target, *arguments)


def test_a_rate_that_is_no_number(target):
    """Wrong usage is click's to tell."""
    result = invoke(target, "--rate", "fast")
    assert result.exit_code == 2
    assert "'fast' is no rate; e.g. 100 or max" in result.stderr


def test_the_default_target():
    """Without a target it is the default port of this host; without a port the default port."""
    assert "to 127.0.0.1:10001\n" in invoke("--count", "0").stdout
    assert "to [::1]:10001\n" in invoke("[::1]", "--count", "0").stdout
    assert "to localhost:10001\n" in invoke("localhost", "--count", "0").stdout


COMMAND = [sys.executable, "-c", "from aiolb.cli.flood import flood; flood(prog_name='flood')"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_signal_ends_it_with_a_summary(receiver, target, number, loop):
    """Ctrl-C and SIGTERM end it, the summary counts what arrived, and the exit code is 0."""
    with subprocess.Popen(
        [*COMMAND, target, "--json", "--event-loop", loop], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        receiver.recv(1 << 16)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")
    receive(receiver, json.loads(out)["sent_datagrams"] - 1)


def read_until(descriptor, wanted):
    """What a terminal shows, up to the wanted text."""
    shown, deadline = b"", time.monotonic() + DEADLINE
    while wanted not in shown:
        assert select.select([descriptor], [], [], deadline - time.monotonic())[0], shown
        shown += os.read(descriptor, 1 << 16)
    return shown


def test_progress_on_a_terminal(receiver, target):
    """On a terminal a line on standard error shows the rate; standard output has the summary alone."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*COMMAND, target], stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
        ) as process:
            shown = read_until(ours, b" of 100/s")
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=DEADLINE)
    finally:
        os.close(theirs)
        os.close(ours)
    assert b"0:00:0" in shown
    assert process.returncode == 0
    sent = int(out.split()[1].replace(b",", b""))
    assert out.startswith(b"sent %d datagrams" % sent)
    assert b"\x1b" not in out
    assert receiver.recv(1 << 16)


def statistics(**changed):
    """Statistics of a run of 100 seconds at 100/s."""
    settings = {
        "sent": 10_000,
        "bytes": 640_000,
        "seconds": 100.0,
        "rate_asked": 100.0,
        "rate_reached": 100.0,
        "sources": 1,
        "sent_per_source": {"127.0.0.1": 10_000},
        "failed": 0,
        "trains": 0,
        "errors": {},
    }
    return PublisherStatistics(**(settings | changed))


@pytest.mark.parametrize(
    ("changed", "rate", "line"),
    [
        ({}, 99.96, "0:01:40  sent 10,000  now 100.0 of 100/s"),
        ({"rate_asked": None}, 212_345.6, "0:01:40  sent 10,000  now 212,346/s"),
        ({"rate_asked": 0.5, "seconds": 3723.9}, 0.5, "1:02:03  sent 10,000  now 0.50 of 0.5/s"),
        (
            {"failed": 2, "errors": {"refused": 1234, "forbidden": 2}},
            100.0,
            "0:01:40  sent 10,000  now 100.0 of 100/s  failed 2  refused 1,234  forbidden 2",
        ),
    ],
)
def test_the_progress_line(changed, rate, line):
    """Time, datagrams, the present rate beside the one asked for, and errors; within 80 columns."""
    assert progress_line(statistics(**changed), rate) == line
    assert len(line) <= 80


def test_the_present_rate():
    """The present rate is that of a window, and no division by zero at the start."""
    assert recent_rate(10.0, 1000, 15.0, 1600) == 120.0
    assert recent_rate(0.0, 0, 0.0, 0) == 0.0


def test_help_stays_light():
    """Importing the command loads neither an event loop nor rich nor the publisher."""
    script = "import sys, aiolb.cli.flood; print(*{'asyncio', 'uvloop', 'rich', 'aiolb.publisher'} & set(sys.modules))"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip() == ""
