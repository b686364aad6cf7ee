"""What a socket tells: all that was counted since it joined, by whichever process, and only in its own entry."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from aiolb.bpf.abi import MAX_MEMBERS, Report
from aiolb.bpf.shared_reports import SharedReports
from aiolb.handler_times import BUCKETS
from aiolb.receive.contract import SIZES
from aiolb.reporter import LOOKS, Reporter
from aiolb.sketch import EXACT, Sketch


class Times:
    """Times of handlers that were sampled."""

    def __init__(self):
        self.buckets = [0] * BUCKETS
        self.total_ns = self.samples = 0

    def sample(self):
        """Count the calls."""
        self.samples += 1


class Receiver:
    """A receiver that has seen sources."""

    def __init__(self):
        self.batch_sizes = [0] * SIZES
        self.sketch = frozenset(), b""
        self._hosts = set()
        self.new = {}

    def came(self, new):
        """Datagrams of these hosts came."""
        self.new = new
        self._hosts |= new.keys()
        found = Sketch.of(map(ip_address, self._hosts))
        self.sketch = found.marks, found.registers

    def senders(self):
        """What came since the last call."""
        new, self.new = self.new, {}
        return new, 0


class Socket:
    """A socket with its counters."""

    def __init__(self):
        self.counts = dict.fromkeys(("received", "handled", "errors", "in_flight", "sent"), 0)
        self.receiver = Receiver()
        self.times = Times()

    def reporter(self, index, cookie, reports):
        """What tells of it."""
        return Reporter(
            index,
            cookie,
            reports,
            lambda: self.counts,
            sources=self.receiver,
            times=self.times,
            batch_sizes=lambda: self.receiver.batch_sizes,
        )


@pytest.fixture
def reports():
    """Memory as that of the map."""
    shared = SharedReports(mmap.mmap(-1, MAX_MEMBERS * Report.STRUCT.size))
    yield shared
    shared.close()


def test_what_is_told(reports):
    """Counters, queue and drops, times, sizes, sources; and the next handlers are timed."""
    sock = Socket()
    reporter = sock.reporter(1, 77, reports)
    assert (reports.read(1).cookie, reports.read(1).received, reports.read(0)) == (77, 0, None)
    sock.counts |= {"received": 9, "handled": 7, "errors": 1, "in_flight": 1}
    sock.counts |= {"queued_bytes": 3, "queue_limit": 10, "kernel_drops": 2}
    sock.times.buckets[4], sock.times.total_ns, sock.receiver.batch_sizes[2] = 7, 99, 4
    sock.receiver.came({"127.0.0.1": 8, "127.0.0.2": 1})
    reporter.write()
    told = reports.read(1)
    assert replace(told, checksum=0) == reporter.latest
    assert (told.received, told.handled, told.errors, told.in_flight) == (9, 7, 1, 1)
    assert (told.queued_bytes, told.queue_limit, told.kernel_drops) == (3, 10, 2)
    assert (told.handler_times[4], told.handler_ns, told.batch_sizes[2]) == (7, 99, 4)
    assert (told.sources, told.top_error, told.top[2], told.top[6]) == (2, 0, 8, 1)
    assert told.top[3] > told.top[7] > 0
    assert (told.pid, told.uid) == (os.getpid(), os.geteuid())
    assert told.started_ns <= told.written_ns
    assert sock.times.samples == 2


def test_the_next_process_goes_on(reports):
    """Another process on the same socket adds to what was counted; on another socket it begins at nothing."""
    sock = Socket()
    sock.counts |= {"received": 9, "sent": 2, "in_flight": 1}
    sock.times.buckets[4] = 5
    sock.receiver.came({"127.0.0.1": 9})
    sock.reporter(0, 77, reports).write()
    following = Socket()
    reporter = following.reporter(0, 77, reports)
    assert reports.read(0).received == 9
    following.counts |= {"received": 1, "sent": 1}
    following.times.buckets[4] = 1
    following.receiver.came({"127.0.0.1": 1, "127.0.0.2": 1})
    reporter.write()
    told = reports.read(0)
    assert (told.received, told.sent, told.in_flight, told.handler_times[4]) == (10, 3, 0, 6)
    assert (told.sources, told.top[2], told.top_error) == (2, 10, 0)
    Socket().reporter(0, 78, reports)
    assert (reports.read(0).cookie, reports.read(0).received, reports.read(0).sources) == (78, 0, 0)


def test_more_sources_than_are_named(reports):
    """Who goes on does not know the sources that were not named: it says what their counts may lack."""
    sock = Socket()
    sock.receiver.came({f"127.0.0.{number}": number for number in range(1, 21)})
    sock.reporter(0, 77, reports).write()
    assert reports.read(0).sources == 20
    following = Socket()
    reporter = following.reporter(0, 77, reports)
    following.receiver.came({"127.0.0.1": 1})
    reporter.write()
    assert (reports.read(0).sources, reports.read(0).top_error, reports.read(0).top[2]) == (20, 4, 1)
    assert reports.read(0).top[4 + 2] == 20


def test_sources_over_several_processes(reports):
    """They are counted exactly over all of them up to EXACT; from then on what is told is registers."""
    first, second = Socket(), Socket()
    first.receiver.came({f"127.0.1.{number}": 1 for number in range(200)})
    first.reporter(0, 77, reports).write()
    reporter = second.reporter(0, 77, reports)
    for number in range(EXACT - 200):
        second.receiver.came({f"127.0.{2 + number // 200}.{number % 200}": 1})
    reporter.write(last=True)
    assert reports.read(0).sources == EXACT
    second.receiver.came({"127.0.9.9": 1})
    reporter.write(last=True)
    told = reports.read(0)
    assert told.sources == 0
    hosts = [f"127.0.1.{number}" for number in range(200)] + ["127.0.9.9"]
    hosts += [f"127.0.{2 + number // 200}.{number % 200}" for number in range(EXACT - 200)]
    assert struct.pack("=256Q", *told.sketch) == Sketch.of(map(ip_address, hosts)).to_bytes()


def test_an_entry_has_one_writer(reports):
    """Whoever joined last writes; who was there before does not, until it is back."""
    old, new = Socket(), Socket()
    first = old.reporter(0, 77, reports)
    second = new.reporter(0, 78, reports)
    old.counts |= {"received": 1}
    first.write()
    assert reports.read(0).cookie == 78
    assert first.latest.received == 1
    first.claim()
    second.write()
    assert (reports.read(0).cookie, reports.read(0).received) == (77, 1)


def test_sources_are_looked_at_less_often(reports):
    """It costs more when they are many: one report in LOOKS has new ones, and the last one."""
    sock = Socket()
    reporter = sock.reporter(0, 77, reports)
    reporter.write()
    sock.receiver.came({"127.0.0.1": 1})
    for _ in range(LOOKS - 1):
        reporter.write()
        assert reports.read(0).sources == 0
    reporter.write()
    assert reports.read(0).sources == 1
    sock.receiver.came({"127.0.0.2": 1})
    reporter.write(last=True)
    assert reports.read(0).sources == 2


def test_without_a_group():
    """Without a group the report is kept for who asks for it here."""
    sock = Socket()
    reporter = sock.reporter(0, 77, None)
    sock.counts |= {"received": 4}
    reporter.write()
    assert reporter.latest.received == 4
