"""The ready collectors: what they print, echo, count and prove."""

from __future__ import annotations

import asyncio
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.base_collector import check_class
from aiolb.builtin import BUILTIN, PREVIEW, Discard, Echo, Print, Verify, preview
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


async def test_print_into_a_closed_pipe(monkeypatch, aiolb_collector):
    """When nobody reads the output any more, the collector stops, and leaves nothing to fail at exit."""
    reader, writer = os.pipe()
    os.close(reader)
    member = await aiolb_collector(Print)
    with open(writer, "w", encoding="utf-8") as stdout:  # noqa: ASYNC230, PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", stdout)
        await member.feed(b"x")
        assert member.stopping
        await member.feed(b"x")


async def test_echo(aiolb_collector):
    """Echo sends each datagram back to where it came from."""
    member = await aiolb_collector(Echo)
    await member.feed(b"x", ("127.0.0.1", 5))
    await member.feed(b"", ("::1", 5, 0, 0))
    assert member.replies == [(b"x", ("127.0.0.1", 5)), (b"", ("::1", 5, 0, 0))]


async def test_discard(aiolb_collector):
    """Discard does nothing with a datagram but to count it."""
    member = await aiolb_collector(Discard)
    await member.feed(b"x")
    assert (member.statistics().handled, member.replies, member.collector.report()) == (1, [], {})


async def test_verify(aiolb_collector):
    """Verify reports what the stamps say: lost, doubled, unstamped; and which member it is."""
    member = await aiolb_collector(Verify, index=2)
    for sequence in (0, 1, 1, 4):
        await member.feed(Stamp(run=1, source=2, sequence=sequence, sent_ns=0).to_wire())
    await member.feed(b"no stamp")
    await member.stop()
    report = member.collector.report()
    assert {name: report[name] for name in ("member", "received", "lost", "duplicated", "unstamped", "sources")} == {
        "member": 2,
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
