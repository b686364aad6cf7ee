"""Sockets that outlive their supervisor: they are adopted, and nothing is lost or steered elsewhere meanwhile."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

import pytest

from aiolb import sockets
from aiolb.bpf import state, syscall
from aiolb.errors import KernelError, MemberTakenError
from aiolb.publisher import Publisher

SEED = 5


@pytest.fixture
def keep():
    """Copies of members' sockets, as a service manager keeps them: ``keep(members)``; closed at the end."""
    with ExitStack() as stack:
        yield lambda members: {index: stack.enter_context(joined.sock.dup()) for index, joined in enumerate(members)}


@pytest.fixture(params=["pinned", "unpinned"])
def pinned(request):
    """Whether the group that adopts is pinned."""
    return request.param == "pinned"


def cookies(members):
    """Who holds each index."""
    return [member.cookie for member in members.statistics().members]


def test_sockets_stay_in_their_places(joining, keep, monkeypatch):
    """Sockets that still have their places stay in them, with slots, seed and counters; the new process is named."""
    old = joining(3, seed=SEED)
    kept = keep(old)
    before, slots = old.statistics(), old._chosen.group.slots
    old.close()
    update, places = syscall.map_update, []

    def watched(fd, key, value):
        if len(value) == 8:
            places.append(key)
        update(fd, key, value)

    monkeypatch.setattr(syscall, "map_update", watched)
    monkeypatch.setattr(os, "getpid", lambda: 4711)
    new = joining(3, given=kept, seed=None)
    after = new.statistics()
    assert places == [], "a place was written"
    assert [joined.sock for joined in new] == list(kept.values())
    assert (after.seed, new._chosen.group.slots) == (SEED, slots)
    assert [member.pid for member in after.members] == [4711] * 3
    assert [(m.cookie, m.joined_ns) for m in after.members] == [(m.cookie, m.joined_ns) for m in before.members]


def test_what_is_missing_is_made(joining, keep):
    """Where a socket was lost, or its member taken out, the place is filled again; the others stay."""
    old = joining(3)
    kept = keep(old)
    before = cookies(old)
    old[2].place.leave()
    old.close()
    kept.pop(1).close()
    new = joining(3, given=kept)
    assert cookies(new) == [joined.place.cookie for joined in new]
    assert [was == now for was, now in zip(before, cookies(new), strict=True)] == [True, False, True]


def test_more_sockets_than_members(joining, keep):
    """A socket beyond the count is a member, so that what waits in it is not lost; it can be taken away."""
    old = joining(4)
    kept = keep(old)
    old.close()
    new = joining(2, given=kept)
    assert (len(new), len(cookies(new))) == (4, 4)
    while len(new) > 2:
        new.remove().sock.close()
    assert cookies(new) == [joined.place.cookie for joined in new]


def test_the_place_of_another(joining, keep):
    """A socket is not given the place of another live one; it stays open, and where it was."""
    old = joining(2)
    kept = keep(old)
    before = cookies(old)
    with pytest.raises(MemberTakenError, match="index 0 of the group"):
        joining(2, given={0: kept[1], 1: kept[0]})
    assert cookies(old) == before
    assert min(sock.fileno() for sock in kept.values()) > 0


def test_given_sockets_survive_a_failure(joining, keep, pinned):
    """When joining fails, what was given stays open."""
    old = joining(2, pinned=pinned)
    kept = keep(old)
    old.close()

    def fail(_):
        raise KernelError("no")

    with pytest.raises(KernelError, match="no"):
        joining(3, pinned=pinned, given=kept, bind=fail)
    assert min(sock.fileno() for sock in kept.values()) > 0


@pytest.mark.parametrize("former", ["pinned", "unpinned"])
def test_the_former_group_is_gone(joining, keep, pinned, former, monkeypatch):
    """Sockets of a group that nobody can open any more are freed of it, and all placed before they are steered to."""
    old = joining(3, pinned=former == "pinned")
    kept = keep(old)
    before = cookies(old)
    old._chosen.group.delete()
    old.close()
    attach, places, alive = syscall.attach_reuseport, state.GroupState.place_all, []

    def place_all(self, socks):
        monkeypatch.setattr(syscall, "attach_reuseport", lambda *args: (alive.append(self.alive()), attach(*args)))
        places(self, socks)

    monkeypatch.setattr(state.GroupState, "place_all", place_all)
    new = joining(3, given=kept, pinned=pinned)
    assert alive == [{0, 1, 2}]
    assert cookies(new) == before


@pytest.mark.parametrize("balancer", ["classic", "none"])
def test_back_to_ebpf(joining, keep, cluster, sources_v4, balancer):
    """After a run with another balancer the group's own program steers its sockets again."""
    first = joining(3)
    kept = keep(first)
    first.close()
    second = joining(3, given=dup_all(kept), balancer=balancer)
    assert [joined.place.leave() for joined in second] == [False] * 3
    second.close()
    third, sources, carrier = joining(3, given=kept), sources_v4(300), cluster(1)
    own, carrier.sockets = carrier.sockets, dict(enumerate(joined.sock for joined in third))
    received = carrier.route(sources, to=third.address)
    carrier.sockets = own
    assert received == {source: third._chosen.group.locate(source) for source in sources}


def test_another_version_of_the_program(joining, keep, compiled_debug):
    """A newer version brings its program along, and attaches it to the sockets that it was given."""
    old = joining(2)
    kept = keep(old)
    old.close()
    new = joining(2, given=kept, program=compiled_debug)
    assert new._chosen.group.config.program == compiled_debug.digest
    assert None not in cookies(new)


def test_a_former_group_that_does_not_end(joining, keep, monkeypatch):
    """Sockets that a group keeps which is still open are refused, with what keeps them; they stay open."""
    monkeypatch.setattr(state, "FORMER_GROUP_TIMEOUT", 0.05)
    old = joining(2)
    kept = keep(old)
    with pytest.raises(KernelError, match="the socket cannot join the group") as caught:
        joining(2, given=kept, pinned=False)
    assert "another group has the socket" in caught.value.hint
    assert min(sock.fileno() for sock in kept.values()) > 0


async def test_nothing_is_lost_meanwhile(joining, keep, address, pinned):
    """While 20,000 datagrams arrive, three supervisors follow one another: all are in the queues, none was dropped."""
    members = joining(3, pinned=pinned, strict=True)
    kept, received, rounds = keep(members), 0, 0

    def read():
        nonlocal received
        for sock in kept.values():
            while True:
                try:
                    sock.recv(2048)
                except BlockingIOError:
                    break
                received += 1

    async with Publisher(address, rate=20_000, count=20_000, sources=100) as publisher:
        sending = asyncio.create_task(publisher.run())
        while not sending.done():
            await asyncio.sleep(0.01)
            read()
            if rounds < 3 and received > 5_000 * (rounds + 1):
                rounds += 1
                members.close()
                members = joining(3, pinned=pinned, strict=True, given=dup_all(kept))
        await sending
    async with asyncio.timeout(10):
        while received < 20_000:
            await asyncio.sleep(0.001)
            read()
    statistics = members.statistics()
    assert (received, rounds) == (20_000, 3)
    assert (statistics.unsteered, statistics.dropped, statistics.failovers) == (0, 0, 0)
    assert [sockets.memory(sock).drops for sock in kept.values()] == [0] * 3


def dup_all(kept):
    """What the service manager passes on; it keeps its own."""
    return {index: sock.dup() for index, sock in kept.items()}
