"""The ready collectors of connections: what they print, echo and count."""

from __future__ import annotations

import asyncio
import os

import pytest
import structlog.testing

from aiolb.base_collector import check_class
from aiolb.builtin import PREVIEW
from aiolb.builtin_streams import BUILTIN_STREAMS, DiscardStream, EchoStream, PrintLines
from aiolb.testing import SOURCE, collector

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def _logged():
    """Keep the log out of what collectors print."""
    with structlog.testing.capture_logs():
        yield


def test_names():
    """Each can be named on the command line, and is a usable class."""
    assert list(BUILTIN_STREAMS) == ["print", "echo", "discard"]
    for cls in BUILTIN_STREAMS.values():
        check_class(cls)


def test_echo(run):
    """Everything comes back, whatever it is."""
    sent = os.urandom(1 << 20)

    async def main():
        async with collector(EchoStream) as member:
            connection = member.connect()
            await connection.feed(b"hello\n")
            assert connection.written == b"hello\n"
            assert await connection.end(sent) == b"hello\n" + sent
        return member.statistics()

    statistics = run(main())
    assert (statistics.closed, statistics.received_bytes) == (1, len(sent) + len("hello\n"))


async def fed(app, *pieces):
    """Let one connection bring pieces: what came back, who it was, and what was counted."""
    async with collector(app) as member:
        connection = member.connect(SOURCE)
        for piece in pieces:
            await connection.feed(piece)
        answer = await connection.end()
    return answer, "192.0.2.1:40000", member.statistics()


def test_discard(run):
    """Nothing comes back, and all of it is counted."""
    answer, _, statistics = run(fed(DiscardStream, b"x" * 100_000, b"y" * 50_000))
    assert (answer, statistics.closed, statistics.received_bytes) == (b"", 1, 150_000)


@pytest.mark.parametrize("app", [EchoStream, DiscardStream, PrintLines])
def test_a_connection_that_breaks(run, app):
    """It ends well for all of them: nobody is to read of it."""

    async def main():
        async with collector(app) as member:
            connection = member.connect()
            await connection.feed(b"part")
            connection.reset()
            await member.drained()
        return member.statistics()

    statistics = run(main())
    assert (statistics.closed, statistics.errors) == (1, 0)


def test_print(run, capsys):
    """One line for each line: source, size with its end, preview; the last one may lack its end."""
    answer, source, statistics = run(fed(PrintLines, b"hello\nwor", b"ld\r\n\n\x1b[31m red\nno end"))
    assert answer == b""
    assert statistics.closed == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{source:<21}      6 bytes  hello",
        f"{source:<21}      7 bytes  world",
        f"{source:<21}      1 bytes  ",
        f"{source:<21}     10 bytes  .[31m red",
        f"{source:<21}      6 bytes  no end",
    ]


def test_print_of_a_line_without_end(run, capsys):
    """A line that is longer than the reader holds is shown in pieces, and nothing is lost."""
    _, _, statistics = run(fed(PrintLines, b"x" * 300_000, b"\nnext\n"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("5 bytes  next")
    assert {line.split()[-1] for line in lines[:-2]} == {"x" * PREVIEW + "…"}
    assert sum(int(line.split()[1]) for line in lines) == statistics.received_bytes == 300_006


def test_print_into_a_closed_pipe(monkeypatch):
    """When nobody reads the output any more the collector stops, and leaves nothing to fail at exit."""
    reader, writer = os.pipe()
    os.close(reader)
    stopped = []
    app = PrintLines()
    monkeypatch.setattr(app, "stop", lambda: stopped.append(True))
    with open(writer, "w", encoding="utf-8") as stdout:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", stdout)
        asyncio.run(fed(app, b"x\n"))
    assert stopped == [True]
