"""The README is true: its commands and programs are run as they stand, in namespaces of their own."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DEADLINE = 10.0
"""Seconds until a process that does not get ready has failed."""
SERVERS = ("aiolb serve", "python echo.py")
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}


def blocks(language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command, in order."""
    return [line for block in blocks("sh") for line in block.splitlines() if line]


def test_every_block_is_tested() -> None:
    """There are no blocks but shell, Python and output."""
    assert set(re.findall(r"^```(\S+)$", README, re.MULTILINE)) == {"sh", "python", "text"}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
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


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(command: str, needs: Callable[[str, str], str]) -> None:
    """The make commands name targets that the Makefile has."""
    make = needs("make", "make")
    subprocess.run([make, "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)


class Namespaces:
    """A network and a mount namespace with an empty bpffs, and what runs in them."""

    def __init__(self, folder: Path, holder: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._enter = ["nsenter", f"--target={holder.pid}", "--net", "--mount", "--root", f"--wd={folder}", "--"]

    @contextmanager
    def server(self, command: str) -> Iterator[Server]:
        """Run a command that serves, ready when this yields."""
        number = len(list(self._folder.glob("*.out")))
        with (self._folder / f"{number}.out").open("wb") as output:
            process = subprocess.Popen(
                [*self._enter, *shlex.split(command)], stdout=output, stderr=subprocess.PIPE, env=ENVIRONMENT
            )
        with process:
            try:
                server = Server(process, self._folder / f"{number}.out")
                server.wait_for(b"ready")
                yield server
            finally:
                process.kill()

    def run(self, command: str) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(
            [*self._enter, *shlex.split(command)], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        return done.stdout


class Server:
    """A process that serves, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output
        self._log = b""

    def wait_for(self, event: bytes) -> None:
        """Read the log until it tells of an event."""
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stderr, selectors.EVENT_READ)
            while event not in self._log:
                assert selector.select(DEADLINE), f"no {event!r} in {self._log!r}"
                more = os.read(self._process.stderr.fileno(), 65536)
                assert more, f"ended without {event!r}: {self._log.decode()}"
                self._log += more

    def stop(self) -> list[str]:
        """Stop it as Ctrl-C does; the lines that it printed."""
        self._process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> list[str]:
        """Wait for its own, good end; the lines that it printed."""
        _, log = self._process.communicate(timeout=DEADLINE)
        assert self._process.returncode == 0, (self._log + log).decode()
        return self._output.read_text().splitlines()


@pytest.fixture
def namespaces(
    tmp_path: Path, missing: Callable[[str], None], needs: Callable[[str, str], str]
) -> Iterator[Namespaces]:
    """Namespaces in which every port is free, with the programs of the README in the working directory."""
    if os.geteuid() != 0:
        missing("needs root, for namespaces and the eBPF balancer")
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, "the first line of a program is its file name"
        (tmp_path / name[1]).write_text(block)
    script = f"{needs('ip', 'iproute2')} link set lo up && mount -t bpf bpf /sys/fs/bpf && echo ready && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", script],  # noqa: S607 - found by PATH on every system
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:  # the end of its input is the end of the namespaces
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Namespaces(tmp_path, holder)


@pytest.mark.usefixtures("nothing_left")
def test_commands_and_programs(namespaces: Namespaces) -> None:
    """Everything runs in order: members start and serve, each source stays on one, takeover and echo work."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:
        for command in commands():
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
