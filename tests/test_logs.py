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


@pytest.fixture(autouse=True)
def _as_before():
    """No test leaves its configuration behind."""
    yield
    structlog.reset_defaults()


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


@pytest.mark.usefixtures("member")
def test_console():
    """A line for people has the event first, then the member, then its fields, in that order."""
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger().warning("ready", pid=5)
    (line,) = stream.getvalue().splitlines()
    assert line[19:] == " [warning  ] ready            index=1 count=3 bind=127.0.0.1:9 pid=5"


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
