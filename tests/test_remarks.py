"""What is remarkable about sockets that joined is told, once each; nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import structlog.testing

from aiolb import remarks, sockets
from aiolb.address import Address
from aiolb.errors import AiolbError, PrivilegeError
from aiolb.sockets import Holder

HERE = Address("127.0.0.1", 0)

pytestmark = pytest.mark.usefixtures("nothing_left")


@dataclass
class Joined:
    """How sockets joined."""

    balancer: str = "ebpf"
    fallback: AiolbError | None = None
    others: tuple[Holder, ...] = ()
    cautions: dict[str, AiolbError] = field(default_factory=dict)


@pytest.fixture
def remarked():
    """``remarked(joined, rcvbuf, unpinned=...)``: the events without the address, which each has."""

    def tell(joined, rcvbuf=1, **options):
        with structlog.testing.capture_logs() as events, sockets.bind_reuseport(HERE) as sock:
            remarks.on_joined(HERE, joined, sock, rcvbuf, **options)
        assert {event.pop("bind") for event in events} <= {"127.0.0.1:0"}
        assert {event.pop("log_level") for event in events} <= {"warning"}
        return events

    return tell


@pytest.mark.parametrize(("backlog", "remarks_made"), [(128, 0), (129, 1)])
def test_a_capped_backlog(monkeypatch, backlog, remarks_made):
    """A backlog that the kernel lowers is told with both numbers and the sysctl."""
    monkeypatch.setattr("aiolb.listening.backlog_limit", lambda: 128)
    with structlog.testing.capture_logs() as events, sockets.bind_listening(HERE, backlog=backlog) as sock:
        remarks.on_joined(HERE, Joined(), sock, backlog)
    assert [(event["event"], event["wanted"], event["given"], event["hint"]) for event in events] == [
        ("backlog_capped", 129, 128, "as root: sysctl -w net.core.somaxconn=129")
    ] * remarks_made


def test_nothing_remarkable(remarked):
    """Where all is as it was asked for nothing is said."""
    assert remarked(Joined()) == []


def test_cautions(remarked):
    """What a group warns its member of is told under its name, with its reason and what to do."""
    cautions = {"program_kept": AiolbError("it goes on with its own", hint="leave --debug out")}
    assert remarked(Joined(cautions=cautions)) == [
        {"event": "program_kept", "reason": "it goes on with its own", "hint": "leave --debug out"}
    ]


def test_a_fallback(remarked):
    """Another balancer than was wanted is told with the reason, what to do, and what is missing."""
    reason = PrivilegeError("this user may not load BPF programs", hint="run as root")
    assert remarked(Joined("classic", fallback=reason)) == [
        {
            "event": "balancer_fallback",
            "balancer": "classic",
            "reason": "this user may not load BPF programs",
            "hint": "run as root",
            "missing": "no failover, slots, takeover or aiolb status; affinity only while all members run",
        }
    ]


def test_no_pins(remarked):
    """A group that is not pinned although it was to be is told with the reason, what to do, and what is missing."""
    (event,) = remarked(Joined(), unpinned=PrivilegeError("no bpffs is mounted", hint="mount one"))
    assert event == {
        "event": "unpinned",
        "reason": "no bpffs is mounted",
        "hint": "mount one",
        "missing": event["missing"],
    }
    assert "no other process can look at the group" in event["missing"]


def test_other_sockets(remarked):
    """Sockets outside of the group are told with whose they are."""
    assert remarked(Joined(others=(Holder(0, 12), Holder(0, None)))) == [
        {
            "event": "other_sockets",
            "holders": "pid 12, user root; user root",
            "hint": "they are outside of the group and get nothing; fine for members that drain",
        }
    ]


def test_a_small_buffer(remarked):
    """A receive buffer below what was asked for is told with both sizes and the command that raises the limit."""
    (event,) = remarked(Joined(), rcvbuf=1 << 29)
    assert 0 < event["given"] < event["wanted"] == 1 << 29
    assert (event["event"], event["hint"]) == (
        "receive_buffer_capped",
        f"as root: sysctl -w net.core.rmem_max={1 << 29}",
    )
