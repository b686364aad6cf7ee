"""The how-to for the guard is true: its commands run as they stand, in order, and do what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from documents import ENVIRONMENT, ROOT, blocks, commands

from aiolb.bpf.abi import BUCKET_SETS, BUCKET_WAYS, MAX_RULES

DOCUMENT = "docs/how-to/guard.md"
TEXT = (ROOT / DOCUMENT).read_text()
SEND = """
import socket
for source, number in (("127.1.9.1", 4), ("127.1.8.1", 2), ("127.2.0.1", 3)):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        for _ in range(number):
            sock.sendto(b"datagram", ("127.0.0.1", 2055))
"""


@pytest.fixture
def namespaces(namespaces, tmp_path):
    """Namespaces with the file of the how-to in the working directory."""
    (tmp_path / "exporters.txt").write_text(blocks(DOCUMENT, "text")[0])
    (tmp_path / "send.py").write_text(SEND)
    return namespaces


@pytest.mark.usefixtures("nothing_left")
def test_commands(namespaces):
    """What is denied or not listed is dropped and counted, and every change is seen."""
    serve, show, *changes = commands(DOCUMENT)
    seen = []
    with namespaces.server(serve) as server:
        namespaces.run(f"{sys.executable} send.py")
        shown = namespaces.run(show)
        for command in changes:
            namespaces.run(command)
            found = json.loads(namespaces.run("aiolb guard --json"))
            seen.append(([rule["network"] for rule in found["rules"]], found["limit"] and found["limit"]["pps"]))
        received = server.stop()
    assert "dropped: 4 packets by rules, 3 that no rule allows, 0 over the limit" in shown
    first = ["127.1.0.0/16", "127.1.9.0/24"]
    more = [*first, "192.0.2.0/24", "2001:db8:7::/48"]
    assert seen == [
        (["127.1.0.0/16", "127.1.8.0/24", "127.1.9.0/24"], 1000),
        (first, 1000),
        (more, 1000),
        (more, 1000),
        ([], None),
    ]
    assert len([line for line in received if "127.1.8.1" in line]) == len(received) == 2


def test_options_exist():
    """The options that are named are those of `aiolb serve`, `aiolb guard` and the tools of the project."""
    texts = [
        subprocess.run(
            [sys.executable, "-m", "aiolb", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT,
        ).stdout
        for command in ("serve", "guard")
    ]
    named = set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", TEXT)) - {"--scenario"}
    assert [option for option in named if not any(option in text for text in texts)] == []


def test_numbers():
    """The sizes that are told are those of the maps."""
    assert f"up to {MAX_RULES:,} times" in TEXT
    assert f"there are {BUCKET_SETS * BUCKET_WAYS:,} buckets" in TEXT


def test_links_lead_somewhere():
    """Each link to a file leads to one."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / "docs/how-to" / link).is_file()] == []
