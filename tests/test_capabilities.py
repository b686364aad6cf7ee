"""Capabilities as /proc tells them."""

from __future__ import annotations

import pytest

from aiolb import capabilities
from aiolb.capabilities import Capability


@pytest.mark.parametrize(
    ("bits", "held"),
    [
        ("0000000000000000", set()),
        ("0000008000000000", {Capability.CAP_BPF}),
        ("0000000000001000", {Capability.CAP_NET_ADMIN}),
        ("0000000000200000", {Capability.CAP_SYS_ADMIN, Capability.CAP_BPF, Capability.CAP_PERFMON}),
        ("000001ffffffffff", set(Capability)),
    ],
)
def test_effective(tmp_path, bits, held):
    """The effective set is read, not another one; CAP_SYS_ADMIN includes what was split off from it."""
    (tmp_path / "self").mkdir()
    status = f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{bits}\nCapBnd:\tffffffffffffffff\n"
    (tmp_path / "self/status").write_text(status)
    assert capabilities.effective(tmp_path) == held


def test_without_proc(tmp_path):
    """Without /proc it is an OSError that names the file."""
    with pytest.raises(FileNotFoundError, match="self/status"):
        capabilities.effective(tmp_path)
