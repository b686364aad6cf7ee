"""docs/how-to/tcp.md is true: its commands run as they stand, in namespaces of their own, and its example counts."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from deadline import DEADLINE
from events import Log

from aiolb.application import load
from aiolb.testing import collector

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "how-to" / "tcp.md").read_text()
EXAMPLE = ROOT / "examples" / "syslog_tcp_collector.py"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def blocks(language):
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_is_tested():
    """There are no blocks but these, and the program is one."""
    assert re.findall(r"^```(\S+)$", PAGE, re.MULTILINE) == ["python", "sh", "sh"]
    (program,) = blocks("python")
    ast.parse(program)


def test_links_lead_somewhere():
    """Each link to a file of the project leads to one."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / "docs" / "how-to" / link.partition("#")[0]).is_file()] == []


async def test_the_commands(tmp_path, needs, private_mounts):
    """The collector starts, takes what logger sends, with both framings, and its report has it."""
    needs("logger", "bsdutils")
    (tmp_path / "examples").symlink_to(EXAMPLE.parent)
    serve, send = blocks("sh")
    # The server in the background, the senders when a line says so, and then the end of the server; at once when
    # this process has gone.
    script = (
        f"set -e\nip link set lo up\nmount -t bpf bpf /sys/fs/bpf\n{serve.rstrip()} &\nread line || kill $!\n{send}\n"
    )
    script += "kill -TERM $!\nwait $!\n"
    process = await asyncio.create_subprocess_exec(
        *private_mounts,
        "--net",
        "sh",
        "-c",
        script,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    log = Log()

    async def read():
        async for line in process.stderr:
            log.add(line.decode().rstrip("\n"))
            if " supervising " in log.lines[-1]:
                process.stdin.write(b"go\n")

    try:
        async with asyncio.timeout(DEADLINE):
            await read()
            assert await process.wait() == 0, log.said
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
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
