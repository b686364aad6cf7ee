"""docs/how-to/docker.md is true: its commands are run as they stand, but for the bases, which nobody can pull here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documents import blocks
from engine import ROOT, Engine

DOCUMENT = "docs/how-to/docker.md"
BASES = ["python:3.13-slim", "debian:bookworm-slim"]
LEFT_OUT = [".git", ".venv", "site", "dist", "build", "*.egg-info", ".*_cache", ".hypothesis"]
"""Nothing of them is in an image."""
APP = """from aiolb import Collector


class MyCollector(Collector):
    async def handle(self, datagram, addr):
        print(datagram.decode(), flush=True)
"""
LOGS = "docker logs collectors"
LINE = re.compile(r"(collector-\d)-1 .*?(\d+\.\d+\.\d+\.\d+):\d+ +64 bytes ")


def commands() -> list[str]:
    """What people are to type, in order."""
    text = "".join(blocks(DOCUMENT, "console")).replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


class Terminal:
    """Runs commands as in a terminal, in a copy of the checkout, or, of one's own collector, beside that."""

    def __init__(self, engine: Engine, checkout: Path, own: Path) -> None:
        self._engine = engine
        self._checkout = checkout
        self._own = own

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command; what it prints can be read."""
        # It allocates a terminal, as people have one.
        terminal = ["script", "--quiet", "--return", "--command", command, os.devnull]
        return subprocess.Popen(
            terminal,
            cwd=self._own if " my-collector" in command else self._checkout,
            env=self._engine.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Run a command to its end: its status and what it printed."""
        with self.start(command) as process:
            printed, _ = process.communicate()
        return process.returncode, printed


@pytest.fixture
def terminal(engine: Engine, tmp_path: Path) -> Iterator[Terminal]:
    """A folder like the one that people are in, and the bases under the names that they have elsewhere."""
    checkout, own = tmp_path / "aiolb", tmp_path / "own"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    own.mkdir()
    (own / "app.py").write_text(APP)
    (dockerfile,) = blocks(DOCUMENT, "dockerfile")
    (own / "Dockerfile").write_text(dockerfile)
    for name in BASES:
        engine.docker("tag", "aiolb-base", name)
    yield Terminal(engine, checkout, own)
    engine.ask("compose", f"--file={checkout}/docker/compose.yaml", "down", "--volumes", "--timeout=20")
    engine.ask("rm", "--force", *engine.docker("ps", "--all", "--quiet").split())
    engine.docker("image", "rm", *BASES)


def follow(terminal: Terminal, command: str) -> None:
    """Read what collectors print until each of three sources was seen some times; each is with one collector."""
    seen: dict[str, list[str]] = {}
    with terminal.start(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := LINE.search(line):
                seen.setdefault(found[2], []).append(found[1])
            if len(seen) == 3 and all(len(lines) > 3 for lines in seen.values()):
                break
        process.terminate()
    assert len(seen) == 3
    assert all(len(set(collectors)) == 1 for collectors in seen.values()), seen


def test_commands(terminal: Terminal, wait_until: Callable[..., None]) -> None:
    """Each command works in its turn; each source stays on one collector; status finds all members alive."""
    printed = {}
    for command in commands():
        if "--follow" in command:
            follow(terminal, command)
        elif " aiolb status" in command:  # people type more slowly than collectors start
            wait_until(lambda command=command: terminal.run(command)[0] == 0, f"all are alive: {command}")
        elif command == LOGS:
            wait_until(lambda: "supervising" in terminal.run(LOGS)[1], "it serves")
        else:
            status, printed[command] = terminal.run(command)
            assert status == 0, (command, printed[command])
        if " flood " in command:
            wait_until(lambda: terminal.run(LOGS)[1].count(" 64 bytes ") == 100, "all are printed")
    (doctor,) = (text for command, text in printed.items() if command.endswith("aiolb doctor"))
    assert not re.search(r"^problem", doctor, re.MULTILINE), doctor
    compiled = [text for command, text in printed.items() if command.endswith("aiolb-builder")]
    assert [text.count("the same as is checked in") for text in compiled] == [2, 2]


def test_own_collector(terminal: Terminal, engine: Engine, wait_until: Callable[..., None]) -> None:
    """The Dockerfile makes an image that runs as the document says, with its name in place of ours."""
    (build,) = (command for command in commands() if " my-collector" in command)
    (run,) = (command for command in commands() if "--name collectors" in command)
    volume, flood = (next(c for c in commands() if part in c) for part in ("volume create", " flood "))
    for command in (build, volume, re.sub(" aiolb$", " my-collector", run)):
        status, printed = terminal.run(command)
        assert status == 0, printed
    wait_until(lambda: "supervising" in terminal.run(LOGS)[1], "it serves")
    status, printed = terminal.run(flood.replace("10001", "2055"))
    assert status == 0, printed
    wait_until(lambda: terminal.run(LOGS)[1].count("aiolb says hello") >= 100, "all are printed")
    engine.docker(*shlex.split("stop --time 40 collectors"))
    assert engine.docker("inspect", "--format={{.State.ExitCode}}", "collectors").strip() == "0"
    engine.docker("rm", "collectors")
    engine.docker("volume", "rm", "bpffs")
