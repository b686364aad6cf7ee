"""`aiolb route` without a group: who would own a source."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
from click.testing import CliRunner

from aiolb.bpf import hashing, slots
from aiolb.bpf.keys import Key
from aiolb.cli import main


def route(*arguments):
    """Run the command; its exit status, output and errors."""
    done = CliRunner().invoke(main, ["route", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("key", ["source", "flow", "prefix/24,64"])
def test_a_group_that_is_not_there(key):
    """With a count, a seed and a key it says what a new group would do in which all are alive."""
    sources = [f"127.0.1.{number}" for number in range(1, 30)] + ["[fd00::1]"]
    status, output, error = route(
        *[f"{source}:7" for source in sources], "--count", 5, "--seed", 9, "--key", key, "--json"
    )
    assert (status, error) == (0, "")
    table = slots.assign(5)
    for source, found in zip(sources, json.loads(output)["routes"], strict=True):
        hashed = Key.parse(key).bytes_of(ip_address(source.strip("[]")), 7)
        slot = hashing.slot_of(9, hashed)
        assert found == {
            "source": source.strip("[]"),
            "port": 7,
            "slot": slot,
            "owner": table[slot],
            "owner_alive": True,
            "member": table[slot],
            "dropped_by": None,
        }


def test_sources_are_read_as_people_write_them():
    """IPv6 with and without brackets, IPv4 in IPv6, with and without a port."""
    _, output, _ = route("::1", "[::1]", "[::1]:5", "::ffff:127.0.0.1", "127.0.0.1:5", "--count", 2, "--seed", 1)
    assert [line.split()[0] for line in output.splitlines()[1:]] == [
        "::1",
        "::1",
        "[::1]:5",
        "127.0.0.1",
        "127.0.0.1:5",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1", "--count", 3], "without a group both --count and --seed are needed, and --group is not"),
        (["127.0.0.1", "--seed", 3], "without a group both --count and --seed are needed, and --group is not"),
        (["127.0.0.1", "--count", 0, "--seed", 3], "a group has 1 to 1024 members, not 0"),
        (["127.0.0.1", "--count", 1, "--seed", -3], "a seed is a number from 0 to 2^128 - 1, not -3"),
        (["host", "--count", 1, "--seed", 3], "'host' is no IP address"),
        (
            ["127.0.0.1", "--count", 1, "--seed", 3, "--key", "flow"],
            "a source alone does not tell where it goes: the key is flow",
        ),
        (
            ["127.0.0.1:5", "--count", 1, "--seed", 3, "--key", "random"],
            "a source alone does not tell where it goes: the key is random",
        ),
    ],
)
def test_mistakes(arguments, message):
    """What cannot be answered is refused with what to write."""
    status, output, error = route(*arguments)
    assert (status, output) == (2, "")
    assert error.splitlines()[0] == f"aiolb: error: {message}"
