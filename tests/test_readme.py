"""The README is true: its commands and programs are run as they stand, in namespaces of their own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from documents import ENVIRONMENT, ROOT, Namespaces, Server, blocks, commands, opened

README = (ROOT / "README.md").read_text()
SERVERS = ("aiolb serve", "python echo.py")


def test_every_block_is_tested() -> None:
    """There are no blocks but shell, Python and output."""
    assert set(re.findall(r"^```(\S+)$", README, re.MULTILINE)) == {"sh", "python", "text"}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/how-to/keys.md"])
def test_links_lead_somewhere(document: str) -> None:
    """Each link to a file of the project leads to one."""
    path = ROOT / document
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in link]
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_options_exist() -> None:
    """The table names options that `aiolb serve` has."""
    help_text = subprocess.run(
        [sys.executable, "-m", "aiolb", "serve", "--help"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout
    named = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", README.partition("## Options of")[2]))
    assert len(named) > 8
    assert [option for option in named - {"--help"} if option not in help_text] == []


@pytest.mark.parametrize("command", [line for line in commands("README.md") if line.startswith("make ")])
def test_make_targets_exist(command: str, needs: Callable[[str, str], str]) -> None:
    """The make commands name targets that the Makefile has."""
    make = needs("make", "make")
    subprocess.run([make, "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture
def namespaces(
    tmp_path: Path, missing: Callable[[str], None], needs: Callable[[str, str], str]
) -> Iterator[Namespaces]:
    """Namespaces in which every port is free, with the programs of the README in the working directory."""
    if os.geteuid() != 0:
        missing("needs root, for namespaces and the eBPF balancer")
    for block in blocks("README.md", "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, "the first line of a program is its file name"
        (tmp_path / name[1]).write_text(block)
    with opened(tmp_path, needs("ip", "iproute2")) as namespaces:
        yield namespaces


@pytest.mark.usefixtures("nothing_left")
def test_commands_and_programs(namespaces: Namespaces) -> None:
    """Everything runs in order: members start and serve, each source stays on one, takeover and echo work."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:
        for command in commands("README.md"):
            if command.startswith(SERVERS):
                servers[command] = stack.enter_context(namespaces.server(command))
            elif command.startswith("aiolb flood"):
                assert namespaces.run(command).startswith("sent 3,000 datagrams")
            elif command == "python publish.py":
                assert "sent=500" in namespaces.run(command)
            else:
                assert command.startswith("make "), f"nobody knows how to test {command!r}"
        printed = [_end(command, server) for command, server in servers.items() if " print " in command]
        for command, server in servers.items():
            if "echo.py" in command:
                assert server.stop() == []
    sources = [Counter(line.split(":")[0] for line in lines) for lines in printed]
    assert sum(sources, Counter()) == {f"127.0.0.{n}": 100 for n in range(2, 32)}
    assert sum(map(len, sources)) == 30, "a source was on two members"


def _end(command: str, server: Server) -> list[str]:
    """The member at index 0 is displaced by the last command; the others are stopped."""
    displaced = "--index 0" in command and "--takeover" not in command
    return server.end() if displaced else server.stop()


@pytest.mark.usefixtures("nothing_left")
def test_echo_answers(namespaces: Namespaces) -> None:
    """The echo program sends back what it gets."""
    client = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10);"
        "s.sendto(b'hello', ('127.0.0.1', 9000)); print(s.recv(100))"
    )
    with namespaces.server("python echo.py") as server:
        assert namespaces.run(shlex.join(["python", "-c", client])) == "b'hello'\n"
        server.stop()
