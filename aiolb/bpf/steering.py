"""How a socket joins its group: the eBPF balancer, the classic one, or none, behind one chooser."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, Self

from aiolb import socket_diag, sockets
from aiolb.address import Address
from aiolb.bpf import classic, syscall
from aiolb.bpf.abi import BPFFS
from aiolb.bpf.changes import SlotsChange
from aiolb.bpf.group import Group, GroupOptions
from aiolb.bpf.keys import Key
from aiolb.bpf.pins import Pins
from aiolb.bpf.rules import GuardOptions
from aiolb.bpf.shared_reports import SharedReports
from aiolb.bpf.state import cookie
from aiolb.config import ServeConfig
from aiolb.errors import (
    AiolbError,
    ConfigurationError,
    GroupError,
    GroupNotFoundError,
    KernelError,
    PrivilegeError,
    StartError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from aiolb.bpf.key_file import KeyFile

FALLBACK_SETTLE = 0.2
"""Seconds to wait for packets in flight where membarrier(2) cannot: far beyond the microseconds that one takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What a collector asks for when it joins; ``group.count`` None is the group's present count.

    ``index`` is its place, ``weight`` its part of the slots; who joins with all members has all places, and no weight.
    ``key_file`` makes the key ``group.key``.
    """

    index: int = 0
    weight: int | None = None
    balancer: str = "auto"
    takeover: bool = False
    compile: bool = False
    debug: bool = False
    key_file: KeyFile | None = None
    group: GroupOptions = field(default_factory=GroupOptions)

    @classmethod
    def of(cls, config: ServeConfig) -> Self:
        """What the settings of a collector, or of a supervisor, ask for; reads files. Raises ConfigurationError."""
        key_file = None if config.key_file is None else _key_file(config.key_file)
        return cls(
            index=config.index,
            weight=config.weight,
            balancer=config.balancer,
            takeover=config.takeover,
            compile=config.compile,
            debug=config.debug,
            key_file=key_file,
            group=GroupOptions(
                protocol=config.protocol,
                count=config.count,
                seed=config.seed,
                strict=config.strict,
                key=_key(config.key, key_file),
                guard=GuardOptions.parse(config.allow, config.deny, config.limit_source),
                bpffs=config.bpffs,
            ),
        )


def _key_file(path: Path) -> KeyFile:
    from aiolb.bpf.key_file import KeyFile

    return KeyFile.read(path)


def _key(text: str | None, key_file: KeyFile | None) -> Key | None:
    if key_file is not None:
        return key_file.key
    return None if text is None else Key.parse(text)


class Place(Protocol):
    """What a joined socket has: the end of any way to join."""

    @property
    def count(self) -> int:
        """The present number of members."""

    @property
    def displaced(self) -> bool:
        """Whether another socket took the place over."""

    @property
    def weight(self) -> int | None:
        """The member's part of the slots beside the others' weights; None where there are no slots."""

    @property
    def drained(self) -> bool:
        """Whether the member is to own no slots for the time being."""

    def slots_change(self) -> SlotsChange | None:
        """What slots have left the member and come to it since the last call."""

    def restore(self) -> bool:
        """Take the place if it is empty, after ``leave()`` or because who took it over has died; whether it was."""

    def leave(self) -> bool:
        """Stop being selected where that is possible; whether it was."""

    def close(self, *, forget: bool = False) -> None:
        """Release what the place holds, but not the socket; ``forget`` the group if nobody is left in it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A bound socket in its group, and the group's key, where it is known.

    ``fallback`` says why ``auto`` did not take the eBPF balancer.

    ``others`` are processes with a socket on the address that is outside of the group: it gets nothing while a member
    is alive. They may be members that drain, or another server. ``reports`` is where it tells of itself; None without
    a group. ``cautions`` are those of :class:`Group`.
    """

    sock: socket.socket
    place: Place
    balancer: str
    fallback: PrivilegeError | UnsupportedError | None = None
    others: tuple[sockets.Holder, ...] = ()
    key: Key | None = None
    reports: SharedReports | None = None
    cautions: Mapping[str, AiolbError] = field(default_factory=dict, hash=False)


class UnmanagedPlace:
    """A place among sockets that the kernel numbers itself: it cannot be left or taken over."""

    displaced = False
    weight: int | None = None
    drained = False

    def __init__(self, count: int) -> None:
        self.count = count

    def slots_change(self) -> None:
        """There are no slots, or somebody else looks after them."""

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
    return _join(address, partial(_bound, address, bind), options)


def join_bound(address: Address, sock: socket.socket, options: JoinOptions) -> Joined:
    """As :func:`join` with a socket that is bound to ``address`` already; the caller keeps it, also on an error."""
    return _join(address, lambda: nullcontext(sock), options)


_Bound = Callable[[], AbstractContextManager[socket.socket]]


def _join(address: Address, bound: _Bound, options: JoinOptions) -> Joined:
    if options.balancer == "none":
        refuse_guard(options, None)
        with bound() as sock:
            return Joined(sock, UnmanagedPlace(options.group.count or 1), "none")
    if options.balancer == "classic":
        return _join_classic(address, bound, options)
    try:
        return _join_ebpf(address, bound, options)
    except (PrivilegeError, UnsupportedError) as error:
        if options.balancer == "ebpf":
            raise
        return _join_classic(address, bound, options, fallback=error)


def _join_ebpf(address: Address, bound: _Bound, options: JoinOptions) -> Joined:
    wanted = group_options(options)
    with Group.opened_or_created(address, wanted) as group:
        group.check_vacant(options.index, count=wanted.count, takeover=options.takeover)
        with bound() as sock:
            others = () if options.takeover else others_on(address, group, [sock], wanted.protocol)
            place = group.join(
                sock, options.index, count=wanted.count, weight=options.weight, takeover=options.takeover
            )
        return Joined(sock, place, "ebpf", others=others, key=group.key, reports=group.reports, cautions=group.cautions)


def group_options(options: JoinOptions) -> GroupOptions:
    """The group's options, with the program that was asked for. Raises CompileError."""
    if not (options.compile or options.debug or options.key_file is not None):
        return options.group
    from aiolb.bpf import compiler

    compiled = compiler.compile_balancer(debug=options.debug, key_file=options.key_file)
    if options.group.protocol != "tcp":
        return replace(options.group, program=compiled)
    migrating = compiler.compile_balancer(debug=options.debug, migrates=True)
    return replace(options.group, program=migrating, otherwise=compiled)


def others_on(
    address: Address, group: Group, own: Collection[socket.socket], protocol: str = "udp"
) -> tuple[sockets.Holder, ...]:
    """Who has a socket on the address that is neither a member nor one of our own."""
    inside = {found for found in group.cookies() if found is not None}
    mine = {cookie(sock) for sock in own}
    try:
        ours, bound = inside | mine, socket_diag.bound_sockets(address, protocol)
        strangers = {found.inode: found.uid for found in bound if found.cookie not in ours}
    except OSError:  # this kernel lists no cookies, so who is a member is told by their number, and by their processes
        strangers = _strangers(address, own, protocol, exactly=True)
        if len(strangers) <= len(inside - mine):
            return ()
    if not strangers:
        return ()
    # Who started us may keep the port for us.
    known = {member.pid for member in group.holders()} | {os.getpid(), os.getppid()}
    return tuple(holder for holder in sockets.named(strangers, later=known) if holder.pid not in known)


def _strangers(
    address: Address, own: Collection[socket.socket], protocol: str, *, exactly: bool = False
) -> dict[str, int]:
    """The sockets on the address that are not our own: inode to user id."""
    mine = {str(os.fstat(sock.fileno()).st_ino) for sock in own}
    found = sockets.sockets_on(address, exactly=exactly, protocol=protocol)
    return {inode: uid for inode, uid in found.items() if inode not in mine}


def _join_classic(
    address: Address,
    bound: _Bound,
    options: JoinOptions,
    fallback: PrivilegeError | UnsupportedError | None = None,
) -> Joined:
    if options.takeover:
        raise GroupError("the classic balancer cannot take a place over", hint="--balancer ebpf can") from fallback
    key = classic_key(options, fallback)
    refuse_guard(options, fallback)
    if options.weight is not None:
        raise GroupError("the classic balancer has no weights", hint="--balancer ebpf has") from fallback
    refuse_to_mix(address, options.group)
    count = options.group.count or 1
    if options.index >= count:
        raise _outside(options.index, count, fallback)
    with bound() as sock:
        attach_classic(sock, count, options.group.seed, key)
    return Joined(sock, UnmanagedPlace(count), "classic", fallback, key=key)


def _outside(index: int, count: int, fallback: PrivilegeError | UnsupportedError | None) -> ConfigurationError:
    """Where nothing is shared, only the count that all are given says how many members there are."""
    reason = "" if fallback is None else f" (not eBPF, for {fallback})"
    return ConfigurationError(
        f"index {index} is outside of a group of {count}, and the classic balancer cannot know of more{reason}",
        hint="give every member the same --count",
    )


def classic_key(options: JoinOptions, fallback: PrivilegeError | UnsupportedError | None) -> Key:
    """The key that the classic balancer is to use. Raises GroupError for a key file, which it cannot run."""
    if options.key_file is not None:
        reason = "" if fallback is None else f": {fallback}"
        raise GroupError(
            f"a key file needs the eBPF balancer{reason}", hint="run as root or with CAP_BPF, on Linux 5.8 or newer"
        ) from fallback
    return options.group.key or Key()


def refuse_guard(options: JoinOptions, fallback: PrivilegeError | UnsupportedError | None) -> None:
    """Raise GroupError where a guard is asked for and ``auto`` would take a balancer that has none."""
    if options.group.guard:
        reason = "" if fallback is None else f": {fallback}"
        raise GroupError(
            f"--allow, --deny and --limit-source need the eBPF balancer{reason}",
            hint="run as root or with CAP_BPF, or leave them out",
        ) from fallback


def attach_classic(sock: socket.socket, count: int, seed: int | None, key: Key) -> None:
    """Let the classic balancer choose among the sockets of a bound socket's port. Raises KernelError."""
    try:
        syscall.attach_reuseport_classic(sock, classic.program(count, seed or 0, key))
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
        pins = Pins(address, protocol=options.protocol, bpffs=options.bpffs or BPFFS)
        raise GroupError(
            f"a group with the eBPF balancer is running at {pins.name} ({'; '.join(map(str, others))})",
            hint=f"join it as its members' user, without --balancer classic; {pins.command('show')} has its owner",
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
        try:
            return Pins(address, protocol=options.protocol, bpffs=bpffs).owner.uid in users
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
