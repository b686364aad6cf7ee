"""`aiolb top` without a group: what it remembers, and frames of every size."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address, ip_address

import pytest

from aiolb.bpf.abi import TIME_BUCKETS, TOP_WORDS, Report
from aiolb.bpf.group_name import GroupName
from aiolb.bpf.snapshot import GroupSnapshot, MemberSnapshot, State
from aiolb.bpf.statistics import GroupStatistics, MemberStatistics
from aiolb.cli.top import _chosen
from aiolb.cli.top_frame import PLAIN_BARS, View, bars, frame
from aiolb.cli.top_history import LENGTH, SORTS, History

NOTHING = Report.unpack(bytes(Report.STRUCT.size))


def words(sources):
    """The sources of a report that sent most, as it holds them."""
    found = []
    for source, (count, rate) in sources.items():
        packed = IPv6Address(f"::ffff:{source}").packed
        found += [int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little"), count, rate * 1000]
    return (*found, *[0] * (TOP_WORDS - len(found)))


def member(index, *, second=0, received=0, packets=0, cookie=True, sources=None, slow=0, told=True, **counted):
    """A member that has told this much, so many seconds after the first look."""
    times = [0] * TIME_BUCKETS
    times[slow] = received
    report = replace(
        NOTHING,
        cookie=index + 1,
        pid=1000 + index,
        written_ns=(100 + second) * 10**9,
        received=received,
        messages=received,
        queue_limit=1000,
        handler_times=tuple(times),
        top=words(sources or {}),
        **counted,
    )
    kernel = MemberStatistics(index, index + 1 if cookie else None, 7, 0, 0, 128, 100, False, packets, 0, 0)
    return MemberSnapshot(kernel, report if told else None, State.ALIVE if cookie else State.DEAD, 0)


def group(*members, second=0):
    """A group of these members, so many seconds after the first look."""
    kernel = GroupStatistics(len(members), 1, False, "source", (), *[0] * 8)
    return GroupSnapshot(GroupName.parse("127.0.0.1:9000"), kernel, 0, 0, members, 50.0 + second)


def history(*looks):
    """What is remembered of these looks."""
    remembered = History()
    for look in looks:
        remembered.add(look)
    return remembered


def texts(remembered, **view):
    """The lines of a frame."""
    return [
        line.plain
        for line in frame(remembered, View(**({"sort": "rate", "interval": 1, "width": 80} | view)), "12:00:00")
    ]


def rows(told):
    """The lines of members, split."""
    return [line.split() for line in told if re.match(r" *\d+ +(alive|dead|drained|silent)\b", line)]


def test_rates():
    """Two looks make rates: of each member, of all, and of drops."""
    remembered = history(
        group(member(0, received=100), member(1, received=50)),
        group(member(0, second=2, received=300), member(1, second=2, received=450, kernel_drops=10), second=2),
    )
    assert [row.rate for row in remembered.rows] == [(100,), (200,)]
    assert [row.drops for row in remembered.rows] == [(0,), (5,)]
    assert (list(remembered.rate), list(remembered.drops)) == ([300], [5])


def test_a_member_that_tells_nothing():
    """Of a socket whose program tells nothing, the rate is that of the kernel's packets."""
    remembered = history(group(member(0, told=False)), group(member(0, told=False, packets=30), second=3))
    assert remembered.rows[0].rate == (10,)
    assert remembered.rows[0].now.queue is None


def test_only_so_much_is_remembered():
    """However long it runs, a minute's looks are kept."""
    looks = (group(member(0, second=second, received=second * 7), second=second) for second in range(3 * LENGTH))
    remembered = history(*looks)
    assert remembered.rows[0].rate == (7,) * LENGTH
    assert list(remembered.rate) == [7] * LENGTH


def test_p99_is_of_now():
    """The time of handlers is that of those since the look before, and of another socket's all."""
    first = member(0, received=1000, slow=5)
    second = member(0, second=1, received=1000, slow=5)
    times = list(second.told.handler_times)
    times[20] = 10
    later = replace(second, told=replace(second.told, handler_times=tuple(times)))
    assert history(group(first), group(later, second=1)).rows[0].p99_ns == 1 << 20
    other = replace(later, told=replace(later.told, cookie=77))
    assert history(group(first), group(other, second=1)).rows[0].p99_ns == 1 << 5


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("rate", [2, 1, 0]),
        ("drops", [0, 1, 2]),
        ("queue", [1, 0, 2]),
        ("errors", [1, 0, 2]),
        ("p99", [0, 1, 2]),
        ("member", [0, 1, 2]),
    ],
)
def test_sorts(by, order):
    """Members are sorted by what was chosen, the largest first, and equal ones by their index."""
    remembered = history(
        group(*(member(index) for index in range(3))),
        group(
            member(0, second=1, received=10, kernel_drops=9, slow=9),
            member(1, second=1, received=20, errors=4, queued_bytes=500, slow=2),
            member(2, second=1, received=30, slow=2),
            second=1,
        ),
    )
    assert [row.now.index for row in remembered.sorted(by)] == order
    assert by in SORTS


def test_sources():
    """Sources are sorted by their rate now, however much others have sent; what several members had is added up."""
    remembered = history(
        group(
            member(0, sources={"1.1.1.1": (1010, 5), "2.2.2.2": (30, 10), "3.3.3.3": (14, 2)}),
            member(1, sources={"2.2.2.2": (65, 30)}),
        ),
    )
    found = [(row.source, row.member, row.rate, row.received) for row in remembered.sources]
    assert found == [
        (ip_address("2.2.2.2"), 1, 40, 95),
        (ip_address("1.1.1.1"), 0, 5, 1010),
        (ip_address("3.3.3.3"), 0, 2, 14),
    ]


def test_sources_of_who_tells_nothing():
    """What a member told before it died or hung is no rate of now."""
    silent = replace(member(0, sources={"1.1.1.1": (1010, 5)}), state=State.SILENT)
    (row,) = history(group(silent)).sources
    assert (row.rate, row.received) == (0, 1010)


def test_bars():
    """The newest value is at the right; 0 is nothing, and whatever is more can be seen."""
    assert bars([], 0, 3) == "   "
    assert bars([0, 1, 50, 100], 100, 3) == "▁▅█"
    assert bars([0, 100], 100, 4) == "   █"
    assert bars([5, 5], 5, 2, PLAIN_BARS) == "@@"


def crowd(members):
    """A group of many members, each with sources of its own."""

    def of(index, second):
        return member(
            index,
            second=second,
            received=second * (index + 1) * 1000,
            kernel_drops=second * index,
            sources={f"10.{index >> 8}.{index & 255}.{low}": (1 + second * low, low) for low in range(1, 9)},
        )

    looks = (group(*(of(index, second) for index in range(members)), second=second) for second in range(3))
    return history(*looks)


@pytest.mark.parametrize("members", [1, 3, 128, 1024])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 12), (20, 5)])
def test_frames_fit(members, width, height):
    """No line is wider, and no frame higher, than the terminal; the busiest member is on it, and so is a source."""
    told = texts(crowd(members), width=width, height=height, keys=True)
    assert max(map(len, told)) <= width
    if height >= 12:
        assert len(told) <= height
        assert any(line.startswith("10.") for line in told)
    assert rows(told)[0][:2] == [str(members - 1), "alive"]


def test_without_a_height():
    """A frame for a pipe has all members, and ten sources."""
    told = texts(crowd(128), width=200)
    assert sum(" alive " in line for line in told[4:]) == 128
    assert sum(line.startswith("10.") for line in told) == 10


def test_scrolling():
    """The members from the chosen one on are shown, but never fewer than there is room for."""
    remembered = crowd(128)
    assert rows(texts(remembered, sort="member", height=24, first=7))[0][0] == "7"
    last = texts(remembered, sort="member", height=24, first=999)
    assert "of 128 members" in "".join(last)
    assert [line.split()[0] for line in last if " alive " in line][-1] == "127"


def test_the_first_look():
    """Before the second look there are no rates, and no number is made up."""
    told = texts(history(group(member(0, received=5), member(1, cookie=False))))
    assert told[0].startswith("udp 127.0.0.1:9000  1 of 2 members alive")
    alive, dead = rows(told)
    assert (alive[:2], set(alive[2:])) == (["0", "alive"], {"-", "0%"})
    assert dead[:3] == ["1", "dead", "-"]
    assert told[2] == "hint: member 1 is dead, others get the sources"


def test_a_silent_member():
    """Who hangs is not counted as alive, though its socket is there, and the head says how many there are."""
    look = group(member(0), replace(member(1), state=State.SILENT), member(2, cookie=False))
    assert texts(history(look))[0].startswith("udp 127.0.0.1:9000  1 of 3 members alive, 1 silent")


@pytest.mark.parametrize(("name", "what"), [("127.0.0.1:9000", "DATAGRAMS"), ("tcp:127.0.0.1:9000", "CONNECTIONS")])
def test_what_sources_sent(name, what):
    """The sources of a group are shown with what it takes."""
    look = replace(group(member(0, received=5, sources={"10.0.0.1": (5, 5)})), name=GroupName.parse(name))
    assert texts(history(look, replace(look, taken=look.taken + 1)))[-2].split()[-1] == what


def test_keys():
    """Keys choose what to sort by, the interval within its bounds, and where to begin."""
    view = View("rate", 1, 80)
    assert _chosen(view, "d", 3).sort == "drops"
    assert _chosen(view, "jj", 128).first == 2
    assert _chosen(view, "jjjjjk", 3).first == 1
    assert _chosen(view, "jd", 3).first == 0
    assert (_chosen(view, "++", 3).interval, _chosen(view, "----", 3).interval) == (4, 0.5)
    assert _chosen(view, "+" * 20, 3).interval == 60
    assert _chosen(view, "x\x1b[15~", 3) == view


def test_keys_that_are_sequences():
    """The arrows scroll by one member, Page Down and Up by ten; no letter in a sequence is a key of its own."""
    view = View("rate", 1, 80)
    assert _chosen(view, "\x1b[B\x1bOB\x1b[A", 128).first == 1
    assert _chosen(view, "\x1b[6~\x1b[6~\x1b[5~", 128).first == 10
    assert _chosen(view, "\x1bOdj", 128) == replace(view, first=1)


@pytest.mark.parametrize("by", SORTS)
@pytest.mark.parametrize("width", [40, 56, 80])
def test_what_is_sorted_by_is_shown(by, width):
    """However narrow the terminal is, the column that members are sorted by is there."""
    titles = {"rate": "RATE/S", "drops": "DROPS/S", "queue": "QUEUE", "errors": "ERRORS/S", "p99": "P99"}
    (line,) = [line for line in texts(crowd(3), sort=by, width=width) if line.startswith("MEMBER")]
    assert titles.get(by, "MEMBER") in line.split()


@pytest.mark.parametrize("width", range(30, 130, 7))
def test_no_number_is_cut(width):
    """What does not fit into a line of the head is left out whole."""
    remembered = crowd(3)
    remembered.counters = {"guard drops": 12_345.0, "failovers": 7.0}
    whole = [word for line in texts(remembered, width=1000)[:3] for word in line.split()]
    for line in texts(remembered, width=width)[:3]:
        for part in line.split("  "):
            if part.endswith("/s"):
                assert part.split()[-1] in whole
    assert "guard drops 12.3k/s  failovers 7/s" in texts(remembered, width=80)


def test_where_else_packets_go():
    """What the guard drops and what dead members leave to others is told as a rate, once there was any."""
    before, after = group(member(0)), group(member(0, second=2), second=2)
    after = replace(after, kernel=replace(after.kernel, denied=10, limited=30, failovers=4))
    assert history(before, before).counters == {}
    assert history(before, after).counters == {"failovers": 2, "guard drops": 20}
    assert history(before, after, replace(after, taken=60)).counters == {"failovers": 0, "guard drops": 0}
    assert history(after, replace(after, taken=60)).counters == {}


def test_half_a_screen_is_for_members():
    """On a low screen sources do not push the members out."""
    told = texts(crowd(3), height=14)
    assert len(rows(told)) == 3


def test_the_bars_say_how_long_they_are():
    """The title of the bars is the time that they span."""
    assert sum("LAST 10s" in line for line in texts(crowd(3), width=80)) == 1
    assert sum("LAST 2m" in line for line in texts(crowd(3), width=130, interval=5)) == 1
