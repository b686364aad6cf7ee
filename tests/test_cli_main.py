"""What the commands are is told whole, and what is wrong with one as every other mistake."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from aiolb.cli import main


@pytest.mark.parametrize("arguments", [["--help"], ["group", "--help"]])
def test_the_list_of_commands(arguments):
    """In a terminal of 80 columns no line of it is cut."""
    output = CliRunner().invoke(main, arguments, terminal_width=80).output
    assert "Commands:" in output
    assert "..." not in output.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trace", "127.0.0.1:9000"], "aiolb trace --group 127.0.0.1:9000"),
        (["guard", "tcp:[::1]:9000"], "aiolb guard --group tcp:[::1]:9000"),
        (["guard", "everything"], "see: aiolb guard --help"),
        (["status", "127.0.0.1:9000", "127.0.0.1:9001"], "see: aiolb status --help"),
    ],
)
def test_a_group_without_its_option(arguments, hint):
    """Who gives a group as an argument where it is an option is told what to write."""
    done = CliRunner().invoke(main, arguments, prog_name="aiolb")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, f"  hint: {hint}")


def test_an_option_that_is_missing():
    """It is told in one line, with a hint; exit status 2."""
    done = CliRunner().invoke(main, ["move", "7"], prog_name="aiolb")
    assert (done.exit_code, done.stderr.splitlines()) == (
        2,
        ["aiolb: error: Missing option '--to'", "  hint: see: aiolb move --help"],
    )


@pytest.mark.parametrize("command", ["rebalance", "status", "top"])
def test_a_time_that_is_no_number(command):
    """NaN is in no range, though it is not below or above one."""
    done = CliRunner().invoke(main, [command, "--interval", "nan"], prog_name="aiolb")
    told = "aiolb: error: Invalid value for '--interval': 'nan' is no number of seconds"
    assert (done.exit_code, done.stderr.splitlines()[0]) == (2, told)
