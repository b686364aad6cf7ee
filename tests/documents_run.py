"""Runs a document: every command and program of it, in order, as they stand."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from documents import ROOT, Namespaces, Server, blocks_of, opened, shown_files


@contextmanager
def running(document: str, ip: str, given: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A document ready to be run, in a folder that all users may read, with the programs that it shows, and others."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiolb-document-")))
        folder.chmod(0o755)
        for name, text in {**shown_files(document), **(given or {})}.items():
            (folder / name).write_text(text)
        (folder / "examples").symlink_to(ROOT / "examples")
        yield Running(stack.enter_context(opened(folder, ip)), stack)


class Running:
    """What was started of a document, in its namespaces; stop it in the end."""

    def __init__(self, namespaces: Namespaces, stack: ExitStack) -> None:
        self.namespaces = namespaces
        self.servers: dict[str, Server] = {}
        self.printed: dict[str, str] = {}
        self._stack = stack

    def run(self, document: str) -> None:
        """Run a document to its end, and stop what serves."""
        for block in blocks_of(document):
            if block.remark == "not run" or block.language != "sh":
                continue
            if block.remark == "stopped":
                self.stop()
            for command in block.commands:
                self._start(command)
        self.stop()

    def _start(self, command: str) -> None:
        if command.startswith("make "):  # these make what tests run in, or run them: the target is there
            subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)  # noqa: S607 - found by PATH on every system
            return
        server = self._stack.enter_context(self.namespaces.started(command))
        if server.tells_of(b"ready"):
            self.servers[command] = server
        else:
            self.printed[command] = "\n".join(server.end())

    def stop(self) -> None:
        """Stop what still serves, as Ctrl-C does; all must end well."""
        for command, server in self.servers.items():
            self.printed[command] = "\n".join(server.stop())
        self.servers.clear()
