"""The bookkeeping of stamped datagrams, against naive models."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb.histogram import Histogram
from aiolb.stamp import Stamp
from aiolb.verification import MemberSummary, SequenceRanges, Verifier, merge_reports

RUN = 0xA10B
NOW = 1_700_000_000_000_000_000

sequences = st.lists(st.integers(0, 60), max_size=120)


def ranges_of(numbers) -> list[tuple[int, int]]:
    """The naive ranges of a set of numbers."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] + 1 == number:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def record(verifier, sequence, *, run=RUN, source=0, addr="127.0.0.2", latency=1000):
    """Hand the verifier one stamped datagram."""
    datagram = Stamp(run, source, sequence, NOW - latency).to_wire(64)
    verifier.record(datagram, (addr, 4000), NOW)


@given(sequences)
def test_ranges_are_the_set(numbers):
    """Any order, any duplicates: the ranges are those of the set, and add() says what is new."""
    ranges, seen = SequenceRanges(), set()
    for number in numbers:
        assert ranges.add(number) == (number not in seen)
        seen.add(number)
        assert list(ranges) == ranges_of(seen)
        assert ranges.count == len(seen)
    assert (ranges.first, ranges.last) == ((min(seen), max(seen)) if seen else (None, None))
    assert list(ranges.missing()) == ranges_of(set(range(max(seen, default=-1) + 1)) - seen)


def test_a_large_loss_is_one_hole():
    """What is lost in one go takes one range, however long it is."""
    ranges = SequenceRanges()
    ranges.add(0)
    ranges.add(2**64 - 1)
    assert list(ranges) == [(0, 0), (2**64 - 1, 2**64 - 1)]
    assert list(ranges.missing()) == [(1, 2**64 - 2)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 40)), max_size=150))
def test_a_report_counts_what_arrived(arrivals):
    """Received, lost, duplicated and reordered of every run and source are those of a naive count."""
    verifier = Verifier()
    for run, source, sequence in arrivals:
        record(verifier, sequence, run=run, source=source, addr=f"127.0.0.{source + 1}")
    report = verifier.report()
    entries = {(int(entry["run"], 16), entry["source"]): entry for entry in report["per_source"]}
    assert set(entries) == {(run, source) for run, source, _ in arrivals}
    for key, entry in entries.items():
        numbers = [sequence for *of, sequence in arrivals if tuple(of) == key]
        news = [n for at, n in enumerate(numbers) if n not in numbers[:at]]
        assert entry["received"] == len(news)
        assert entry["lost"] == max(numbers) + 1 - len(news)
        assert entry["duplicated"] == len(numbers) - len(news)
        assert entry["reordered"] == sum(n < max(news[: at + 1]) for at, n in enumerate(news))
        assert (entry["first"], entry["last"]) == (min(numbers), max(numbers))
        assert [tuple(pair) for pair in entry["ranges"]] == ranges_of(numbers)
        assert entry["address"] == f"127.0.0.{key[1] + 1}"
    for total in ("received", "lost", "duplicated", "reordered"):
        assert report[total] == sum(entry[total] for entry in entries.values())
    assert report["sources"] == len({source for _, source, _ in arrivals})
    assert json.loads(json.dumps(report)) == report


def test_latency_in_microseconds():
    """Latencies are of first arrivals, per source and in all, in microseconds."""
    verifier = Verifier()
    for sequence in range(100):
        record(verifier, sequence, latency=(sequence + 1) * 1000)
    record(verifier, 99, latency=10**9)
    exact = Histogram()
    for sequence in range(100):
        exact.record((sequence + 1) * 1000)
    wanted = {f"p{p}": round(exact.percentile(p) / 1000, 1) for p in (50, 90, 99)} | {"max": 100.0}
    report = verifier.report()
    assert report["latency_us"] == report["per_source"][0]["latency_us"] == wanted
    assert wanted["p50"] == pytest.approx(50, rel=1 / 32)


def test_datagrams_without_a_stamp_are_counted_apart():
    """What carries no stamp counts as unstamped and nowhere else."""
    verifier = Verifier()
    for datagram in (b"", b"hello", bytes(64)):
        verifier.record(datagram, ("127.0.0.1", 4000), NOW)
    report = verifier.report()
    assert report["unstamped"] == 3
    assert report["per_source"] == []
    assert (report["sources"], report["received"], report["duplicated"]) == (0, 0, 0)


def test_a_mapped_address_is_its_ipv4_address():
    """A dual-stack socket and an IPv4 socket report the same source."""
    verifier = Verifier()
    verifier.record(Stamp(RUN, 0, 0, NOW).to_wire(), ("::ffff:127.0.0.9", 4000, 0, 0), NOW)
    verifier.record(Stamp(RUN, 1, 0, NOW).to_wire(), ("127.0.0.9", 4001), NOW)
    assert [record.address for record in verifier.records] == ["127.0.0.9", "127.0.0.9"]
    assert verifier.report()["sources"] == 1


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 30)), max_size=150),
    st.lists(st.integers(0, 40), min_size=4, max_size=4),
)
def test_merging_members_is_exact(arrivals, sent):
    """Whatever member got what, the summary is that of a naive count over all of them."""
    verifiers = [Verifier(member) for member in range(3)]
    for member, source, sequence in arrivals:
        record(verifiers[member], sequence, source=source, addr=f"127.0.0.{source}")
    sent_per_source = {f"127.0.0.{source}": number for source, number in enumerate(sent)}
    reports = [verifier.report() for verifier in verifiers]
    summary = merge_reports(reports, sent_per_source)
    distinct = {(source, sequence) for _, source, sequence in arrivals}
    got = [sum(source == wanted for source, _ in distinct) for wanted in range(4)]
    seen_by = {source: {m for m, s, _ in arrivals if s == source} for _, source, _ in arrivals}
    assert summary.received == len(distinct)
    assert summary.duplicated == len(arrivals) - len(distinct)
    assert summary.sent == sum(sent)
    assert summary.lost == sum(max(s - g, 0) for s, g in zip(sent, got, strict=True))
    assert summary.unexpected == sum(max(g - s, 0) for s, g in zip(sent, got, strict=True))
    assert summary.received - summary.unexpected + summary.lost == summary.sent
    assert summary.sources == len(seen_by)
    split = sorted(f"127.0.0.{source}" for source, members in seen_by.items() if len(members) > 1)
    assert list(summary.split_addresses) == split
    assert summary.split_sources == len(split)
    for member in summary.members:
        mine = [source for m, source, _ in arrivals if m == member.member]
        assert (member.sources, member.datagrams) == (len(set(mine)), len(mine))
    holes = sum(max((n for s, n in distinct if s == source), default=-1) + 1 for source in range(4))
    assert merge_reports(reports).lost == holes - len(distinct)
    assert merge_reports(reports).sent is None


def test_workers_of_one_member_do_not_split_a_source():
    """A source seen by a member before and after its restart is seen by one member."""
    before, after = Verifier(1), Verifier(1)
    for sequence in range(10):
        record(before if sequence < 6 else after, sequence)
    summary = merge_reports([before.report(), after.report()], {"127.0.0.2": 10})
    assert summary.members == (MemberSummary(1, 1, 10),)
    assert (summary.split_sources, summary.lost, summary.received) == (0, 0, 10)


def test_reports_without_a_member_are_members_of_their_own():
    """Two nameless collectors that saw the same source did split it; what both saw is duplicated."""
    one, other = Verifier(), Verifier()
    for sequence in range(10):
        record(one, sequence)
    for sequence in range(5, 15):
        record(other, sequence)
    summary = merge_reports([one.report(), other.report()])
    assert summary.members == (MemberSummary(None, 1, 10), MemberSummary(None, 1, 10))
    assert summary.split_addresses == ("127.0.0.2",)
    assert (summary.received, summary.duplicated, summary.lost) == (15, 5, 0)


def test_a_source_that_never_arrived_is_lost():
    """What was sent by a source that nobody saw is lost in full."""
    assert merge_reports([], {"127.0.0.2": 7}).lost == 7
