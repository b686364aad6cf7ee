"""``aiolb flood --replay`` and ``--echo``: what they tell, and which options go together; the commands of the docs."""

from __future__ import annotations

import json
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading

import captures
import flooding
import pytest
from captures import ethernet, ipv4, pcap, udp
from click.testing import CliRunner
from deadline import DEADLINE
from documents import ROOT, blocks, commands

from aiolb.cli.flood import flood
from aiolb.cli.flood_summary import _time
from aiolb.cli.main import main

DOCUMENT = "docs/how-to/replay.md"
COMMAND = [sys.executable, "-m", "aiolb", "flood"]
receive = flooding.receive
receiver, target = flooding.receiver, flooding.target


def frames(number=6, ports=(2055, 514)):
    """Datagrams of three sources a millisecond apart, and one packet that is none."""
    found = [
        (n / 1000, ethernet(ipv4(f"10.0.0.{n % 3 + 1}", udp(b"%d" % n, port=ports[n % len(ports)]))))
        for n in range(number)
    ]
    return [*found, (number / 1000, ethernet(ipv4(protocol=captures.TCP)))]


@pytest.fixture
def capture(tmp_path):
    """A capture file."""
    path = tmp_path / "exporters.pcap"
    path.write_bytes(pcap(frames()))
    return path


@pytest.fixture
def echo(receiver):
    """The receiver sends everything back, until the test ends."""
    ours, theirs = socket.socketpair()

    def answer():
        while ours not in (ready := select.select([ours, receiver], [], [])[0]):
            assert ready
            receiver.sendto(*receiver.recvfrom(1 << 16))

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    theirs.send(b"end")
    thread.join()
    ours.close()
    theirs.close()


def invoke(*arguments):
    """Run the command in this process, with its errors told."""
    return CliRunner().invoke(main, ["flood", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_replay_for_people(receiver, target, capture, loop):
    """The summary names what was sent, what the capture had, what was skipped and why, and how late it was."""
    result = invoke(target, "--replay", capture, "--event-loop", loop)
    assert receive(receiver, 6) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert (result.exit_code, result.stderr) == (0, "")
    sent, sources, read, ports, skipped, late = result.stdout.splitlines()
    assert sent == f"sent 6 datagrams (6 bytes) to {target}"
    assert sources.startswith("from 3 sources in 0.")
    assert read == "read 7 packets: datagrams from 3 sources"
    assert ports == "to ports 2055 (3), 514 (3)"
    assert skipped == "skipped 1 packet: 1 not UDP"
    assert late.startswith("sent late: p50 ")


def test_a_replay_for_programs(receiver, target, capture):
    """With --json one object is printed, and its keys name the units."""
    arguments = ("--replay", capture, "--rate", "1000", "--loop", "2", "--port", "514", "--sources", "2", "--json")
    summary = json.loads(invoke(target, *arguments).stdout)
    receive(receiver, 6)
    assert summary.pop("elapsed_seconds") > 0
    assert summary.pop("rate_reached_datagrams_per_second") > 0
    assert list(summary.pop("late_microseconds")) == ["p50", "p99", "max"]
    assert summary == {
        "target": target,
        "sent_datagrams": 6,
        "sent_bytes": 6,
        "failed_datagrams": 0,
        "rate_asked_datagrams_per_second": 1000.0,
        "sources": 2,
        "sent_datagrams_per_source": {"127.0.0.2": 4, "127.0.0.3": 2},
        "errors": {},
        "file": str(capture),
        "speed": None,
        "rounds": 2,
        "captured_packets": 14,
        "captured_sources": 3,
        "captured_datagrams_per_port": {"514": 6},
        "skipped_packets": {"to other ports": 6, "not UDP": 2},
    }


def test_as_fast_as_possible(receiver, target, capture):
    """Without a time at which datagrams are due, none is late."""
    result = invoke(target, "--replay", capture, "--rate", "max", "--loop", "2")
    receive(receiver, 12)
    assert result.stdout.splitlines()[2:] == [
        "read 14 packets in 2 rounds: datagrams from 3 sources",
        "to ports 2055 (6), 514 (6)",
        "skipped 2 packets: 2 not UDP",
    ]


def test_many_ports(receiver, target, tmp_path):
    """The summary names the busiest ports of a capture alone, and the one port of another."""
    path = tmp_path / "many.pcap"
    path.write_bytes(pcap(frames(14, ports=(1, 2, 3, 4, 5, 6))))
    shown = invoke(target, "--replay", path, "--rate", "max").stdout
    assert "\nto ports 1 (3), 2 (3), 3 (2), 4 (2) and 2 more\n" in shown
    path.write_bytes(pcap(frames(2, ports=(7,))))
    assert "from 2 sources to port 7\n" in invoke(target, "--replay", path, "--rate", "max").stdout
    receive(receiver, 16)


def test_a_capture_that_is_cut_off(receiver, target, capture):
    """One line tells where it ends, and how much of it was sent; the exit code is 1."""
    capture.write_bytes(capture.read_bytes()[:-1])
    result = invoke(target, "--replay", capture, "--rate", "max")
    receive(receiver, 6)
    told = f"aiolb: error: the capture {capture} is cut off: it ends after 6 packets; 6 datagrams of it were sent\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", told)


@pytest.mark.parametrize("content", [[], frames(0)], ids=["empty", "no datagram"])
def test_a_capture_with_nothing_to_send(receiver, target, capture, content):
    """The summary tells what was read, and the exit code is 1."""
    capture.write_bytes(pcap(content))
    result = invoke(target, "--replay", capture)
    receive(receiver, 0)
    read, *skipped = result.stdout.splitlines()[2:]
    assert (result.exit_code, result.stderr) == (1, f"aiolb: error: nothing of the capture {capture} was sent\n")
    assert read.startswith(f"read {len(content)} packet")
    assert skipped == ["skipped 1 packet: 1 not UDP"] * len(content)


@pytest.mark.usefixtures("echo")
def test_round_trips_for_people(target):
    """The summary tells what was answered, and how long it took."""
    result = invoke(target, "--echo", "--rate", "1000", "--count", "20", "--sources", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    sent, sources, answered, trip, late, note = result.stdout.splitlines()
    assert sent == f"sent 20 datagrams (1,280 bytes) to {target}"
    assert sources.startswith("from 3 sources in 0.")
    assert answered == "answered 20, lost 0, duplicated 0"
    for line, name in ((trip, "round trip:"), (late, "sent late:")):
        assert re.fullmatch(rf"{name} +p50 \S+ \S+  p90 \S+ \S+  p99 \S+ \S+  p99.9 \S+ \S+  max \S+ \S+", line)
    assert note == "a round trip begins when its datagram is due, so being sent late is a part of it"
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.usefixtures("echo")
def test_round_trips_for_programs(target):
    """With --json the numbers are those of the run; the payload is that of a stamped flood."""
    summary = json.loads(invoke(target, "--echo", "--rate", "1000", "--count", "20", "--size", "100", "--json").stdout)
    assert (summary["sent_datagrams"], summary["sent_bytes"], summary["datagram_bytes"]) == (20, 2000, 100)
    answered = [summary[f"{name}_datagrams"] for name in ("answered", "lost", "duplicated", "foreign")]
    assert answered == [20, 0, 0, 0]
    for name in ("round_trip_microseconds", "late_microseconds"):
        assert list(summary[name]) == ["p50", "p90", "p99", "p99.9", "max"]
    assert re.fullmatch("[0-9a-f]{16}", summary["run"])


def test_no_round_trip_asked_for(target):
    """Where nothing is sent, nothing has to come back."""
    result = invoke(target, "--echo", "--count", "0", "--json")
    assert (result.exit_code, json.loads(result.stdout)["sent_datagrams"], result.stderr) == (0, 0, "")


def test_round_trips_without_an_answer(receiver, target):
    """The summary tells that all is lost; the exit code is 1, and the hint names a collector that answers."""
    result = invoke(target, "--echo", "--rate", "1000", "--count", "3", "--json")
    assert len(receive(receiver, 3)) == 3
    assert (result.exit_code, json.loads(result.stdout)["lost_datagrams"]) == (1, 3)
    told, hinted = result.stderr.splitlines()
    assert told == f"aiolb: error: no answer came from {target}"
    assert hinted.endswith(f": aiolb serve echo --bind {target}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_replay(receiver, target, tmp_path, number):
    """Ctrl-C ends a replay that has an hour to go, with a summary of what arrived."""
    path = tmp_path / "long.pcap"
    path.write_bytes(pcap([*frames(2)[:2], (3600.0, frames(1)[0][1])]))
    with subprocess.Popen(
        [*COMMAND, target, "--replay", str(path), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for _ in range(2):
            receiver.recv(100)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")
    receive(receiver, json.loads(out)["sent_datagrams"] - 2)


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--speed", "2"], "--speed is for a replay", "--replay FILE --speed …"),
        (["--loop", "2"], "--loop is for a replay", "--replay FILE --loop …"),
        (["--port", "2"], "--port is for a replay", "--replay FILE --port …"),
        (["--replay", "CAPTURE", "--size", "9"], "--replay and --size do not go together", "a replay sends what"),
        (["--replay", "CAPTURE", "--workers", "2"], "--replay and --workers do not go together", "a replay sends"),
        (["--replay", "CAPTURE", "--echo"], "--replay and --echo do not go together", "a replay sends what"),
        (["--replay", "CAPTURE", "--speed", "2", "--rate", "5"], "a speed or a rate", "give --speed or --rate"),
        (["--replay", "CAPTURE", "--loop", "0"], "0 rounds cannot be", "--loop 1"),
        (["--replay", "CAPTURE", "--speed", "nan"], "the speed is nan", "--speed 2 is twice as fast"),
        (["--echo", "--gso", "8"], "--echo and --gso do not go together", "round trips are measured one by one"),
        (["--echo", "--workers", "2"], "--echo and --workers do not go together", "round trips are measured"),
        (["--echo", "--rate", "max"], "without a rate there is none", "give a rate"),
        (["--loop", "asyncio"], "'asyncio' is not a valid integer", "see: "),
    ],
)
def test_options_that_do_not_go_together(target, capture, arguments, error, hint):
    """They are wrong usage, and the hint says what to do."""
    result = invoke(target, *(str(capture) if argument == "CAPTURE" else argument for argument in arguments))
    assert result.exit_code == 2
    told, hinted = result.stderr.splitlines()
    assert error in told
    assert hinted.startswith(f"  hint: {hint}")


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0.0, "0 µs"),
        (41.25, "41.2 µs"),
        (999.4, "999 µs"),
        (999.6, "1 ms"),
        (12_345.0, "12.3 ms"),
        (999_499.0, "999 ms"),
        (999_600.0, "0.9996 s"),
        (1_234_567.0, "1.235 s"),
    ],
)
def test_times_for_people(microseconds, text):
    """Times have three digits or four, and a unit that fits."""
    assert _time(microseconds) == text


def test_the_document_has_commands():
    """The next test runs something, and knows all that is not run here."""
    assert len([line for line in commands(DOCUMENT) if line.startswith("aiolb flood ")]) >= 8
    others = {line.split()[0] for line in commands(DOCUMENT) if not line.startswith("aiolb flood ")}
    assert others <= {"pip", "tcpdump", "aiolb"}


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("command", [line for line in commands(DOCUMENT) if line.startswith("aiolb flood ")])
def test_commands_of_the_document(target, capture, tmp_path, monkeypatch, command):
    """Each `aiolb flood` of docs/how-to/replay.md runs as written, but for the port and for less time."""
    monkeypatch.chdir(tmp_path)
    assert capture.parent == tmp_path
    arguments = shlex.split(command.replace("127.0.0.1:10001", target).replace("--duration 10", "--duration 0.2"))
    result = invoke(*arguments[2:])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(("sent ", '{"target"'))


def test_the_program_of_the_document(receiver, target, capture):
    """The Python program of the document runs as written, but for the port."""
    (program,) = blocks(DOCUMENT, "python")
    program = program.replace("127.0.0.1:10001", target)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=capture.parent, capture_output=True, text=True, check=False
    )
    receive(receiver, 6)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ReplayStatistics(sent=6, ")


def test_the_document_shows_what_is_told():
    """The summaries in the document have the lines that the command prints."""
    text = (ROOT / DOCUMENT).read_text()
    for line in ("read 3,000 packets: datagrams from", "skipped ", "sent late: p50 ", "answered ", "round trip: "):
        assert re.search(f"^{re.escape(line)}", text, re.MULTILINE)


def test_help_names_the_options():
    """The help has them, and stays light: nothing is imported that reads captures."""
    result = CliRunner().invoke(flood, ["--help"])
    for option in ("--replay FILE", "--speed X", "--loop N", "--port PORT", "--echo"):
        assert option in result.stdout
