"""The ready collectors: what they print, echo, count and prove."""

from __future__ import annotations

import asyncio
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.builtin import BUILTIN, PREVIEW, Discard, Print, Verify, preview
from aiolb.collector import check_class
from aiolb.stamp import Stamp


@pytest.mark.parametrize(
    ("datagram", "shown"),
    [
        (b"", ""),
        (b"hello, world", "hello, world"),
        (b"line\nbreak\ttab\0", "line.break.tab."),
        ("größe".encode(), "gr....e"),
        (b"\x1b[31mred\x7f~ ", ".[31mred.~ "),
        (b"x" * PREVIEW, "x" * PREVIEW),
        (b"x" * (PREVIEW + 1), "x" * PREVIEW + "…"),
    ],
)
def test_preview(datagram, shown):
    """Printable ASCII is shown as it is, and all else, control characters too, as dots."""
    assert preview(datagram) == shown


@given(st.binary(max_size=200))
def test_preview_of_anything(datagram):
    """Whatever comes, a preview is one short line that no terminal takes for a command."""
    shown = preview(datagram)
    assert len(shown) == min(len(datagram), PREVIEW) + (len(datagram) > PREVIEW)
    assert shown.removesuffix("…").isascii()
    assert shown.isprintable()


def test_print(capsys):
    """One line for each datagram: source, size, preview."""
    batch = [(b"hello", ("127.0.0.1", 5)), (b"\0" * 1400, ("::1", 40000, 0, 0)), (b"", ("192.168.100.200", 65535))]
    asyncio.run(Print().handle_batch(batch))
    assert capsys.readouterr().out.splitlines() == [
        "127.0.0.1:5                5 bytes  hello",
        "[::1]:40000             1400 bytes  " + "." * PREVIEW + "…",
        "192.168.100.200:65535      0 bytes  ",
    ]


def test_print_with_an_encoding_of_old(monkeypatch):
    """An encoding that lacks a character gets another one in its place."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    app = Print()
    asyncio.run(app.startup())
    asyncio.run(app.handle_batch([(b"x" * 60, ("127.0.0.1", 5))]))
    assert raw.getvalue().endswith(b"x?\n")


def test_print_into_a_closed_pipe(monkeypatch):
    """When nobody reads the output any more, the collector stops, and leaves nothing to fail at exit."""
    reader, writer = os.pipe()
    os.close(reader)
    stopped = []
    app = Print()
    monkeypatch.setattr(app, "stop", lambda: stopped.append(True))
    with open(writer, "w", encoding="utf-8") as stdout:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", stdout)
        asyncio.run(app.handle_batch([(b"x", ("127.0.0.1", 5))]))
        asyncio.run(app.handle_batch([(b"x", ("127.0.0.1", 5))]))
    assert stopped == [True]


def test_discard():
    """Discard does nothing with a datagram."""
    assert asyncio.run(Discard().handle(b"x", ("127.0.0.1", 5))) is None


def test_verify():
    """Verify reports what the stamps say: lost, doubled, unstamped."""
    app = Verify()

    async def live():
        for sequence in (0, 1, 1, 4):
            await app.handle(Stamp(run=1, source=2, sequence=sequence, sent_ns=0).to_wire(), ("127.0.0.9", 5))
        await app.handle(b"no stamp", ("127.0.0.9", 5))
        await app.shutdown()

    asyncio.run(live())
    report = app.report()
    assert {name: report[name] for name in ("received", "lost", "duplicated", "unstamped", "sources")} == {
        "received": 3,
        "lost": 2,
        "duplicated": 1,
        "unstamped": 1,
        "sources": 1,
    }


def test_all_are_collectors():
    """What the command line offers by name can be run."""
    assert list(BUILTIN) == ["print", "echo", "discard", "verify"]
    for cls in BUILTIN.values():
        check_class(cls)
