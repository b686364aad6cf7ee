"""Members without a group have memory to tell in all the same, and what they told is told."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf.abi import Report
from aiolb.bpf.balancers import KernelBalancer
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.state import cookie

pytestmark = pytest.mark.usefixtures("nothing_left")

EMPTY = Report.unpack(bytes(Report.STRUCT.size))


def test_what_members_told_without_a_group():
    """Who has the descriptor tells; only what is about the socket that the member has now is told."""
    with ExitStack() as stack:
        first = stack.enter_context(sockets.bind_reuseport(Address("127.0.0.1", 0)))
        address = Address(*first.getsockname())
        second, third = (stack.enter_context(sockets.bind_reuseport(address)) for _ in range(2))
        balancer = KernelBalancer([first, second])
        stack.callback(balancer.close, forget=True)
        assert balancer.told() == {}
        worker = stack.enter_context(closing(SharedReports.inherited(balancer.reports_descriptor)))
        worker.write(0, replace(EMPTY, cookie=cookie(first), received=3))
        worker.write(1, replace(EMPTY, cookie=cookie(first), received=4))
        worker.write(2, replace(EMPTY, cookie=cookie(third), received=5))
        assert {index: told.received for index, told in balancer.told().items()} == {0: 3}
        balancer.add([first, second, third])
        assert {index: told.received for index, told in balancer.told().items()} == {0: 3, 2: 5}
        balancer.remove([first, second, third])
        assert balancer.told().keys() == {0}
