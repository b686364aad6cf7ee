"""Each shell completes words as docs/how-to/shell.md says: the shell is real, and what it is told is the page's."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import select
import shlex
import sys
import time
from pathlib import Path

import documents
import pytest
from deadline import DEADLINE

from aiolb.bpf.abi import LAYOUT_VERSION

PAGE = "docs/how-to/shell.md"

# By the shell: its Debian package and others that it needs, its command, and what it is told before people type.
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "PS1='REA''DY> '; . /usr/share/bash-completion/bash_completion\n",
    ),
    "zsh": (["zsh", "-f", "-i"], "PS1='REA''DY> '; autoload -Uz compinit; compinit -u -d {folder}/dump\n"),
    "fish": (["fish", "-i"], "function fish_prompt; echo 'REA''DY> '; end\n"),
}
# Notes the words that it is called with, and is the real one for the shell's questions.
STAND_IN = """#!/bin/sh
if [ -n "$_AIOLB_COMPLETE" ]; then exec {real} "$@"; fi
if [ "$1" = completion ]; then exec {real} "$@"; fi
printf '%s\\n' "$@" > {folder}/called.new && mv {folder}/called.new {folder}/called
"""


@pytest.fixture
def folder(tmp_path):
    """A home for the shells, with the command that they complete."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "aiolb"
    real = shlex.quote(str(Path(sys.executable).with_name("aiolb")))
    command.write_text(STAND_IN.format(real=real, folder=shlex.quote(str(tmp_path))))
    command.chmod(0o755)
    return tmp_path


def installing(shell, folder):
    """The page's command for a shell, with a folder of this test's own in the place of the one that it writes to."""
    (command,) = [line for line in documents.commands(PAGE) if line.startswith(f"aiolb completion {shell} > ")]
    target = Path(command.partition("> ")[2])
    where = shlex.quote(str(target.parent))
    empty = shlex.quote(str(folder / "empty"))
    return f"mkdir -p {empty} {where} && mount --bind {empty} {where} && {command}"


class Terminal:
    """A shell in a terminal, with mounts of its own."""

    def __init__(self, command, environment):
        self.seen = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment)  # noqa: S606 - the child of this very line

    def type(self, text):
        """Type."""
        os.write(self._fd, text.encode())

    def wait_for(self, condition, what):
        """Read what the shell prints until a condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.seen.decode(errors='replace')}"
            if select.select([self._fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self._fd, 65536)
                except OSError as error:  # the shell has ended
                    assert error.errno == errno.EIO, error  # noqa: PT017 - nothing else is expected
                    pytest.fail(f"{what}: the shell ended: {self.seen.decode(errors='replace')}")

    def close(self):
        """Hang up, and wait for its end."""
        os.close(self._fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell, folder, needs, missing, private_mounts):
    """`aiolb sta`, Tab, `--js`, Tab is `aiolb status --json`: a command and an option."""
    needs(shell, shell)
    if shell == "bash" and not Path("/usr/share/bash-completion/bash_completion").exists():
        missing("bash-completion is not installed (apt-get install bash-completion)")
    command, told = SHELLS[shell]
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "TERM": "xterm",
    }
    script = f'{installing(shell, folder)} && exec "$@"'
    terminal = Terminal([*private_mounts, "sh", "-c", script, "sh", *command], environment)
    try:
        terminal.type(told.format(folder=folder))
        terminal.wait_for(lambda: b"READY>" in terminal.seen, "no prompt")  # what is typed is echoed otherwise
        terminal.type("aiolb sta\t--js\t\n")
        terminal.wait_for((folder / "called").exists, "the command was not run")
        assert (folder / "called").read_text().splitlines() == ["status", "--json"]
    finally:
        terminal.close()


def test_completion_for_oneself(folder, needs):
    """`source <(aiolb completion bash)` is enough in a bash without anything installed."""
    assert "`source <(aiolb completion bash)`" in (documents.ROOT / PAGE).read_text()
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "xterm"}
    terminal = Terminal([needs("bash", "bash"), "--norc", "--noprofile", "-i"], environment)
    try:
        terminal.type("source <(aiolb completion bash)\n")
        terminal.type("aiolb sta\t--js\t\n")
        terminal.wait_for((folder / "called").exists, "the command was not run")
        assert (folder / "called").read_text().splitlines() == ["status", "--json"]
    finally:
        terminal.close()


def test_the_version_that_is_shown():
    """The page shows the layout of today: who compares two versions looks for it."""
    (shown,) = documents.blocks(PAGE, "text")
    assert f", layout {LAYOUT_VERSION}, receiver compiled, sender compiled\n" in shown
