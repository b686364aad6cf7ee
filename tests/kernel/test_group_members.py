"""All members in one process: joined together, added, taken away, taken out and put back, taken over."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from functools import partial

import pytest

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import classic, steering, syscall
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.members import join_all
from aiolb.bpf.steering import JoinOptions
from aiolb.errors import ConfigurationError, GroupError, KernelError, MemberTakenError
from aiolb.publisher import Publisher
from aiolb.verification import Verifier, merge_reports

bind = partial(sockets.bind_buffered, size=1 << 23)  # room for a test's datagrams


@pytest.fixture
def either(joining, pinned):
    """The same for a group that is pinned, and for one that is not."""
    return lambda *arguments, **named: joining(*arguments, pinned=pinned, **named)


@pytest.fixture(params=["pinned", "unpinned"])
def pinned(request):
    """Whether the group is pinned."""
    return request.param == "pinned"


@pytest.fixture
def route(cluster):
    """Which member receives each source: ``route(members, sources)``; further sockets by name."""
    carrier = cluster(1)  # brings senders that send from any source

    def run(members, sources, **others):
        found = {index: joined.sock for index, joined in enumerate(members) if joined.sock.fileno() >= 0} | others
        own, carrier.sockets = carrier.sockets, found
        try:
            return carrier.route(sources, to=members.address)
        finally:
            carrier.sockets = own

    return run


def state_of(members):
    """The group behind members."""
    return members._chosen.group


def cookies(members):
    """Who holds each index."""
    return [member.cookie for member in members.statistics().members]


def own_cookies(members):
    """The cookies of the members' own places."""
    return [joined.place.cookie for joined in members]


def predicted(members, sources):
    """What the pure twin says."""
    group = state_of(members)
    return {source: group.locate(source) for source in sources}


def test_all_join(either, route, sources_v4, pinned):
    """Every member has its place, and the program steers among them as its twin says."""
    members, sources = either(3), sources_v4(500)
    assert (len(members), members.balancer, members.pinned, members.fallback) == (3, "ebpf", pinned, None)
    assert (members.unpinned, members.others, members.waiting) == (None, (), frozenset())
    assert cookies(members) == own_cookies(members)
    assert [joined.place.count for joined in members] == [3] * 3
    assert [member.pid for member in members.statistics().members] == [os.getpid()] * 3
    assert route(members, sources) == predicted(members, sources)
    assert members.statistics().unsteered == 0


def test_an_unpinned_group_is_nowhere(joining, address, bpffs):
    """A group that is not pinned makes no folder, is not found, and needs no lock."""
    members = joining(2, pinned=False)
    assert list(bpffs.glob("aiolb")) == []
    with pytest.raises(GroupError, match="there is no group"):
        Group.open(address, bpffs=bpffs)
    state_of(members).delete()
    assert cookies(members) == own_cookies(members)


@pytest.mark.parametrize("count", [1, 17])
def test_the_count_is_the_groups(joining, count):
    """Who asks for no count gets the group's; a new one has one member."""
    if count > 1:
        joining(count).close()
    assert len(joining()) == count


def test_another_count_becomes_the_groups(joining):
    """A dead group that is joined with another count has that, with even shares."""
    joining(3).close()
    members = joining(5)
    assert len(cookies(members)) == 5
    shares = [member.slots for member in members.statistics().members]
    assert (sum(shares), max(shares) - min(shares)) == (16_384, 1)


def test_a_held_index_refuses_all(joining, address, bpffs):
    """When one index is held, no socket is bound, nobody joins, and nothing changes."""
    with Group.opened_or_created(address, GroupOptions(count=3, bpffs=bpffs)) as group:
        pass
    with sockets.bind_reuseport(address) as sock:
        group.join(sock, 2)
        before = group.config, group.slots
        with pytest.raises(MemberTakenError, match=rf"index 2 of the group at {address} is held by pid {os.getpid()}"):
            joining(4, seed=None, strict=True, bind=lambda _: pytest.fail("bound"))
        assert group.alive() == {2}
        assert (group.config, group.slots) == before
    group.close()


@pytest.mark.parametrize("failing", range(4))
def test_all_or_none(either, bpffs, monkeypatch, failing):
    """When any place cannot be filled, or the program not attached, no socket and no group is left."""
    made, write, calls = [], syscall.map_update, iter(range(100))

    def binding(address):
        made.append(bind(address))
        return made[-1]

    def fail(*arguments):
        if len(made) == 3 and next(calls) == failing:
            raise OSError(errno.EINVAL, "Invalid argument", "BPF")
        return write(*arguments)

    monkeypatch.setattr(syscall, "map_update", fail)
    if failing == 3:
        monkeypatch.setattr(syscall, "attach_reuseport", lambda *_: fail())
    with pytest.raises(KernelError, match="the socket cannot join the group"):
        either(3, bind=binding)
    assert [sock.fileno() for sock in made] == [-1] * 3
    assert list(bpffs.glob("aiolb")) == []


def test_a_failure_empties_the_places_again(joining, address, bpffs, monkeypatch):
    """In a group that was there before, places that were filled already are emptied when the attachment fails."""
    with Group.opened_or_created(address, GroupOptions(count=3, bpffs=bpffs)) as group:
        pass

    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory", "setsockopt")

    monkeypatch.setattr(syscall, "attach_reuseport", refuse)
    with pytest.raises(KernelError):
        joining(3, seed=None)
    assert [group.cookie_of(index) for index in range(3)] == [None] * 3
    group.delete_if_empty()
    group.close()


def test_a_failed_bind_closes_the_others(either, bpffs):
    """When a socket cannot be bound, those bound before are closed, and no group is left."""
    made = []

    def failing(address):
        if len(made) == 2:
            raise KernelError("no")
        made.append(bind(address))
        return made[-1]

    with pytest.raises(KernelError, match="no"):
        either(3, bind=failing)
    assert [sock.fileno() for sock in made] == [-1, -1]
    assert list(bpffs.glob("aiolb")) == []


def test_the_places_fill_before_the_program_is_attached(either, monkeypatch):
    """No packet meets a group with some of its members: the program is attached when all have their places."""
    attach, alive = syscall.attach_reuseport, []

    def looking(sock, program_fd):
        alive.append(sum(state.cookie_of(index) is not None for index in range(3)))
        attach(sock, program_fd)

    place_all = Group.place_all

    def remember(self, socks):
        nonlocal state
        state = self
        place_all(self, socks)

    state = None
    monkeypatch.setattr(syscall, "attach_reuseport", looking)
    monkeypatch.setattr(Group, "place_all", remember)
    either(3)
    assert alive == [3]


def test_close_closes_the_sockets(joining, bpffs, address):
    """Closing closes every socket, and forgets the group if asked to; a place's own close does nothing."""
    members = joining(2)
    members[0].place.close(forget=True)
    assert cookies(members) == own_cookies(members)
    members.close(forget=True)
    assert [joined.sock.fileno() for joined in members] == [-1, -1]
    assert list(bpffs.glob("aiolb")) == []
    assert len(sockets.sockets_on(address)) == 1, "more than the one that keeps the port free"


def test_add_moves_only_what_must_move(either):
    """A member more gets its even share of the slots, from each of the others, and nothing else moves."""
    members = either(3)
    before = state_of(members).slots
    new = members.add(members.bind())
    after = state_of(members).slots
    assert new is members[3]
    assert cookies(members) == own_cookies(members)
    assert {owner for slot, owner in enumerate(after) if owner != before[slot]} == {3}
    assert [after.count(index) for index in range(4)] == [4096] * 4


def test_remove_moves_only_what_must_move(either):
    """A member less: exactly its slots move, evenly, to the others; then its place is empty, and it is no member."""
    members = either(4)
    before = state_of(members).slots
    gone = members.remove()
    after = state_of(members).slots
    assert {slot for slot in range(16_384) if before[slot] != after[slot]} == {
        slot for slot, owner in enumerate(before) if owner == 3
    }
    shares = [after.count(index) for index in range(3)]
    assert (sum(shares), max(shares) - min(shares)) == (16_384, 1)
    assert cookies(members) == own_cookies(members)
    assert (state_of(members).cookie_of(3), len(members), members[0].place.count) == (None, 3, 3)
    assert (gone.place.displaced, gone.place.restore(), gone.place.leave()) == (False, False, False)
    gone.sock.close()


def test_the_slots_move_before_the_place_is_empty(either, monkeypatch):
    """A member that goes has its place until nobody is steered there, so that no packet fails over."""
    members, seen = either(3), []
    leave = Group.leave

    def looking(self, index, cookie):
        seen.append((index in self.slots, self.config.count))
        return leave(self, index, cookie)

    monkeypatch.setattr(Group, "leave", looking)
    members.remove().sock.close()
    assert seen == [(False, 2)]


def test_the_limits(either):
    """A group keeps one member, and has 1,024 at most."""
    members = either(1)
    with pytest.raises(ConfigurationError, match="a group has 1 to 1024 members, not 0"):
        members.remove()
    assert cookies(members) == own_cookies(members)
    with pytest.raises(ConfigurationError, match="not 1025"):
        state_of(members).join(members[0].sock, 1024, count=1025)
    with pytest.raises(ConfigurationError, match="not 0"):
        state_of(members).resize(0)


def test_add_beyond_the_limit(joining):
    """Whoever has 1,024 members gets no other, and no socket is bound for it."""
    members = joining(1024)
    assert len(set(cookies(members))) == 1024
    members._bind = lambda _: pytest.fail("bound")
    with pytest.raises(ConfigurationError, match="not 1025"):
        members.add(members.bind())


def test_a_failed_add_changes_nothing(either, monkeypatch):
    """When the new member cannot join, its socket is still the caller's, and the group stays as it was."""
    members = either(2)
    before = state_of(members).slots

    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory", "BPF_MAP_UPDATE_ELEM")

    with members.bind() as sock:
        monkeypatch.setattr(syscall, "map_update", refuse)
        with pytest.raises(KernelError):
            members.add(sock)
        monkeypatch.undo()
    assert len(members) == 2
    assert (state_of(members).slots, cookies(members)) == (before, own_cookies(members))


def test_out_and_back(either, route, sources_v4):
    """A member that is taken out loses its sources to the others, which keep theirs; put back it has them again."""
    members, sources = either(3), sources_v4(600)
    before = route(members, sources)
    assert members[1].place.leave()
    during = route(members, sources)
    assert {source: member for source, member in before.items() if member != 1} == {
        source: during[source] for source in sources if before[source] != 1
    }
    assert {during[source] for source in sources if before[source] == 1} == {0, 2}
    assert (members[1].place.restore(), members[1].place.restore()) == (True, False)
    assert route(members, sources) == before


def test_out_and_somebody_else_in(joining, address, bpffs):
    """Whoever joins at an index that was taken out keeps it: it is not put back over a live socket."""
    members = joining(2)
    members[1].place.leave()
    group = Group.open(address, bpffs=bpffs)
    with bind(address) as sock:
        other = group.join(sock, 1)
        assert (members[1].place.restore(), members[1].place.displaced, other.held) == (False, True, True)
    assert (members[1].place.restore(), members[1].place.held) == (True, True)
    group.close()


class Readers:
    """Reads each member's socket as its worker would, and verifies what arrives."""

    def __init__(self):
        self.received = 0
        self.reports = []
        self._loop = asyncio.get_running_loop()
        self._verifiers = {}

    def start(self, joined):
        """Read with the next turn of the loop."""
        self._verifiers[joined] = Verifier()
        self._loop.add_reader(joined.sock, self._read, joined)

    def _read(self, joined):
        for _ in range(64):
            try:
                datagram, addr = joined.sock.recvfrom(2048)
            except BlockingIOError:
                return False
            self.received += 1
            self._verifiers[joined].record(datagram, addr, time.time_ns())
        return True

    def end(self, joined):
        """Read to the end what was steered here before the member left."""
        self._loop.remove_reader(joined.sock)
        steering.wait_for_packets_in_flight()
        while self._read(joined):
            pass
        self.reports.append(self._verifiers[joined].report())

    async def reached(self, number):
        """Wait until so many datagrams have arrived."""
        async with asyncio.timeout(20):
            while self.received < number:  # noqa: ASYNC110 - readers tell nobody
                await asyncio.sleep(0.001)

    def resize(self, members, count):
        """Add or take away members, one after the other."""
        while len(members) < count:
            self.start(members.add(members.bind()))
        while len(members) > count:
            gone = members.remove()
            self.end(gone)
            gone.sock.close()


async def test_three_six_two_three_under_load(either, address):
    """Members come and go, 3, 6, 2, 3, while 40,000 datagrams of 200 sources arrive: none is lost or doubled."""
    members, readers = either(3), Readers()
    for joined in members:
        readers.start(joined)
    async with Publisher(address, rate=20_000, count=40_000, sources=200, stamp=True) as publisher:
        sending = asyncio.create_task(publisher.run())
        for number, count in enumerate([6, 2, 3, 6, 2, 3], 1):
            await readers.reached(5_000 * number)
            readers.resize(members, count)
        sent = await sending
        await readers.reached(40_000)
    for joined in members:
        readers.end(joined)
    summary = merge_reports(readers.reports, sent.sent_per_source)
    assert (summary.sent, summary.received, summary.lost, summary.duplicated) == (40_000, 40_000, 0, 0)
    statistics = members.statistics()
    assert (statistics.count, statistics.failovers, statistics.unsteered) == (3, 0, 0)
    assert [sockets.memory(joined.sock).drops for joined in members] == [0, 0, 0]


def test_a_takeover_takes_one_after_the_other(joining, route, sources_v4):
    """Who takes over waits with every place until told: then index by index, and nobody else's source moves."""
    old, sources = joining(3), sources_v4(500)
    before = route(old, sources)
    new = joining(3, takeover=True)
    assert new.waiting == {0, 1, 2}
    assert cookies(old) == own_cookies(old)
    successors = {f"new {index}": joined.sock for index, joined in enumerate(new)}
    taken = {}
    for index in range(3):
        assert new.take_over(index)
        assert new.waiting == set(range(index + 1, 3))
        assert [joined.place.displaced for joined in old] == [other <= index for other in range(3)]
        taken[index] = f"new {index}"
        assert route(old, sources, **successors) == {s: taken.get(member, member) for s, member in before.items()}
    assert cookies(new) == own_cookies(new)
    assert not new.take_over(1)


@pytest.mark.parametrize(("former", "count"), [(2, 4), (4, 2), (3, 3)])
def test_a_takeover_with_another_count(joining, former, count):
    """The new count is the group's when all of its members are there; nobody is steered to one that is not."""
    old = joining(former)
    new = joining(count, takeover=True)
    group = state_of(old)
    for index in range(count):
        assert set(group.slots) == set(range(max(index, former)))
        assert new.take_over(index) == (index < former)
    assert set(group.slots) == set(range(count))
    assert cookies(new) == own_cookies(new)
    shares = [member.slots for member in new.statistics().members]
    assert max(shares) - min(shares) <= 1


def test_a_takeover_with_a_given_socket(joining):
    """A given socket that has its place already does not wait; the others take theirs over in their turn."""
    old = joining(3)
    new = joining(3, given={1: old[1].sock.dup()}, takeover=True)
    assert new.waiting == {0, 2}
    assert [new.take_over(index) for index in range(3)] == [True, False, True]
    assert [joined.place.displaced for joined in old] == [True, False, True]
    assert cookies(new) == own_cookies(new)


def test_a_takeover_of_nobody(joining):
    """Where no member is alive there is nothing to wait for."""
    joining(2).close()
    members = joining(2, takeover=True)
    assert (members.waiting, cookies(members)) == (frozenset(), own_cookies(members))
    assert not members.take_over(0)


def test_the_taker_gives_up(joining, route, sources_v4):
    """When who was taking over goes, the places that it took are empty, and their former holders take them back."""
    old, sources = joining(3), sources_v4(300)
    before = route(old, sources)
    new = joining(3, takeover=True)
    new.take_over(0)
    new.close()
    assert [joined.place.restore() for joined in old] == [True, False, False]
    assert route(old, sources) == before


def test_counts_change_during_a_takeover(joining):
    """A member that is added while others wait, waits too; one that is taken away does not any more."""
    old = joining(2)
    new = joining(2, takeover=True)
    new.add(new.bind())
    assert (new.waiting, state_of(old).config.count) == ({0, 1, 2}, 2)
    new.remove().sock.close()
    assert (new.waiting, state_of(old).config.count) == ({0, 1}, 2)
    new.add(new.bind())
    assert [new.take_over(index) for index in range(3)] == [True, True, False]
    assert (len(cookies(new)), cookies(new)) == (3, own_cookies(new))


@pytest.mark.parametrize("balancer", ["classic", "none"])
def test_without_a_group(joining, balancer, bpffs):
    """Without eBPF every socket is bound, in the order of the indexes; there is nothing to leave, or to count."""
    made = []

    def binding(address):
        made.append(bind(address))
        return made[-1]

    members = joining(3, balancer=balancer, bind=binding)
    assert [joined.sock for joined in members] == made
    assert (members.balancer, members.pinned, members.waiting, members.statistics()) == (
        balancer,
        False,
        frozenset(),
        None,
    )
    for count, change in ((4, lambda: members.add(members.bind())), (3, members.remove), (2, members.remove)):
        changed = change()
        assert [joined.place.count for joined in members] == [count] * count
    assert changed.sock is made[2]
    for joined in made[2:]:
        joined.close()
    place = members[0].place
    assert (place.displaced, place.leave(), place.restore(), place.close()) == (False, False, False, None)
    with pytest.raises(GroupError, match=rf"the balancer '{balancer}' cannot take a place over"):
        members.take_over(0)
    assert list(bpffs.glob("aiolb")) == []


def test_classic_members_share_the_sources(bpffs, route, sources_v4):
    """The classic balancer steers as its twin says among as many members as there are; the one that goes gets none."""
    sources, asked = sources_v4(300), JoinOptions(balancer="classic", group=GroupOptions(count=3, seed=7, bpffs=bpffs))
    # The socket that reserves the port is the first one on it: only when it is closed is a member number 0.
    made = []

    def binding(address):
        made.append(bind(address))
        return made[-1]

    with sockets.reserved_port(Address("127.0.0.1", 0)) as free:
        holder = bind(free)
    members = join_all(free, binding, asked, given={0: holder})
    assert route(members, sources) == {source: classic.choose(source, 3, 7) for source in sources}
    members.add(members.bind())
    assert route(members, sources) == {source: classic.choose(source, 4, 7) for source in sources}
    gone = members.remove()
    assert route(members, sources, gone=gone.sock) == {source: classic.choose(source, 3, 7) for source in sources}
    gone.sock.close()
    members.close()


def test_no_takeover_without_a_pinned_group(joining):
    """Who asks for a takeover is told where there can be none."""
    with pytest.raises(GroupError, match="a group that is not pinned cannot take a place over"):
        joining(2, pinned=False, takeover=True)
    with pytest.raises(GroupError, match="the classic balancer cannot take a place over"):
        joining(2, balancer="classic", takeover=True)


def test_our_own_sockets_are_no_others(joining):
    """Nobody is told of the sockets that are members, whoever made them."""
    assert joining(2).others == ()
    assert joining(2, takeover=True).others == ()
