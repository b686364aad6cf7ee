"""All members of a group in one process: joined together, added, taken away, taken over."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from aiolb import descriptors, sockets
from aiolb.address import Address
from aiolb.bpf import steering
from aiolb.bpf.abi import BPFFS, Report
from aiolb.bpf.balancers import Balancer, ClassicBalancer, EbpfBalancer, KernelBalancer
from aiolb.bpf.group import Group, GroupOptions, GroupStatistics
from aiolb.bpf.keys import Key
from aiolb.bpf.objects import check_count
from aiolb.bpf.state import cookie
from aiolb.bpf.steering import Joined, JoinOptions
from aiolb.errors import AiolbError, GroupError, PrivilegeError, UnsupportedError

Bind = Callable[[Address], socket.socket]
"""Makes a socket that is bound to an address."""


class Members:
    """Every member of one group by index, each with its socket and its place; owns the sockets until ``close()``.

    ``fallback`` says why ``auto`` did not take the eBPF balancer. ``unpinned`` says why the group is not pinned
    although that was wanted; then no other process can look at it, join it or take it over. ``others`` as in
    :class:`Joined`. ``close()`` of a single place does nothing.
    """

    def __init__(
        self,
        address: Address,
        bind: Bind,
        chosen: Balancer,
        socks: Mapping[int, socket.socket],
        *,
        fallback: PrivilegeError | UnsupportedError | None = None,
        unpinned: PrivilegeError | UnsupportedError | None = None,
        others: tuple[sockets.Holder, ...] = (),
    ) -> None:
        self.address = address
        self.fallback = fallback
        self.unpinned = unpinned
        self.others = others
        self._bind = bind
        self._closed = False
        self._chosen = chosen
        self._joined = [self._member(index, sock) for index, sock in sorted(socks.items())]

    def _member(self, index: int, sock: socket.socket) -> Joined:
        return Joined(sock, self._chosen.place(index, sock), self.balancer)

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Joined:
        return self._joined[index]

    def __iter__(self) -> Iterator[Joined]:
        return iter(self._joined)

    @property
    def balancer(self) -> str:
        """``ebpf``, ``classic`` or ``none``."""
        return self._chosen.name

    @property
    def key(self) -> Key | None:
        """The group's key; None where the kernel's own hash steers."""
        return self._chosen.key

    @property
    def pinned(self) -> bool:
        """Whether other processes can find the group."""
        return self._chosen.pinned

    @property
    def group(self) -> Group | None:
        """The group with its slots; None without eBPF. It is closed with the members."""
        return self._chosen.group

    @property
    def made(self) -> bool:
        """Whether there was no group before."""
        return self.group is not None and self.group.made

    def check_removable(self) -> None:
        """Raise ConfigurationError where ``remove()`` would."""
        check_count(len(self) - 1)
        if self.group is not None and not self.waiting:
            self.group.check_shares(len(self) - 1)

    @property
    def cautions(self) -> Mapping[str, AiolbError]:
        """What is to be warned of, by the name of the event."""
        return {} if self.group is None else self.group.cautions

    @property
    def reports_descriptor(self) -> int:
        """That of the memory in which the members tell of themselves, for workers; it stays ours."""
        return self._chosen.reports_descriptor

    def told(self) -> Mapping[int, Report]:
        """What the members told last, where there is no group to look at. Any thread may call it until ``close()``."""
        return self._chosen.told()

    @property
    def waiting(self) -> frozenset[int]:
        """The indexes that a takeover has not reached yet: ``take_over()`` each when its worker is ready."""
        return self._chosen.waiting

    def bind(self) -> socket.socket:
        """Bind one socket more, for ``add()``; the balancer does not select it yet, and it is the caller's.

        Raises what ``bind`` raises, ConfigurationError beyond 1,024 members.
        """
        check_count(len(self) + 1)
        return self._bind(self.address)

    def add(self, sock: socket.socket) -> Joined:
        """One member more, after the highest: its socket is placed, then its slots are moved to it.

        While others wait to take over, it waits too. Raises ConfigurationError beyond 1,024 members,
        MemberTakenError, KernelError; nothing has changed then, and the socket is still the caller's.
        """
        check_count(len(self) + 1)
        self._chosen.add([*self._sockets, sock])
        self._joined.append(self._member(len(self), sock))
        return self._joined[-1]

    def remove(self) -> Joined:
        """One member less, the highest: its slots are moved to the others, then its place is emptied.

        Its socket is the caller's from now on. Packets in flight still arrive there: call
        :func:`aiolb.bpf.steering.wait_for_packets_in_flight`, drain it, close it. Without eBPF a socket may be selected
        until it is closed. Raises ConfigurationError for the last member.
        """
        check_count(len(self) - 1)
        self._chosen.remove(self._sockets)
        return self._joined.pop()

    def take_over(self, index: int) -> bool:
        """Give a member its place in one atomic update, whoever holds it; whether another live socket did.

        That one keeps its queue, and its owner sees that it was displaced. When no member waits any more, the group
        gets as many members as there are here. Raises GroupError without eBPF, KernelError.
        """
        return self._chosen.take_over(index, self._sockets)

    def statistics(self) -> GroupStatistics | None:
        """The group's counters; None without eBPF."""
        return self._chosen.statistics()

    def close(self, *, forget: bool = False) -> None:
        """Close the sockets and the group's descriptors; with ``forget`` remove the pins if no member is alive.

        Who has copies of the sockets, as workers and a service manager have, keeps them and their places alive.
        Idempotent.
        """
        if self._closed:
            return
        self._closed = True
        for sock in self._sockets:
            sock.close()
        self._chosen.close(forget=forget)

    @property
    def _sockets(self) -> list[socket.socket]:
        return [joined.sock for joined in self._joined]


def join_all(
    address: Address, bind: Bind, options: JoinOptions, *, given: Mapping[int, socket.socket] | None = None
) -> Members:
    """Bind and join with the sockets of all members, in the order of their indexes; all or none.

    ``options.group.count`` members; None is the group's present count. ``bind`` makes a bound socket. ``given`` are
    sockets by index that are bound already, as a service manager keeps them over a restart: one that still has its
    place stays in it, and one beyond the count is a member too (``remove()`` it). On an error they stay open and the
    others are closed. With ``takeover``, where members of others are alive, no place is taken before ``take_over()``.

    ``auto`` takes a group that is not pinned where bpffs cannot be had, and the classic balancer where programs cannot
    be loaded; with ``takeover`` neither. Raises the errors of :func:`aiolb.bpf.steering.join`.
    """
    given = given or {}
    if options.balancer == "none":
        steering.refuse_guard(options, None)
        with _all_bound(address, bind, _wanted_count(options.group, given), given) as socks:
            return Members(address, bind, KernelBalancer(list(socks.values())), socks)
    if options.balancer == "classic":
        return _join_classic(address, bind, options, given)
    wanted = steering.group_options(options)
    try:
        return _join_ebpf(address, bind, wanted, given, takeover=options.takeover)
    except (PrivilegeError, UnsupportedError) as error:
        if options.balancer == "ebpf" or options.takeover:
            raise
        reason = error
    if wanted.bpffs is None:
        return _join_classic(address, bind, options, given, fallback=reason)
    try:
        if wanted.bpffs != BPFFS:  # there it is looked for in any case
            steering.refuse_to_mix(address, wanted, given.values())
        return _join_ebpf(address, bind, replace(wanted, bpffs=None), given, unpinned=reason)
    except (PrivilegeError, UnsupportedError) as error:
        return _join_classic(address, bind, options, given, fallback=error)


def _wanted_count(options: GroupOptions, given: Mapping[int, socket.socket], present: int = 1) -> int:
    return max(options.count or present, *(index + 1 for index in given), 1)


def _join_ebpf(
    address: Address,
    bind: Bind,
    options: GroupOptions,
    given: Mapping[int, socket.socket],
    *,
    takeover: bool = False,
    unpinned: PrivilegeError | UnsupportedError | None = None,
) -> Members:
    if options.bpffs is None:
        steering.refuse_to_mix(address, options, given.values())
        if takeover:
            raise GroupError(
                "a group that is not pinned cannot take a place over", hint="--bpffs names where to pin it"
            )
    with Group.opened_or_created(address, options) as group:
        count = _wanted_count(options, given, group.config.count)
        indexes = {index: given.get(index) for index in range(count)}
        waiting = _waiting(group, indexes) if takeover else frozenset()
        if not waiting:
            group.check_all_vacant(indexes, count=count)
        with _all_bound(address, bind, count, given) as socks:
            others = () if takeover else steering.others_on(address, group, socks.values(), options.protocol)
            if not waiting:
                group.join_all(socks, count=count)
            return Members(address, bind, EbpfBalancer(group, waiting), socks, unpinned=unpinned, others=others)


def _waiting(group: Group, indexes: Mapping[int, socket.socket | None]) -> frozenset[int]:
    """The indexes to take over one by one; none where nobody but the given sockets is alive."""
    held = {index for index, sock in indexes.items() if sock is not None and group.cookie_of(index) == cookie(sock)}
    return frozenset(indexes.keys() - held) if group.alive() - held else frozenset()


def _join_classic(
    address: Address,
    bind: Bind,
    options: JoinOptions,
    given: Mapping[int, socket.socket],
    fallback: PrivilegeError | UnsupportedError | None = None,
) -> Members:
    if options.takeover:
        raise GroupError("the classic balancer cannot take a place over", hint="--balancer ebpf can")
    key = steering.classic_key(options, fallback)
    steering.refuse_guard(options, fallback)
    steering.refuse_to_mix(address, options.group, given.values())
    with _all_bound(address, bind, _wanted_count(options.group, given), given) as socks:
        chosen = ClassicBalancer(list(socks.values()), options.group.seed, key)
        return Members(address, bind, chosen, socks, fallback=fallback)


@contextmanager
def _all_bound(
    address: Address, bind: Bind, count: int, given: Mapping[int, socket.socket]
) -> Iterator[dict[int, socket.socket]]:
    """A socket for each index; those that were made here are closed on an error."""
    descriptors.allow(count - len(given), f"the sockets of {count:,} members")
    with ExitStack() as on_error:
        socks = {}
        for index in range(count):
            socks[index] = given[index] if index in given else on_error.enter_context(bind(address))
        yield socks
        on_error.pop_all()
