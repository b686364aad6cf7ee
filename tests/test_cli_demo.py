"""`aiolb demo` without privileges: what it prints, and when it fails."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from aiolb.cli import demo
from aiolb.cli.main import main
from aiolb.verification import MemberSummary, Summary

pytestmark = pytest.mark.usefixtures("nothing_left")

SUMMARY = {
    "members": (MemberSummary(0, 20, 334), MemberSummary(1, 40, 666)),
    "sources": 60,
    "split_sources": 0,
    "split_addresses": (),
    "sent": 1000,
    "received": 1000,
    "lost": 0,
    "unexpected": 0,
    "duplicated": 0,
    "reordered": 0,
    "unstamped": 0,
}


@pytest.fixture
def outcome(monkeypatch):
    """Run the demo with a made-up outcome: ``outcome("--json", lost=1)``."""

    def invoke(*options, **changes):
        async def run(*_, **__):
            return "classic", Summary(**SUMMARY | changes)

        monkeypatch.setattr(demo, "_run", run)
        return CliRunner().invoke(main, ["demo", *options])

    return invoke


def test_json(outcome):
    """The JSON has these members, and no others."""
    result = outcome("--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "balancer": "classic",
        "members": [
            {"index": 0, "sources": 20, "datagrams": 334},
            {"index": 1, "sources": 40, "datagrams": 666},
        ],
        "sources": 60,
        "split_sources": 0,
        "sent": 1000,
        "received": 1000,
        "lost": 0,
        "duplicated": 0,
    }


def test_table(outcome):
    """The table has a row for each member, and the totals below fit in 80 columns."""
    result = outcome()
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[3:5] == ["│ 0      │      20 │       334 │ 33.4% │", "│ 1      │      40 │       666 │ 66.6% │"]
    assert lines[-2:] == ["sent 1,000, received 1,000, lost 0, duplicated 0", "sources on more than one member 0"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("changes", [{"lost": 1}, {"duplicated": 1}, {"split_sources": 1}])
def test_failures(outcome, changes):
    """Whatever is lost, doubled or split makes the exit status 1; the result is printed all the same."""
    result = outcome("--json", **changes)
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout)["sources"] == 60


def test_nothing_received(outcome):
    """A table can be made of nothing."""
    result = outcome(received=0, lost=1000, members=(MemberSummary(0, 0, 0),))
    assert result.exit_code == 1
    assert "│ 0      │       0 │         0 │  0.0% │" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "0"], "the rate is 0"),
        (["--rate", "nan"], "nan datagrams per second for 3 seconds cannot be sent"),
        (["--rate", "inf"], "inf datagrams per second for 3 seconds cannot be sent"),
        (["--seconds", "nan"], "2000 datagrams per second for nan seconds cannot be sent"),
        (["--seconds", "inf"], "2000 datagrams per second for inf seconds cannot be sent"),
        (["--seconds", "-1"], "2000 datagrams per second for -1 seconds cannot be sent"),
        (["--sources", "17000000"], "17000000 sources are not from 1 to 16,777,213"),
        (["--members", "0"], "Invalid value for '--members': 0 is not in the range 1<=x<=1024"),
        (["--balancer", "none"], "Invalid value for '--balancer': 'none' is not one of 'auto', 'ebpf', 'classic'"),
    ],
)
def test_mistakes(options, message):
    """What cannot be sent is told in one line before a member is started."""
    result = CliRunner().invoke(main, ["demo", *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0].startswith(f"aiolb: error: {message}")
    assert len(result.stderr.splitlines()) == 2


def test_classic():
    """The demo with the classic balancer needs no privilege: two members, nothing lost, nothing split."""
    options = ["demo", "--json", "--balancer", "classic", "--members", "2", "--sources", "20", "--seconds", "0.2"]
    result = CliRunner().invoke(main, options)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    members = found.pop("members")
    assert found == {
        "balancer": "classic",
        "sources": 20,
        "split_sources": 0,
        "sent": 400,
        "received": 400,
        "lost": 0,
        "duplicated": 0,
    }
    assert [member["index"] for member in members] == [0, 1]
    assert (sum(m["sources"] for m in members), sum(m["datagrams"] for m in members)) == (20, 400)
