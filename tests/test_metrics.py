"""The metrics of made-up groups, their names, the reference and the examples that use them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from loading import module_of
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aiolb.address import Address
from aiolb.bpf.abi import SIZE_BUCKETS, TIME_BUCKETS, Report
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.snapshot import GroupSnapshot, MemberSnapshot, State
from aiolb.bpf.statistics import GroupStatistics, MemberStatistics
from aiolb.metrics import GroupMetrics
from aiolb.metrics_table import METRICS
from aiolb.observed import Observed

ROOT = Path(__file__).parent.parent
NAME = GroupName("udp", Address("127.0.0.1", 9000))
TCP = GroupName("tcp", Address("127.0.0.1", 9000))
EMPTY = Report.unpack(bytes(Report.STRUCT.size))


def buckets(size, **counts):
    """Counts by bucket: ``buckets(40, b3=2)``."""
    return tuple(counts.get(f"b{i}", 0) for i in range(size))


TOLD = replace(
    EMPTY,
    cookie=7,
    pid=42,
    uid=1,
    started_ns=2 * 10**9,
    received=9,
    messages=4,
    handled=8,
    errors=1,
    kernel_drops=3,
    queued_bytes=50,
    queue_limit=100,
    handler_ns=3 * 10**9,
    handler_times=buckets(TIME_BUCKETS, b3=1, b12=2, b39=1),
    batch_sizes=buckets(SIZE_BUCKETS, b1=2, b3=1, b15=1),
)


def group_of(*told):
    """A group whose members told these; None is a dead one."""
    members = tuple(
        MemberSnapshot(
            MemberStatistics(i, one and one.cookie, 42, 1, 10**9, 8192, 100, False, 10 + i, 100 + i, i),
            one,
            State.DEAD if one is None else State.ALIVE,
            1,
        )
        for i, one in enumerate(told)
    )
    kernel = GroupStatistics(len(told), 5, False, "source", members, *range(1, 9))
    return GroupSnapshot(NAME, kernel, 10**9, 3, members, 0.0)


def text_of(*observed):
    """What Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(GroupMetrics(lambda: observed))
    return generate_latest(registry).decode()


def samples_of(*observed):
    """The same as ``(name, labels)`` to value; no series comes twice."""
    found = [
        ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
        for family in text_string_to_metric_families(text_of(*observed))
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def value(samples, name, **labels):
    """One sample's value, of the group at NAME; None where there is none."""
    return samples.get((f"aiolb_{name}", tuple(sorted({"group": str(NAME), **labels}.items()))))


def test_a_group_and_its_members():
    """Values are those of the snapshot, in seconds and bytes, and a dead member has what the kernel counted."""
    samples = samples_of(Observed(NAME, "ebpf", group_of(TOLD, None)))
    assert value(samples, "group_members") == 2
    assert value(samples, "group_members_alive") == 1
    assert value(samples, "group_failovers_total") == 1
    assert value(samples, "group_events_lost_total") == 8
    assert value(samples, "member_received_total", member="0") == 9
    assert value(samples, "member_kernel_drops_total", member="0") == 3
    assert value(samples, "member_start_time_seconds", member="0") == 2
    assert value(samples, "member_queue_bytes", member="0") == 50
    assert [value(samples, "member_packets_total", member=str(i)) for i in range(2)] == [10, 11]
    assert [value(samples, "member_alive", member=str(i)) for i in range(2)] == [1, 0]
    assert value(samples, "member_received_total", member="1") is None
    assert value(samples, "member_info", member="0", pid="42", uid="1", cookie="7") == 1
    assert value(samples, "group_info", balancer="ebpf", key="source", protocol="udp") == 1
    assert "seed" not in text_of(Observed(NAME, "ebpf", group_of(TOLD)))  # it is a secret


def test_histograms():
    """Buckets are cumulative, what is beyond the bounds is in the outermost ones, and sums are in base units."""
    samples = samples_of(Observed(NAME, "ebpf", group_of(TOLD)))
    times = "member_handler_duration_seconds"
    bounds = ("1.024e-06", "2.048e-06", "4.096e-06", "17.179869184", "+Inf")
    found = [value(samples, f"{times}_bucket", member="0", le=bound) for bound in bounds]
    assert found == [1, 1, 3, 3, 4]
    assert (value(samples, f"{times}_count", member="0"), value(samples, f"{times}_sum", member="0")) == (4, 3)
    sizes = "member_batch_datagrams"
    bounds = ("1.0", "3.0", "7.0", "16383.0", "+Inf")
    assert [value(samples, f"{sizes}_bucket", member="0", le=bound) for bound in bounds] == [2, 2, 3, 3, 4]
    assert (value(samples, f"{sizes}_count", member="0"), value(samples, f"{sizes}_sum", member="0")) == (4, 9)


def test_one_member_of_a_group():
    """A collector without a supervisor tells of the group and of its own member only."""
    samples = samples_of(Observed(NAME, "ebpf", group_of(TOLD, TOLD), only=1))
    assert value(samples, "group_members_alive") == 2
    assert [value(samples, "member_packets_total", member=str(i)) for i in range(2)] == [None, 11]


def test_without_a_group():
    """With another balancer there is what the collector tells itself, and nothing is made up for the kernel."""
    samples = samples_of(Observed(NAME, "classic", None, only=0, told={0: TOLD}))
    assert value(samples, "member_handled_total", member="0") == 8
    assert value(samples, "member_packets_total", member="0") is None
    assert value(samples, "group_members") is None
    assert value(samples, "group_info", balancer="classic", protocol="udp") == 1


def test_without_a_group_but_all_members():
    """A supervisor knows how many there are; one that has told nothing yet is alive, one that stopped is silent."""
    told = {0: replace(TOLD, written_ns=time.time_ns()), 2: TOLD}
    samples = samples_of(Observed(NAME, "classic", None, told=told, count=3, key="prefix/24,64"))
    assert [value(samples, "member_alive", member=str(i)) for i in range(3)] == [1, 1, 1]
    assert [value(samples, "member_silent", member=str(i)) for i in range(3)] == [0, 0, 1]
    assert [value(samples, "member_handled_total", member=str(i)) for i in range(3)] == [8, None, 8]
    assert (value(samples, "group_members"), value(samples, "group_members_silent")) == (3, 1)
    assert value(samples, "group_info", balancer="classic", key="prefix/24,64", protocol="udp") == 1
    assert value(samples, "group_failovers_total") is None


def test_connections_have_an_accept_queue_and_no_batches():
    """What only datagrams have is left out."""
    told = replace(EMPTY, cookie=7, received=5, waiting=2, queue_limit=9, handler_times=buckets(TIME_BUCKETS, b12=4))
    samples = samples_of(Observed(TCP, "classic", None, only=0, told={0: told}))
    labels = {"group": str(TCP), "member": "0"}
    assert value(samples, "member_received_total", **labels) == 5
    assert (value(samples, "member_waiting", **labels), value(samples, "member_waiting_limit", **labels)) == (2, 9)
    assert value(samples, "member_handler_duration_seconds_count", **labels) == 4
    assert not [name for name, _ in samples if "queue" in name or "batch" in name]


@pytest.mark.parametrize("name", ["aiolb_build_info", "aiolb_group_members", "aiolb_member_batch_datagrams_bucket"])
def test_a_scrape_of_one_metric(name):
    """Whoever names the samples that he wants gets them alone, whatever their type; nobody looks for their names."""
    registry = CollectorRegistry()
    observed = [Observed(NAME, "ebpf", group_of(TOLD))]
    looks = []
    registry.register(GroupMetrics(lambda: looks.append(observed) or observed))
    assert looks == []
    found = generate_latest(registry.restricted_registry([name])).decode()
    assert {sample.name for one in text_string_to_metric_families(found) for sample in one.samples} == {name}


def test_closed():
    """After close() nobody looks at the groups any more."""
    collector = GroupMetrics(lambda: pytest.fail("looked"))
    collector.close()
    assert list(collector.collect()) == []


@pytest.mark.parametrize("observed", [(), (Observed(NAME, "ebpf", group_of(TOLD, None)),)], ids=["empty", "full"])
def test_conventions(promtool, observed):
    """Promtool finds nothing to say about names, units, types and help."""
    assert promtool("check", "metrics", text=text_of(*observed)) == ""


def test_described():
    """Every metric is described, with its type and its labels, and nothing else is."""
    found = {}
    observed = Observed(NAME, "ebpf", group_of(TOLD)), Observed(TCP, "none", None, told={0: TOLD}, count=1, key="flow")
    for family in text_string_to_metric_families(text_of(*observed)):
        for sample in family.samples:
            # The parser of this format takes an info for a gauge.
            kind = "info" if family.name.endswith("_info") else family.type
            name = f"{family.name}_total" if kind == "counter" else family.name
            found[name] = (kind, set(sample.labels) - {"le"})
    assert {one.full_name: (one.kind, set(one.labels)) for one in METRICS} == found


def test_reference():
    """The table of docs/reference/metrics.md is what `make reference` writes."""
    module = module_of(ROOT / "tools" / "metrics_table.py")
    text = module.DOCUMENT.read_text()
    assert module.table() in text
    assert module.with_table(text) == text
