"""What a member did, over all its workers, adds up; and nothing that is lost is silent."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from aiolb import listening, sockets
from aiolb.address import Address
from aiolb.member_report import MAX_COLLECTOR_REPORTS, MemberReport

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def sock():
    """A socket of a member, with the smallest receive buffer."""
    with sockets.bind_reuseport(Address("127.0.0.1", 0)) as bound:
        sockets.set_receive_buffer(bound, 1)
        yield bound


def send(sock, number):
    """Send that many datagrams."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in range(number):
            sender.sendto(b"x", sock.getsockname())


def ended(**counters):
    """A worker that ended with a report."""
    return SimpleNamespace(report={"index": 0, "pid": 7, "kernel_drops": 99, "collector": {}, **counters})


def test_sums(sock):
    """Counters of workers are added; what belongs to the socket, or to one moment, is not."""
    report = MemberReport(2, [sock], collectors=False)
    report.add(ended(handled=3, waiting=1))
    report.add(ended(handled=4, queued_bytes=5))
    report.add(SimpleNamespace(report=None, held=6, has=lambda _: True))
    report.close(kept=False)
    assert report.as_dict() == {
        "index": 2,
        "workers": 0,
        "killed": 1,
        "lost_at_most": 6,
        "handled": 7,
        "abandoned": 0,
        "kernel_drops": 0,
        "collector": [],
    }


def test_connections_that_nobody_accepted(wait_until):
    """What waits at a listening socket when it is closed is abandoned; a socket that is kept keeps it."""
    with sockets.bind_listening(Address("127.0.0.1", 0), backlog=8) as listens, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(listens.getsockname()))
        wait_until(lambda: listening.waiting_connections(listens) == 3, "three connections")
        for kept, abandoned in ((True, 0), (False, 3)):
            report = MemberReport(0, [listens], collectors=False)
            report.add(ended(accepted=5, open=2))
            report.close(kept=kept)
            told = report.as_dict()
            assert (told["accepted"], told.get("abandoned", 0), "open" in told) == (5, abandoned, False)


def test_drops_are_those_of_the_socket(sock):
    """The kernel's drops count once, however many workers saw them, and not those from before."""
    send(sock, 100)
    before = sockets.memory(sock).drops
    report = MemberReport(0, [sock], collectors=False)
    send(sock, 50)
    for _ in range(3):
        report.add(ended())
    report.close(kept=True)
    report.close(kept=True)
    assert before > 0
    assert report.as_dict()["kernel_drops"] == sockets.memory(sock).drops - before == 50


def test_what_is_left_is_abandoned(sock):
    """Datagrams that nobody read count as abandoned, unless somebody keeps the socket."""
    send(sock, 1)
    kept = MemberReport(0, [sock], collectors=False)
    kept.close(kept=True)
    left = MemberReport(0, [sock], collectors=False)
    left.close(kept=False)
    left.close(kept=False)
    assert ("abandoned" in kept.as_dict(), left.as_dict()["abandoned"]) == (False, 1)


def test_the_last_reports_of_collectors(sock):
    """Of the reports of collectors the last ones are kept, so that memory does not grow with restarts."""
    report = MemberReport(0, [sock], collectors=True)
    for number in range(MAX_COLLECTOR_REPORTS + 1):
        report.add(SimpleNamespace(report={"collector": number}))
    report.close(kept=True)
    assert report.as_dict()["collector"] == list(range(1, MAX_COLLECTOR_REPORTS + 1))
