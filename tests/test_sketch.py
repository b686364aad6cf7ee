"""Sources are counted in bounded memory, and the two receivers agree on them."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb import sketch

hosts = st.dictionaries(st.ip_addresses().map(str), st.integers(1, 1000), max_size=40)


def test_nobody():
    """A sketch of no source says 0."""
    assert sketch.estimate(bytes(sketch.REGISTERS)) == 0


@pytest.mark.parametrize("number", [1, 2, 10, 50])
def test_few_sources(number):
    """Few sources are told exactly, or nearly so."""
    found = sketch.estimate(sketch.sketch_of(IPv4Address(0x7F000001 + i) for i in range(number)))
    assert abs(found - number) <= 1


@pytest.mark.parametrize("number", [1000, 3000, 10_000, 50_000])
def test_many_sources(number):
    """An estimate is within four standard errors for these sources of either family."""
    four = sketch.sketch_of(IPv4Address(0x0A000000 + 7 * i) for i in range(number))
    six = sketch.sketch_of(IPv6Address((0xFD << 120) + (i << 40)) for i in range(number))
    for found in (sketch.estimate(four), sketch.estimate(six), sketch.estimate(sketch.union(four, six)) / 2):
        assert abs(found - number) <= 4 * 1.04 / sketch.REGISTERS**0.5 * number


def test_a_union_counts_each_source_once():
    """The union of overlapping sketches is the sketch of all their sources."""
    sources = [IPv4Address(0x7F000001 + i) for i in range(500)]
    parts = [sketch.sketch_of(sources[:300]), sketch.sketch_of(sources[200:])]
    assert sketch.union(*parts) == sketch.sketch_of(sources)
    assert sketch.union(parts[0]) == parts[0]


def test_mapped_sources_are_ipv4_sources():
    """An IPv4 source counts once, however the kernel writes it."""
    assert sketch.packed(IPv4Address("127.0.0.1")) == sketch.packed(IPv6Address("::ffff:127.0.0.1"))


def test_few_senders_are_counted_exactly():
    """Up to MOST sources nothing is lost, and the largest come first."""
    top = sketch.TopSources()
    top.add({"127.0.0.1": 3, "127.0.0.2": 5})
    top.add({"127.0.0.1": 4})
    assert (top.busiest({}, 16), top.error) == ([("127.0.0.1", 7, 0), ("127.0.0.2", 5, 0)], 0)


def test_the_busiest_are_those_of_now():
    """Who sends now comes before who has sent most, and neither count is too high."""
    top = sketch.TopSources()
    top.add({f"10.0.{n >> 8}.{n & 255}": 1000 for n in range(sketch.MOST)})
    recent = {"127.0.0.1": 3, "10.0.0.9": 3, "127.0.0.2": 4}
    top.add(recent)
    # The two new ones pushed the least ones out, themselves among them.
    assert top.error == 4
    found = top.busiest(recent, 4)
    assert [(host, new) for host, _, new in found[:3]] == [("127.0.0.2", 4), ("10.0.0.9", 3), ("127.0.0.1", 3)]
    assert [count for _, count, _ in found] == [4, 999, 3, 996]
    assert top.most_without({"10.0.0.9"}) == 996
    assert sketch.TopSources().most_without(set()) == 0


@given(batches=st.lists(hosts, max_size=30), missed=st.integers(0, 10))
def test_the_error_bound(batches, missed):
    """A count is never too high, and too low by at most the error, which is bounded by the number of all datagrams."""
    top, truth = sketch.TopSources(), Counter()
    for batch in batches:
        top.add(batch)
        truth.update(batch)
    top.add({}, missed)
    found = {host: count for host, count, _ in top.busiest({}, sketch.MOST + 1)}
    assert len(found) <= sketch.MOST
    assert top.error <= missed + truth.total() / (sketch.MOST + 1)
    for host, count in truth.items():
        assert count - top.error <= found.get(host, 0) <= count
