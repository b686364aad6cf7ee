"""The chooser: compiled parts where they were built, plain ones with a log line where not."""

from __future__ import annotations

import sys

import pytest
import structlog

from aiolb.errors import StartError
from aiolb.receive import choose

COMPILED = ("_fast", "_fast_pending", "_fast_replies", "_fast_step")


@pytest.fixture
def not_built(monkeypatch):
    """An installation without a compiler."""
    for name in COMPILED:
        monkeypatch.setitem(sys.modules, f"aiolb.receive.{name}", None)


@pytest.mark.usefixtures("not_built")
def test_the_plain_parts_are_chosen_with_a_log_line(monkeypatch):
    """Where the compiled parts are missing, the log says so and what to do."""
    monkeypatch.delenv(choose.REQUIRE_FAST, raising=False)
    with structlog.testing.capture_logs() as entries:
        assert choose.best() is choose.PLAIN
    (entry,) = entries
    assert (entry["event"], entry["receiver"]) == ("fast_receiver_missing", "PlainReceiver")
    assert "pip install" in entry["hint"]


@pytest.mark.usefixtures("not_built")
def test_they_can_be_required(monkeypatch):
    """AIOLB_REQUIRE_FAST=1 makes it an error with a hint."""
    monkeypatch.setenv(choose.REQUIRE_FAST, "1")
    with pytest.raises(StartError, match="AIOLB_REQUIRE_FAST=1") as caught:
        choose.best()
    assert "compiler" in caught.value.hint


def test_the_compiled_parts_are_chosen_where_they_are(parts):
    """All of them, and silently."""
    if parts is choose.PLAIN:
        pytest.skip("of the compiled parts")
    with structlog.testing.capture_logs() as entries:
        assert choose.best() == parts
    assert entries == []
    assert parts.receiver.__name__ == "FastReceiver"
