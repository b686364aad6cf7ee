"""docs/how-to/trace.md is true: its commands are run as they stand."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
from documents import ENVIRONMENT, commands

DOCUMENT = "docs/how-to/trace.md"

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("nothing_left")]


def test_commands(namespaces):
    """Every command works while datagrams come in, and ends with what it was asked for."""
    serve, flood, first, source, sample = commands(DOCUMENT)
    with namespaces.server(serve) as server:
        server.wait_for(b"supervising")
        # Longer than the document's, so that the last command still has something to show.
        endless = shlex.split(flood.replace("--count 4000", "--count 400000"))
        with subprocess.Popen(
            [*namespaces._enter, *endless], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        ) as sender:
            try:
                assert [line.split()[-1] for line in namespaces.run(first).splitlines()] == ["steer"] * 3
                assert len(namespaces.run(source).splitlines()) == 5
                told = [json.loads(line) for line in namespaces.run(sample).splitlines()]
                assert [(one["key"], one["owner"] == one["member"]) for one in told] == [("source", True)] * 5
            finally:
                sender.kill()
        namespaces.run(flood.replace("--count 4000", "--count 40"))
        server.stop()
