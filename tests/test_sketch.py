"""Sources are counted in bounded memory, and the two receivers agree on them."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolb import sketch
from aiolb.bpf.abi import SKETCH_WORDS
from aiolb.sketch import Sketch

hosts = st.dictionaries(st.ip_addresses().map(str), st.integers(1, 1000), max_size=40)


def four(number, step=1):
    """So many IPv4 sources."""
    return [IPv4Address(0x0A000000 + step * i) for i in range(number)]


def six(number):
    """So many IPv6 sources."""
    return [IPv6Address((0xFD << 120) + (i << 40)) for i in range(number)]


def test_nobody():
    """A sketch of no source says 0, and is exact; so is one of no sketches."""
    for one in (Sketch(), Sketch.of([]), sketch.union(), sketch.union(Sketch(), Sketch())):
        assert (one.count, one.exact) == (0, True)


@pytest.mark.parametrize("number", [1, 2, 30, 300, sketch.EXACT])
def test_few_sources(number):
    """As many as are told apart are counted exactly, of either family."""
    for sources in (four(number), six(number)):
        found = Sketch.of(sources)
        assert (found.count, found.exact) == (number, True)


@pytest.mark.parametrize("number", [sketch.EXACT + 1, 1000, 3000, 10_000, 50_000])
def test_many_sources(number):
    """An estimate is within four standard errors for these sources of either family."""
    ours, theirs = Sketch.of(four(number, 7)), Sketch.of(six(number))
    both = sketch.union(ours, theirs)
    assert not any(one.exact for one in (ours, theirs, both))
    for found in (ours.count, theirs.count, both.count / 2):
        assert abs(found - number) <= 4 * 1.04 / sketch.REGISTERS**0.5 * number


def test_a_union_of_few_is_exact():
    """Members that count exactly make a group that does; of very many sources one may be missed, and it says so."""
    members = [Sketch.of(four(20_000)[start : start + 500]) for start in range(0, 20_000, 400)]
    found = sketch.union(*members[:10])
    assert (found.count, found.exact) == (4100, False)
    found = sketch.union(*members[:9])
    assert (found.count, found.exact) == (3700, True)
    assert sketch.union(*members).count == pytest.approx(20_000, abs=2)


@pytest.mark.parametrize("size", [200, 2000])
def test_a_union_counts_each_source_once(size):
    """The union of overlapping sketches is the sketch of all their sources, whichever of them count exactly."""
    sources = four(size)
    parts = [Sketch.of(sources[: size * 3 // 5]), Sketch.of(sources[size * 2 // 5 :]), Sketch.of(sources[:5]), Sketch()]
    assert sketch.union(*parts) == Sketch.of(sources)
    assert sketch.union(parts[0]) == parts[0]


@pytest.mark.parametrize("number", [0, 1, sketch.EXACT, sketch.EXACT + 1])
def test_written_down(number):
    """A sketch is read as it was written, in so many bytes."""
    found = Sketch.of(four(number))
    assert len(found.to_bytes()) == sketch.SIZE
    assert Sketch.from_bytes(found.to_bytes(), len(found.marks or ())) == found


def test_the_layout_of_reports():
    """A sketch fits where reports have it."""
    assert 8 * SKETCH_WORDS == sketch.SIZE == 4 * sketch.EXACT


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
