"""The sockets of a publisher."""

from __future__ import annotations

import subprocess
import sys

OPEN_MANY = """
import asyncio, resource, sys
from aiolb.errors import StartError
from aiolb.publisher import Publisher

async def main():
    async with Publisher("127.0.0.1:9", sources=100) as publisher:
        return publisher.statistics().sources

soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    print(asyncio.run(main()), resource.getrlimit(resource.RLIMIT_NOFILE)[0] > soft)
except StartError as error:
    print(error, "|", error.hint)
"""


def open_many(soft, hard):
    """Open 100 sources in a process with these limits, and give what it said."""
    command = [sys.executable, "-c", OPEN_MANY, str(soft), str(hard)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_the_limit_of_open_files_is_raised():
    """More sources than the soft limit allows raise it; with room enough it stays."""
    assert open_many(50, 1000) == "100 True"
    assert open_many(500, 1000) == "100 False"


def test_the_hard_limit_of_open_files():
    """More sources than the hard limit allows are an error with the command that helps."""
    said = open_many(50, 60)
    assert said.startswith("100 sources need ")
    assert "the hard limit is 60" in said
    assert "ulimit -Hn" in said
