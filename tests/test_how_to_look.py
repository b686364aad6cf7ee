"""docs/how-to/look.md is true: its commands are run as they stand."""

from __future__ import annotations

import json
import time

import pytest
from deadline import DEADLINE
from documents import commands

DOCUMENT = "docs/how-to/look.md"

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("nothing_left")]


def test_commands(namespaces):
    """Every command works, in this order, and tells of the group that the first one makes and the second one floods."""
    serve, flood, *others = commands(DOCUMENT)
    statuses = [command for command in others if "status" in command]
    with namespaces.server(serve) as server:
        server.wait_for(b"supervising")
        namespaces.run(flood)
        deadline = time.monotonic() + DEADLINE
        handled = 0
        while handled != 30_000:
            assert time.monotonic() < deadline, f"{handled} handled"
            told = json.loads(namespaces.run(next(command for command in statuses if "--json" in command)))
            (group,) = told["groups"]
            handled = sum(member["handled"] or 0 for member in group["members"])
        assert [member["state"] for member in group["members"]] == ["alive"] * 3
        for command in statuses:
            assert "127.0.0.1:9000" in namespaces.run(command)
        for command in others:
            if command not in statuses:
                assert namespaces.run(command).startswith(('{"routes"', "SOURCE", "udp 127.0.0.1:9000  3 of 3"))
        server.stop()
