"""What commands print reads as it is, and no part of it is cut."""

from __future__ import annotations

import pytest

from aiolb.cli.texts import folded, plain_console


@pytest.mark.parametrize(
    "text",
    [
        "udp [fd00:1234:5678::1]:10001",
        "[bold]x[/bold]",
        "[::1]:5",
        "[fe80::1%lo]:9000 and 2001:db8:ab:1::, [/bold]",
    ],
)
def test_text_stands_as_it_is(text):
    """An address in brackets is no markup, and one with a part that is the name of an emoji is none."""
    console = plain_console(width=100)
    with console.capture() as captured:
        console.print(text)
    assert captured.get() == f"{text}\n"


def test_folded_lines():
    """A line is broken between its parts, never in one."""
    assert folded(["one", "two", "three"], None) == ["one, two, three"]
    assert folded(["one", "two", "three"], 8) == ["one, two", "three"]
    assert folded(["longer than that"], 3) == ["longer than that"]
