"""How a socket joins its group: the eBPF balancer, the classic one, or none, behind one chooser."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from aiolb import sockets
from aiolb.address import Address
from aiolb.bpf import classic, compiler, syscall
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.pins import Pins
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.state import cookie
from aiolb.config import ServeConfig
from aiolb.errors import GroupError, GroupNotFoundError, KernelError, PrivilegeError, StartError, UnsupportedError

FALLBACK_SETTLE = 0.2
"""Seconds to wait for packets in flight where membarrier(2) cannot: far beyond the microseconds that one takes."""


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What a collector asks for when it joins; ``group.count`` None is the group's present count.

    ``index`` is its place; who joins with all members has all of them.
    """

    index: int = 0
    balancer: str = "auto"
    takeover: bool = False
    compile: bool = False
    debug: bool = False
    group: GroupOptions = field(default_factory=GroupOptions)

    @classmethod
    def of(cls, config: ServeConfig) -> Self:
        """What the settings of a collector, or of a supervisor, ask for."""
        return cls(
            index=config.index,
            balancer=config.balancer,
            takeover=config.takeover,
            compile=config.compile,
            debug=config.debug,
            group=GroupOptions(
                protocol=config.protocol,
                count=config.count,
                seed=config.seed,
                strict=config.strict,
                bpffs=config.bpffs,
            ),
        )


class Place(Protocol):
    """What a joined socket has: the end of any way to join."""

    @property
    def count(self) -> int:
        """The present number of members."""

    @property
    def displaced(self) -> bool:
        """Whether another socket took the place over."""

    def restore(self) -> bool:
        """Take the place if it is empty, after ``leave()`` or because who took it over has died; whether it was."""

    def leave(self) -> bool:
        """Stop being selected where that is possible; whether it was."""

    def close(self, *, forget: bool = False) -> None:
        """Release what the place holds, but not the socket; ``forget`` the group if nobody is left in it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A bound socket in its group. ``fallback`` says why ``auto`` did not take the eBPF balancer.

    ``others`` are processes with a socket on the address that is outside of the group: it gets nothing while a member
    is alive. They may be members that drain, or another server. ``reports`` is where it tells of itself; None without
    a group.
    """

    sock: socket.socket
    place: Place
    balancer: str
    fallback: PrivilegeError | UnsupportedError | None = None
    others: tuple[sockets.Holder, ...] = ()
    reports: SharedReports | None = None


class UnmanagedPlace:
    """A place among sockets that the kernel numbers itself: it cannot be left or taken over."""

    displaced = False

    def __init__(self, count: int) -> None:
        self.count = count

    def restore(self) -> bool:
        """Nobody can take the place over."""
        return False

    def leave(self) -> bool:
        """The kernel goes on selecting the socket until it is closed."""
        return False

    def close(self, *, forget: bool = False) -> None:
        """Nothing to release or to forget."""


def join(address: Address, bind: Callable[[Address], socket.socket], options: JoinOptions) -> Joined:
    """Bind a socket to ``address`` and join its group with the balancer that was asked for.

    ``bind`` makes the bound socket; it is closed again when joining fails. Raises the errors of
    :meth:`Group.opened_or_created`, :meth:`Group.join`, ``bind`` and, with ``compile`` or ``debug``, CompileError.
    """
    if options.balancer == "none":
        return Joined(bind(address), UnmanagedPlace(options.group.count or 1), "none")
    if options.balancer == "classic":
        return _join_classic(address, bind, options)
    try:
        return _join_ebpf(address, bind, options)
    except (PrivilegeError, UnsupportedError) as error:
        if options.balancer == "ebpf":
            raise
        return _join_classic(address, bind, options, fallback=error)


def _join_ebpf(address: Address, bind: Callable[[Address], socket.socket], options: JoinOptions) -> Joined:
    wanted = group_options(options)
    with Group.opened_or_created(address, wanted) as group:
        group.check_vacant(options.index, count=wanted.count, takeover=options.takeover)
        with _bound(address, bind) as sock:
            others = () if options.takeover else others_on(address, group, [sock], wanted.protocol)
            place = group.join(sock, options.index, count=wanted.count, takeover=options.takeover)
        return Joined(sock, place, "ebpf", others=others, reports=group.reports)


def group_options(options: JoinOptions) -> GroupOptions:
    """The group's options, with the program that was asked for. Raises CompileError."""
    if options.compile or options.debug:
        return replace(options.group, program=compiler.compile_balancer(debug=options.debug))
    return options.group


def others_on(
    address: Address, group: Group, own: Collection[socket.socket], protocol: str = "udp"
) -> tuple[sockets.Holder, ...]:
    """Who has a socket on the address that is neither a member nor one of our own."""
    alive = group.alive()
    mine = {cookie(sock) for sock in own}
    members = [index for index in alive if group.cookie_of(index) not in mine]
    if len(_strangers(address, own, protocol, exactly=True)) <= len(members):
        return ()
    # Who started us may keep the port for us.
    known = {group.holder(index).pid for index in members} | {os.getpid(), os.getppid()}
    holders = sockets.holders_of(address, exactly=True, protocol=protocol)
    return tuple(holder for holder in holders if holder.pid not in known)


def _strangers(address: Address, own: Collection[socket.socket], protocol: str, *, exactly: bool = False) -> set[str]:
    """The inodes of the sockets on the address that are not our own."""
    mine = {str(os.fstat(sock.fileno()).st_ino) for sock in own}
    return set(sockets.sockets_on(address, exactly=exactly, protocol=protocol)) - mine


def _join_classic(
    address: Address,
    bind: Callable[[Address], socket.socket],
    options: JoinOptions,
    fallback: PrivilegeError | UnsupportedError | None = None,
) -> Joined:
    if options.takeover:
        raise GroupError("the classic balancer cannot take a place over", hint="--balancer ebpf can") from fallback
    refuse_to_mix(address, options.group)
    count = options.group.count or 1
    with _bound(address, bind) as sock:
        attach_classic(sock, count, options.group.seed)
    return Joined(sock, UnmanagedPlace(count), "classic", fallback)


def attach_classic(sock: socket.socket, count: int, seed: int | None) -> None:
    """Let the classic balancer choose among the sockets of a bound socket's port. Raises KernelError."""
    try:
        syscall.attach_reuseport_classic(sock, classic.program(count, seed or 0))
    except OSError as error:
        raise KernelError(
            f"the kernel does not take the classic balancer: {error.strerror}",
            errno=error.errno,
            hint="--balancer none leaves it to the kernel's own hash, without affinity of a source",
        ) from error


@contextmanager
def _bound(address: Address, bind: Callable[[Address], socket.socket]) -> Iterator[socket.socket]:
    sock = bind(address)
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def refuse_to_mix(address: Address, options: GroupOptions, own: Collection[socket.socket] = ()) -> None:
    """Raise GroupError where a group of others is alive: another program would steer its datagrams elsewhere."""
    if own and not _strangers(address, own, options.protocol):  # the service manager has our sockets open too
        return
    found = sockets.holders_of(address, protocol=options.protocol)
    others = [holder for holder in found if holder.pid != os.getpid()]
    if others and _may_be_running(address, options, {holder.uid for holder in others}):
        raise GroupError(
            f"a group with the eBPF balancer is running at {address} ({'; '.join(map(str, others))})",
            hint="join it as the user that made it, with CAP_BPF",
        )


def _may_be_running(address: Address, options: GroupOptions, users: set[int]) -> bool:
    """Whether the sockets that these users have on the port may be members of a group; pins alone outlive it."""
    bpffs = options.bpffs or BPFFS
    try:
        group = Group.open(address, protocol=options.protocol, bpffs=bpffs)
    except GroupNotFoundError:
        return False
    except PrivilegeError:
        # All sockets of a port are one user's: another user's pins are not of these sockets' group.
        folder = Pins(address, protocol=options.protocol, bpffs=bpffs).folder
        try:
            return folder.stat().st_uid in users
        except PermissionError:
            return True
    except StartError:
        return True
    try:
        return bool(group.alive())
    finally:
        group.close()


def wait_for_packets_in_flight() -> None:
    """Return when every packet that was steered before this call is in its socket's queue; blocks.

    A packet is steered and queued inside one RCU read-side section (net/core/dev.c), so an RCU grace period
    is enough, and membarrier(2) waits for one: 10 ms measured. Where it cannot, FALLBACK_SETTLE seconds.
    """
    try:
        syscall.membarrier()
    except OSError:
        time.sleep(FALLBACK_SETTLE)
