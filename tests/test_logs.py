"""Log output: one line per event for people or machines, from whoever logs, and never an exception."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
import structlog

from aiolb import logs
from aiolb.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("logs_as_before")


@pytest.fixture
def member():
    """What the log says of a member, for the time of the test."""
    token = logs.MEMBER.set({"index": 1, "count": 3, "bind": "127.0.0.1:9"})
    yield
    logs.MEMBER.reset(token)


@pytest.mark.usefixtures("member")
def test_json():
    """A line of JSON has the member, the event and its fields, the level, and the time in UTC."""
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    structlog.get_logger().info("ready", pid=5)
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"index": 1, "count": 3, "bind": "127.0.0.1:9", "event": "ready", "pid": 5, "level": "info"}


def test_a_count_that_is_not_known():
    """Who joins without a count says nothing of it until it has joined."""
    token = logs.MEMBER.set({"index": 1, "count": None, "bind": "127.0.0.1:9"})
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    structlog.get_logger().info("metrics")
    logs.MEMBER.reset(token)
    assert json.loads(stream.getvalue()).keys() == {"index", "bind", "event", "level", "timestamp"}


@pytest.mark.usefixtures("member")
def test_console():
    """A line for people has the event first, then the member, then its fields, in that order."""
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger().warning("ready", pid=5)
    (line,) = stream.getvalue().splitlines()
    assert line[19:] == " [warning  ] ready            index=1 count=3 bind=127.0.0.1:9 pid=5"


def test_an_empty_hint():
    """A hint of None does not appear, and any other does."""
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    for hint in (None, "try again"):
        structlog.get_logger().info("failed", hint=hint)
    without, given = map(json.loads, stream.getvalue().splitlines())
    assert "hint" not in without
    assert given["hint"] == "try again"


@pytest.mark.usefixtures("member")
def test_what_the_event_says_comes_first():
    """An event that names an address of its own keeps it."""
    assert logs.add_member(None, "info", {"bind": "[::1]:9"})["bind"] == "[::1]:9"


def test_outside_of_a_member():
    """Without a member there is nothing to add."""
    assert logs.add_member(None, "info", {"event": "x"}) == {"event": "x"}


@pytest.mark.parametrize(("level", "number"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level, number):
    """Events below the level are not written."""
    stream = io.StringIO()
    logs.configure("json", level, stream)
    for name in logs.LEVELS:
        getattr(structlog.get_logger(), name)("x")
    assert len(stream.getvalue().splitlines()) == number


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_exceptions(log_format):
    """An exception is logged with its traceback; as JSON it is still one line."""
    stream = io.StringIO()
    logs.configure(log_format, stream=stream)
    try:
        int("no")
    except ValueError:
        structlog.get_logger().exception("failed")
    text = stream.getvalue()
    if log_format == "json":
        (trace,) = json.loads(text)["exception"]
        assert (trace["exc_type"], trace["exc_value"]) == ("ValueError", "invalid literal for int() with base 10: 'no'")
    else:
        assert text.splitlines()[-1] == "ValueError: invalid literal for int() with base 10: 'no'"


def test_a_closed_stream():
    """Nobody is troubled by a log that was closed."""
    stream = io.StringIO()
    logs.configure(stream=stream)
    stream.close()
    structlog.get_logger().info("lost")


def test_no_stream_at_all(monkeypatch):
    """Nobody is troubled where there is no standard error (`2>&-`)."""
    monkeypatch.setattr("sys.stderr", None)
    logs.configure()
    structlog.get_logger().info("lost")


def test_a_full_disk():
    """Nobody is troubled by a log that cannot be written."""
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123 - a device
        logs.configure(stream=stream)
        structlog.get_logger().info("lost")
        logs.silence(stream)


def test_a_broken_pipe():
    """When nobody reads the log any more, it goes to /dev/null from then on."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        logs.configure(stream=stream)
        structlog.get_logger().info("lost")
        structlog.get_logger().info("lost")
        assert os.path.samestat(os.fstat(writer), os.stat(os.devnull))  # noqa: PTH116 - a descriptor


OTHERS = """
import logging, sys, warnings
from aiolb import logs
logs.configure("json", "warning")
logs.configure(sys.argv[1], "warning")
logging.getLogger("some.library").error("it said %s", "no")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("asyncio").exception("a task failed")
async def forgotten(): pass
forgotten()
"""


def others(log_format, source=OTHERS):
    """What a process writes to its log when others log."""
    command = [sys.executable, "-c", source, log_format]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stderr


def test_json_of_others():
    """What others log or warn of are lines of JSON too, each once."""
    events = [json.loads(line) for line in others("json").splitlines()]
    assert [(event["event"].splitlines()[0].split(": ")[-1], event["level"]) for event in events] == [
        ("it said no", "error"),
        ("a task failed", "error"),
        ("coroutine 'forgotten' was never awaited", "warning"),
    ]
    assert events[1]["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_console_of_others():
    """What others log looks like our own lines."""
    assert others("console").splitlines()[0][19:] == " [error    ] it said no"


def test_logging_that_was_set_up_before():
    """Where the user has set up logging, it stays as it is."""
    source = "import logging\nlogging.basicConfig(format='mine %(message)s')\n" + OTHERS
    lines = others("json", source).splitlines()
    assert lines[0] == "mine it said no"
    assert any("RuntimeWarning" in line for line in lines)


@pytest.fixture
def log(tmp_path):
    """Where the log file is; it is closed after the test."""
    yield tmp_path / "aiolb.log"
    logs.configure()


def events_in(path):
    """The events in a log file, without their time."""
    return [{**json.loads(line), "timestamp": None} for line in path.read_text().splitlines()]


def names_in(path):
    """The names of the events in a log file."""
    return [event["event"] for event in events_in(path)]


@pytest.mark.usefixtures("nothing_left")
def test_a_file(log, capsys):
    """Events go to the end of the file, and nothing to standard error."""
    log.write_text('{"event": "before"}\n')
    logs.configure("json", file=log)
    structlog.get_logger().info("ready", pid=5)
    assert events_in(log)[1:] == [{"timestamp": None, "event": "ready", "pid": 5, "level": "info"}]
    logs.configure()
    assert capsys.readouterr().err == ""


def test_a_file_for_people(log):
    """A file gets no colours, and may be named by a text."""
    logs.configure(file=str(log))
    structlog.get_logger().info("ready", pid=5)
    assert log.read_text()[19:] == " [info     ] ready            pid=5\n"


def test_one_write_for_each_event(log, monkeypatch):
    """A line is one write(2), also one with a traceback for people, so that those of several processes do not mix."""
    logs.configure(file=log)
    written = []
    monkeypatch.setattr(os, "write", lambda _descriptor, data: written.append(data) or len(data))
    structlog.get_logger().info("ready")
    try:
        int("no")
    except ValueError:
        structlog.get_logger().exception("failed")
    monkeypatch.undo()
    assert [data.split()[4] for data in written] == [b"ready", b"failed"]
    assert all(data.endswith(b"\n") for data in written)


@pytest.mark.usefixtures("nothing_left")
def test_reopen(log):
    """After the file was moved, events go to a new one of its name, from the loggers that there were before too."""
    logs.configure("json", file=log)
    logger = structlog.get_logger().bind(mine=True)
    logger.info("one")
    moved = log.rename(f"{log}.1")
    logs.reopen()
    logger.info("two")
    assert names_in(moved) == ["one"]
    assert names_in(log) == ["log_reopened", "two"]
    assert events_in(log)[0]["file"] == str(log)
    logs.configure()


MOVED = """
import logging, pathlib, sys
from aiolb import logs
file = pathlib.Path(sys.argv[2])
logs.configure(sys.argv[1], file=file)
logging.getLogger("some.library").error("one")
file.rename(f"{file}.1")
logs.reopen()
logging.getLogger("some.library").error("two")
logs.configure(sys.argv[1])
logging.getLogger("some.library").error("three")
"""


def test_a_file_of_others(log):
    """What others log is in the file too, in the new one after it was reopened, until there is another output."""
    done = subprocess.run([sys.executable, "-c", MOVED, "json", log], capture_output=True, check=True, timeout=20)
    assert names_in(log.with_name("aiolb.log.1")) == ["one"]
    assert names_in(log) == ["log_reopened", "two"]
    assert json.loads(done.stderr)["event"] == "three"


def test_reopen_fails(tmp_path):
    """When the file cannot be opened again, the old one goes on and says why."""
    folder = tmp_path / "folder"
    folder.mkdir()
    logs.configure("json", file=folder / "aiolb.log")
    folder = folder.rename(tmp_path / "moved")
    logs.reopen()
    structlog.get_logger().info("on")
    logs.configure()
    failed, on = events_in(folder / "aiolb.log")
    assert (failed["event"], failed["level"]) == ("log_reopen_failed", "error")
    assert (failed["reason"], failed["file"]) == ("No such file or directory", str(tmp_path / "folder" / "aiolb.log"))
    assert on["event"] == "on"


def test_reopen_without_a_file():
    """On a stream there is nothing to reopen."""
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    logs.reopen()
    assert stream.getvalue() == ""


def test_a_file_that_cannot_be_opened(tmp_path):
    """A file that cannot be opened is told, and the log stays where it was."""
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    with pytest.raises(ConfigurationError, match="cannot be opened: No such file or directory"):
        logs.configure(file=tmp_path / "missing" / "aiolb.log")
    structlog.get_logger().info("here")
    assert json.loads(stream.getvalue())["event"] == "here"


@pytest.mark.usefixtures("nothing_left")
def test_another_file(tmp_path):
    """Another configuration closes the file; who still logs to it is not troubled, and reopening leaves it alone."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    logs.configure("json", file=first)
    old = structlog.get_logger().bind()
    old.info("one")
    logs.configure("json", file=second)
    old.info("lost")
    structlog.get_logger().info("two")
    first.unlink()
    logs.reopen()
    assert names_in(second) == ["two", "log_reopened"]
    assert not first.exists()
    logs.configure()
