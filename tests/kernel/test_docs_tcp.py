"""docs/how-to/tcp.md is true: its commands run as they stand, in namespaces of their own, and its example counts."""

from __future__ import annotations

import json

import pytest
from documents import ROOT, blocks_of, commands

from aiolb.application import load
from aiolb.testing import collector

PAGE = "docs/how-to/tcp.md"
EXAMPLE = ROOT / "examples" / "syslog_tcp_collector.py"


def test_every_block_is_tested():
    """There are no blocks but these, and another test compiles the program."""
    assert [block.language for block in blocks_of(PAGE)] == ["python", "sh", "sh"]


def test_the_commands(namespaces, needs, tmp_path):
    """The collector starts, takes what logger sends, with both framings, and its report has it."""
    needs("logger", "bsdutils")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    serve, *sends = commands(PAGE)
    with namespaces.server(serve) as server:
        server.wait_for(b"supervising")
        for send in sends:
            namespaces.run(send)
        server.stop()
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["accepted"], report["closed"], report["errors"]) == (2, 2, 0)
    collectors = [worker for member in report["members"] for worker in member["collector"] if worker]
    assert collectors == [{"127.0.0.1": {"err": 1, "notice": 1}}]


@pytest.mark.parametrize(
    ("sent", "counted", "errors"),
    [
        (b"<11>1 one\n<14>1 two\n\n", {"err": 1, "info": 1}, 0),
        (b"9 <11>1 one9 <14>1 two", {"err": 1, "info": 1}, 0),
        (b"9 <11>1 one<14>1 two\nno priority", {"err": 1, "info": 1, "none": 1}, 0),
        (b"12 <11>1 one\n\n\n12 <11>1 two\n\n\n", {"err": 2}, 0),
        (b"", {}, 0),
        (b"99 <11>1 one", {}, 1),
        (b"9999999 <11>", {}, 1),
        (b"9x9 <11>1 one", {}, 1),
    ],
)
async def test_the_example(sent, counted, errors):
    """Messages of both framings are counted; a connection that breaks the rules is an error."""
    async with collector(load(f"{EXAMPLE}:SyslogTcp", "tcp"), raise_errors=False) as member:
        assert await member.feed(sent) == b""
    assert member.collector.report() == ({"192.0.2.1": counted} if counted else {})
    assert (member.statistics().errors, member.statistics().closed) == (errors, 1 - errors)
