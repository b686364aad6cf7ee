"""Reuseport sockets: creation, free ports, receive buffers, the kernel's counters, who holds a port."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from aiolb.address import DEFAULT_PORT, Address, IPAddress, canonical, split_host_port
from aiolb.bpf import syscall
from aiolb.errors import ConfigurationError, KernelError

# Linux names that the socket module of Python 3.11 lacks (include/uapi/asm-generic/socket.h).
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SO_DETACH_FILTER = 27
# And include/uapi/linux/udp.h.
_UDP_GRO = 104

_RMEM_MAX = Path("/proc/sys/net/core/rmem_max")
_MEMINFO = struct.Struct("=9I")

KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
"""The type of a group's sockets, by its protocol."""
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)


@dataclass(frozen=True, slots=True)
class SocketMemory:
    """SO_MEMINFO: bytes in the receive queue and their limit (both with the kernel's overhead), and drops.

    ``drops`` counts packets; a train is one packet.
    """

    queued: int
    limit: int
    drops: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A socket on a port: its user, and its process where /proc shows it."""

    uid: int
    pid: int | None

    def __str__(self) -> str:
        try:
            user = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            user = str(self.uid)
        return f"user {user}" if self.pid is None else f"pid {self.pid}, user {user}"


def resolve(text: str, *, default_port: int | None = DEFAULT_PORT) -> Address:
    """Read ``HOST:PORT``; a name is resolved (getaddrinfo(3), first answer). Raises ConfigurationError."""
    host, port = split_host_port(text, default_port=default_port)
    with suppress(ValueError):  # getaddrinfo(3) would lose the interface of fe80::1%eth0
        return Address(_named(canonical(ip_address(host))), port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name has such a part"
        raise ConfigurationError(
            f"{host!r} in {text!r} is neither an IP address nor a known name: {reason}",
            hint="e.g. 127.0.0.1:10001 or [::1]:10001",
        ) from error
    return Address(str(canonical(ip_address(str(found[0][4][0])))), port)


def _named(ip: IPAddress) -> str:
    """An address as text, with its interface, where it has one, by name: fe80::1%2 may be fe80::1%eth0."""
    if isinstance(ip, IPv6Address) and ip.scope_id is not None and ip.scope_id.isdigit():
        with suppress(OSError):  # none has that number, which is told by who uses it
            return f"{str(ip).partition('%')[0]}%{socket.if_indextoname(int(ip.scope_id))}"
    return str(ip)


def resolve_all(bind: str | Address | Iterable[str | Address]) -> tuple[Address, ...]:
    """Addresses given as text, as addresses, or several of them. Raises ConfigurationError."""
    items = [bind] if isinstance(bind, str | Address) else bind
    return tuple(item if isinstance(item, Address) else resolve(item) for item in items)


def bind_reuseport(address: Address) -> socket.socket:
    """A non-blocking UDP socket bound to ``address`` with SO_REUSEPORT; an IPv6 wildcard takes IPv4 too.

    The caller closes it. Raises KernelError, which names who holds the port.
    """
    return _bound(address, "udp")


def try_bind(address: Address, protocol: str = "udp") -> None:
    """Bind as a collector does, and let go at once; with TCP nobody can connect meanwhile. Raises KernelError."""
    _bound(address, protocol).close()


def bind_listening(address: Address, *, backlog: int) -> socket.socket:
    """As ``bind_reuseport``, a TCP socket that listens: before it does so no balancer can select it.

    ``backlog``: connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn (listen(2)).
    """
    sock = _bound(address, "tcp")
    try:
        # Accepted sockets inherit it: a peer that is gone for good does not hold a connection open for ever (tcp(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _bind_error(address, error, "tcp") from error
    return sock


def _bound(address: Address, protocol: str) -> socket.socket:
    sock = _socket(address, protocol)
    try:
        if protocol == "tcp":
            # Connections of a server before this one may still be in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(sockaddr(address))
    except OSError as error:
        sock.close()
        raise _bind_error(address, error, protocol) from error
    return sock


def bind_buffered(address: Address, *, size: int) -> socket.socket:
    """As ``bind_reuseport``, with a receive buffer of ``size`` bytes, as far as that may be."""
    sock = bind_reuseport(address)
    set_receive_buffer(sock, size)
    return sock


@contextmanager
def reserved_port(address: Address, protocol: str = "udp") -> Iterator[Address]:
    """Choose a free port if ``address`` has port 0, and keep it free for reuseport sockets inside the block.

    Two programs that bind port 0 with SO_REUSEPORT may be given the same port (Linux: udp_lib_lport_inuse()
    does not count such sockets of one user), so the port is found without the option, which is set afterwards.
    """
    if address.port:
        yield address
        return
    with _socket(address, protocol) as probe:
        try:
            probe.bind(sockaddr(address))
        except OSError as error:
            raise _bind_error(address, error, protocol) from error
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield address.with_port(probe.getsockname()[1])


def _socket(address: Address, protocol: str) -> socket.socket:
    try:
        sock = socket.socket(address.family, KINDS[protocol] | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise _bind_error(address, error, protocol) from error
    if address.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def sockaddr(address: Address) -> tuple[str, int] | tuple[str, int, int, int]:
    """What bind(2) and connect(2) take. Raises OSError for fe80::1%eth0 where no interface has that name.

    Python would forget the interface in a pair.
    """
    ip = address.ip
    if isinstance(ip, IPv4Address) or ip.scope_id is None:
        return address.host, address.port
    interface = int(ip.scope_id) if ip.scope_id.isdigit() else socket.if_nametoindex(ip.scope_id)
    return address.host.partition("%")[0], address.port, 0, interface


def interface_hint(address: Address) -> str | None:
    """What to write where the kernel does not take a link-local address for want of an interface; None for others."""
    ip = address.ip
    if isinstance(ip, IPv4Address):
        return None
    if ip.scope_id is not None:
        return "ip link shows the interfaces"
    if ip.is_link_local:
        return f"a link-local address needs its interface: [{ip}%eth0]:{address.port}; ip link shows which there are"
    return None


def _bind_error(address: Address, error: OSError, protocol: str) -> KernelError:
    if error.errno != errno.EADDRINUSE:
        hint = {
            errno.EADDRNOTAVAIL: "use an address of this machine (ip address), or 0.0.0.0 for all",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
            errno.EAFNOSUPPORT: "this machine has no IPv6: use an IPv4 address",
        }.get(error.errno or 0, interface_hint(address))
        return KernelError(f"cannot bind {address}: {error.strerror or error}", errno=error.errno, hint=hint)
    holders = holders_of(address, protocol=protocol)
    if not holders and protocol == "tcp":  # /proc/net/tcp has it only when it listens
        return KernelError(
            f"{address} is held by a socket that does not listen, and has no SO_REUSEPORT or another user",
            errno=error.errno,
            hint="ss -tanp shows connections from that port; choose another port",
        )
    who = f" ({'; '.join(map(str, holders))})" if holders else ""
    if any(holder.uid != os.geteuid() for holder in holders):
        reason = f"{address} is held by another user{who}"
        hint = "all sockets of a group need the same effective user"
    else:
        reason = f"{address} is held by a socket without SO_REUSEPORT{who}"
        hint = "stop that process, or choose another port"
    return KernelError(reason, errno=error.errno, hint=hint)


def holders_of(address: Address, *, protocol: str = "udp") -> list[Holder]:
    """Who has the sockets of ``sockets_on``; looks through all of /proc, as far as this user may see."""
    return named(sockets_on(address, protocol=protocol))


def named(found: Mapping[str, int], *, later: Collection[int] = ()) -> list[Holder]:
    """Who has sockets, given as ``sockets_on`` does; ``later`` as of ``opened_in``."""
    opened = opened_in(found, later=later)
    return [Holder(uid, opened[inode][0] if inode in opened else None) for inode, uid in found.items()]


def sockets_on(address: Address, *, exactly: bool = False, protocol: str = "udp") -> dict[str, int]:
    """The sockets of this network namespace that would take what is for ``address``: inode to user id.

    With ``exactly`` only those bound to that very address: not 0.0.0.0 for 127.0.0.1, or the other way round.
    With TCP only those that listen. Source: /proc/net/udp and /proc/net/tcp.
    """
    found = {}
    matches = _is_same if exactly else _overlaps
    hosts: dict[str, bool] = {}  # a thousand members have one
    for table, size in ((protocol, 4), (f"{protocol}6", 16)):
        for line in _lines(f"/proc/thread-self/net/{table}"):
            fields = line.split()
            host, port = fields[1].split(":")
            if int(port, 16) != address.port or (protocol == "tcp" and fields[3] != _LISTENING):
                continue
            if host not in hosts:
                hosts[host] = matches(_from_proc(host, size), address)
            if hosts[host]:
                found[fields[9]] = int(fields[7])
    return found


def _is_same(host: bytes, address: Address) -> bool:
    return host == address.ip.packed


def _overlaps(host: bytes, address: Address) -> bool:
    ip = canonical(ip_address(host))
    if ip.version != address.ip.version:  # an IPv6 wildcard takes IPv4 too, no other IPv6 address does
        return (ip if isinstance(ip, IPv6Address) else address.ip).is_unspecified
    return ip.is_unspecified or address.ip.is_unspecified or ip.packed == address.ip.packed


def _from_proc(text: str, size: int) -> bytes:
    """An address of /proc/net: 32-bit words in the machine's byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, size * 2, 8)]
    return struct.pack(f"={len(words)}I", *words)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()[1:]
    except FileNotFoundError:  # no IPv6
        return []


def opened_in(inodes: Iterable[str], *, later: Collection[int] = ()) -> dict[str, tuple[int, int]]:
    """Which process has a socket open, and as which descriptor, by inode; as far as this user may see.

    The processes ``later`` are looked at after all others, and only for what is missing still.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, tuple[int, int]] = {}
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as below
    for process in sorted(processes, key=lambda number: (number in later, number)):
        if len(found) == len(wanted):
            break
        for descriptor, name in _open_files(process):
            if name in wanted:
                found.setdefault(wanted[name], (process, descriptor))
    return found


def _open_files(process: int) -> list[tuple[int, str]]:
    found, folder = [], f"/proc/{process}/fd"
    # There may be many thousands, and with pathlib they take four times as long.
    with suppress(OSError):  # another user's process, or gone meanwhile
        for descriptor in os.listdir(folder):  # noqa: PTH208 - see above
            with suppress(OSError):
                found.append((int(descriptor), os.readlink(f"{folder}/{descriptor}")))  # noqa: PTH115 - see above
    return found


def set_receive_buffer(sock: socket.socket, size: int) -> None:
    """Ask for a receive buffer of ``size`` bytes, beyond net.core.rmem_max where CAP_NET_ADMIN allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def receive_buffer_limit() -> int | None:
    """Bytes of receive buffer that who has no CAP_NET_ADMIN may have; None where the kernel does not say."""
    with suppress(OSError, ValueError):  # an older kernel shows it in the first network namespace only
        return int(_RMEM_MAX.read_text())
    return None


def enable_gro(sock: socket.socket) -> bool:
    """Let the kernel hand over trains, for a receiver that is made after this; false where it cannot (before 5.0)."""
    try:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
    except OSError:
        return False
    return True


def address_of(sock: socket.socket, protocol: str = "udp") -> Address | None:
    """Where a socket of that protocol is bound; None for a socket of another kind."""
    if sock.type != KINDS[protocol] or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host, port, *more = sock.getsockname()
    if more and more[1] and "%" not in host:  # fe80::1 is another address on each interface
        host += f"%{more[1]}"
    return Address(_named(canonical(ip_address(host))), port)


def is_reuseport(sock: socket.socket) -> bool:
    """Whether other sockets may be bound to the same address."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def receive_buffer(sock: socket.socket) -> int:
    """Bytes of receive buffer that the socket was given; the kernel doubles them for its overhead (socket(7))."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def refuse_datagrams(sock: socket.socket) -> None:
    """Let the kernel drop, and count, what arrives from now on; what is queued stays to be read (socket(7))."""
    # One classic instruction, BPF_RET | BPF_K with 0: keep nothing of the packet.
    syscall.attach_filter(sock, struct.pack("=HBBI", 0x06, 0, 0, 0))


def accept_datagrams(sock: socket.socket) -> None:
    """Let datagrams in again after ``refuse_datagrams``, whichever process called that."""
    with suppress(FileNotFoundError):  # there is no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def memory(sock: socket.socket) -> SocketMemory:
    """The socket's receive queue and the packets that the kernel dropped for lack of room (SO_MEMINFO)."""
    fields = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    return SocketMemory(queued=fields[0], limit=fields[1], drops=fields[8])
