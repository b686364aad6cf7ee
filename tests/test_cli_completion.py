"""`aiolb completion`: the scripts, and what a shell completes with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiolb.cli.completion import SHELLS
from aiolb.cli.main import main

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
WORDS = [
    ("aiolb ser", {"serve"}),
    ("aiolb serve --graceful", {"--graceful-timeout"}),
    ("aiolb serve --balancer c", {"classic"}),
    ("aiolb completion ", set(SHELLS)),
    ("aiolb wor", set()),
]


@pytest.mark.parametrize(("typed", "completed"), WORDS)
def test_bash(typed: str, completed: set[str], needs) -> None:
    """bash, with the script sourced, offers these words and no others."""
    script = (
        'source <(aiolb completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        "_aiolb_completion aiolb; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        [needs("bash", "bash"), "-c", script, "bash", *typed.split(" ")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == completed
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize(("typed", "completed"), WORDS)
def test_other_shells(shell: str, typed: str, completed: set[str]) -> None:
    """What the scripts of the other shells ask the command for has these words."""
    words = typed.split(" ")
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1) if shell == "zsh" else words[-1]}
    done = subprocess.run(
        [sys.executable, "-c", "from aiolb.cli import main; main(prog_name='aiolb')"],
        env={**ENVIRONMENT, **asked, "_AIOLB_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = done.stdout.split()
    if shell == "zsh":  # kind, word, help
        found = {answers[at + 1] for at, word in enumerate(answers) if word == "plain"}
    else:
        found = {
            line.removeprefix("plain,").partition("\t")[0] for line in done.stdout.splitlines() if "plain," in line
        }
    assert found == completed


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts(shell: str) -> None:
    """Each shell has a script of its own, which asks this command."""
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert f"_AIOLB_COMPLETE={shell}_complete" in done.output


def test_another_shell() -> None:
    """A shell that click does not know is refused."""
    done = CliRunner().invoke(main, ["completion", "tcsh"])
    assert done.exit_code == 2
    assert "tcsh" in done.output
