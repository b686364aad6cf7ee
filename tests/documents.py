"""What tests of the documents share: their code blocks, and namespaces in which their commands run as they stand."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deadline import DEADLINE

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
BLOCK = re.compile(
    r"(?:^<!-- (not run|stopped): (.+?) -->\n)?^```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
"""A code block, with what a comment before it says to who runs it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A code block. ``remark``: ``not run``, with the reason, or ``stopped``, for servers are to be stopped before."""

    remark: str
    reason: str
    language: str
    file: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What a shell would be given, one after the other; comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(document: str) -> list[Block]:
    """All code blocks of a document, in order."""
    return [Block(*(part or "" for part in found)) for found in BLOCK.findall((ROOT / document).read_text())]


def blocks(document: str, language: str) -> list[str]:
    """The text of a document's blocks of one language."""
    return [block.text for block in blocks_of(document) if block.language == language]


def commands(document: str) -> list[str]:
    """Every command of a document, in order; those of several lines are one."""
    return [command for block in blocks_of(document) if block.language == "sh" for command in block.commands]


def shown_files(document: str) -> dict[str, str]:
    """The programs that a document shows under a name: that of its block, or of its first line (``# echo.py``)."""
    found = {}
    for block in blocks_of(document):
        first = re.match(r"# (\w+\.py)\n", block.text)
        if name := block.file or (first and first[1]):
            found[name] = block.text
    return found


class Namespaces:
    """A network and a mount namespace with an empty bpffs, and what runs in them."""

    def __init__(self, folder: Path, holder: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self._enter = ["nsenter", f"--target={holder.pid}", "--net", "--mount", "--root", f"--wd={folder}", "--"]

    def start(self, command: str, **settings: Any) -> subprocess.Popen[Any]:
        """Start a command, with the settings of Popen; the caller ends it."""
        return subprocess.Popen([*self._enter, *_words(command)], env=ENVIRONMENT, **settings)

    @contextmanager
    def started(self, command: str) -> Iterator[Server]:
        """Start a command; it is killed at the end if it still runs then."""
        number = len(list(self.folder.glob("*.out")))
        with (self.folder / f"{number}.out").open("wb") as output:
            process = self.start(command, stdout=output, stderr=subprocess.PIPE)
        with process:
            try:
                yield Server(process, self.folder / f"{number}.out")
            finally:
                process.kill()

    @contextmanager
    def server(self, command: str) -> Iterator[Server]:
        """Run a command that serves, ready when this yields."""
        with self.started(command) as server:
            server.wait_for(b"ready")
            yield server

    def run(self, command: str, **environment: str) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(
            [*self._enter, *_words(command)],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT | environment,
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
        assert self.tells_of(event), f"ended without {event!r}: {self._log.decode()}"

    def tells_of(self, event: bytes) -> bool:
        """Read the log until it tells of an event, or the process has ended; whether it did."""
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stderr, selectors.EVENT_READ)
            while event not in self._log:
                assert selector.select(DEADLINE), f"no {event!r} in {self._log!r}"
                more = os.read(self._process.stderr.fileno(), 65536)
                if not more:
                    return False
                self._log += more
        return True

    def stop(self) -> list[str]:
        """Stop it as Ctrl-C does, if it has not ended by itself; the lines that it printed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> list[str]:
        """Wait for its own, good end; the lines that it printed."""
        _, log = self._process.communicate(timeout=DEADLINE)
        assert self._process.returncode == 0, (self._log + log).decode()
        return self._output.read_text().splitlines()


def _words(command: str) -> list[str]:
    """The arguments of a command; a shell finds the files that it names with a pattern."""
    return ["sh", "-c", f"exec {command}"] if "*" in command else shlex.split(command)


@contextmanager
def opened(folder: Path, ip: str) -> Iterator[Namespaces]:
    """Namespaces in which every port is free, with ``folder`` as the working directory; ``ip`` is iproute2's."""
    script = f"{ip} link set lo up && mount -t bpf bpf /sys/fs/bpf && echo ready && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", script],  # noqa: S607 - found by PATH on every system
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:  # the end of its input is the end of the namespaces
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Namespaces(folder, holder)
