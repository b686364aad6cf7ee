"""The service manager: told of this process's states, given sockets to keep, and asked for those it passes on.

The protocols of sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3) in pure Python. python-systemd speaks them
too, but binds the C library libsystemd; the libraries without it (sdnotify) send no descriptors.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Self

import structlog

from aiolb.address import MAX_PORT, PROTOCOLS, Address, parse_ip
from aiolb.errors import ConfigurationError, StartError

SEND_TIMEOUT = 1.0
"""Seconds that a message may wait for room in the manager's queue; then it is lost."""

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START: descriptors that are passed on are numbered from here."""

_STATUS_LENGTH = 1000  # characters of up to 4 bytes: the manager ignores messages above 4,096 bytes
_MAX_NAME = 255
_DIGITS = 18  # below 2^63
_SOCKET_PATH_LENGTH = 107  # unix(7): sun_path with its end
_LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

_log = structlog.get_logger(__name__)


class ServiceManager:
    """What this process tells the service manager that started it; without one, every call does nothing.

    Messages are sent at once and never raise: one that cannot be sent is lost, and the first such is logged. A call
    may block for SEND_TIMEOUT seconds where the manager does not read. Only the process that the manager started is
    heard (``NotifyAccess=main``). There is nothing to close.

    Attributes:
        watchdog_interval: seconds from one ``watchdog()`` to the next, half of what the manager waits; None where it
            does not watch.
        capacity: how many sockets the manager keeps for this service at most (``FileDescriptorStoreMax=``).

    """

    def __init__(
        self, address: str | None = None, *, watchdog_interval: float | None = None, capacity: int = 0
    ) -> None:
        self._address = None if address is None else _socket_address(address)
        self.watchdog_interval = watchdog_interval if address is not None else None
        self.capacity = capacity if address is not None else 0
        self._names: set[str] = set()
        self._lost = False
        self._due = -math.inf

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """The manager that NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID and FDSTORE tell of.

        Takes them out of ``environ``, so that no child process speaks for this one. Raises ConfigurationError
        for values that cannot be right and for sockets other than AF_UNIX ones.
        """
        address, usec, pid, store = (
            environ.pop(name, None) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
        )
        interval = None
        if usec is not None and (pid is None or _number("WATCHDOG_PID", pid) == os.getpid()):
            interval = _number("WATCHDOG_USEC", usec, low=1) / 2e6
        capacity = 0 if store is None else _number("FDSTORE", store)
        return cls(address or None, watchdog_interval=interval, capacity=capacity)

    @property
    def kept(self) -> bool:
        """Whether the manager keeps sockets: it says so since systemd 254, and older ones must be vouched for.

        ``Environment=FDSTORE=64`` in the unit does that, beside its ``FileDescriptorStoreMax=64``.
        """
        return self.capacity > 0

    def ready(self, status: str = "") -> None:
        """The start, or the reload, is complete."""
        self._send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """A reload begins; ``ready()`` ends it."""
        # Type=notify-reload takes only a message that was made after its signal: by the clock, CLOCK_MONOTONIC.
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """The stop begins."""
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """A line for people, as ``systemctl status`` shows it; cut after 1,000 characters."""
        self._send(*_status(text))

    def watchdog(self) -> None:
        """Say that this process works: every ``watchdog_interval`` seconds, where the manager watches."""
        if self.watchdog_interval is not None:
            self._send("WATCHDOG=1")

    def keep_alive(self, now: float, *, every: float) -> bool:
        """Say ``watchdog()`` if that is due by the monotonic clock ``now``; to be called ``every`` seconds."""
        if self.watchdog_interval is None or now < self._due:
            return False
        self._due = now + max(self.watchdog_interval - every, 0)
        self.watchdog()
        return True

    def keep(self, name: str, sock: socket.socket) -> bool:
        """Let the manager keep ``sock`` under ``name`` over the death of this process; whether it was asked to.

        The next process finds it with :func:`inherited`. The manager knows a socket that it has already; another
        one under the same name is a second one, so ``forget`` the first. It keeps a socket whatever happens to it
        (FDPOLL=0). Raises ConfigurationError for a name that it would not take.
        """
        _check_name(name)
        if not self.kept:
            return False
        if len(self._names | {name}) > self.capacity:
            _log.warning(
                "socket_not_kept",
                name=name,
                capacity=self.capacity,
                hint="raise FileDescriptorStoreMax= in the unit: it takes one for each member and address",
            )
            return False
        if not self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptor=sock.fileno()):
            return False
        self._names.add(name)
        return True

    def forget(self, name: str) -> None:
        """Let the manager close what it keeps under ``name``."""
        _check_name(name)
        if self.kept:
            self._send("FDSTOREREMOVE=1", f"FDNAME={name}")
            self._names.discard(name)

    def _send(self, *assignments: str, descriptor: int | None = None) -> bool:
        """Whether the message is in the manager's queue."""
        if self._address is None or not assignments:
            return False
        message = "\n".join(assignments).encode(errors="replace")
        try:
            # A socket for each message: they are rare, and nothing has to be closed or outlives a fork.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_TIMEOUT)
                sock.connect(self._address)
                if descriptor is None:
                    sock.send(message)
                else:
                    socket.send_fds(sock, [message], [descriptor])
        except OSError as error:
            self._report(assignments[0], error)
            return False
        return True

    def _report(self, assignment: str, error: OSError) -> None:
        if self._lost:
            return
        self._lost = True
        _log.warning(
            "service_manager_unreachable",
            lost=assignment,
            reason=str(error),
            hint="messages to it are lost; this is logged once",
        )


@dataclass(frozen=True, slots=True)
class SocketName:
    """The name under which the service manager keeps a member's socket; ``str()`` gives it, ``parse()`` reads it.

    ``aiolb_udp_127.0.0.1_10001_2`` is member 2 of the group at 127.0.0.1:10001. A colon would end the name, so
    IPv6 addresses are written with hyphens: ``aiolb_udp_2001-db8--1_10001_2``.
    """

    address: Address
    index: int
    protocol: str = "udp"

    def __str__(self) -> str:
        ip, percent, interface = self.address.host.partition("%")
        return f"aiolb_{self.protocol}_{ip.replace(':', '-')}{percent}{interface}_{self.address.port}_{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The member whose socket is called ``text``; None for a name that ``str()`` does not give."""
        ours, _, rest = text.partition("_")
        protocol, _, rest = rest.partition("_")
        # An interface may have underscores in its name.
        host, *numbers = rest.rsplit("_", 2)
        if ours != "aiolb" or protocol not in PROTOCOLS or len(numbers) != 2 or not all(map(_is_number, numbers)):  # noqa: PLR2004 - port, index
            return None
        ip, percent, interface = host.partition("%")
        try:
            canonical = parse_ip(f"{ip.replace('-', ':')}{percent}{interface}")
        except ConfigurationError:
            return None
        name = cls(Address(str(canonical), int(numbers[0])), int(numbers[1]), protocol)
        return name if str(name) == text and 0 < name.address.port <= MAX_PORT else None


@dataclass(frozen=True, slots=True)
class Inherited:
    """Descriptors that the service manager passed on, close-on-exec; they are the caller's to close.

    ``sockets`` are those with a name that :class:`SocketName` gives, ``others`` all other pairs of name and
    descriptor: what a socket unit opened, and a second one of the same name.
    """

    sockets: dict[SocketName, int]
    others: tuple[tuple[str, int], ...]


def inherited(environ: MutableMapping[str, str] = os.environ) -> Inherited:
    """What LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES tell of, if they are meant for this process.

    Takes them out of ``environ``, as child processes do not get the descriptors. Raises ConfigurationError for
    values that cannot be right, StartError for a descriptor that is not open.
    """
    pid, _, number, names = (environ.pop(name, None) for name in _LISTEN_VARIABLES)
    if pid is None or number is None or _number("LISTEN_PID", pid) != os.getpid():
        return Inherited({}, ())
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + _number("LISTEN_FDS", number, low=1))
    for descriptor in descriptors:
        _close_on_exec(descriptor, len(descriptors))
    return _sorted(list(zip(_names(names, len(descriptors)), descriptors, strict=True)))


def _sorted(passed: list[tuple[str, int]]) -> Inherited:
    sockets: dict[SocketName, int] = {}
    others = []
    for text, descriptor in passed:
        name = SocketName.parse(text)
        if name is None or name in sockets:
            others.append((text, descriptor))
        else:
            sockets[name] = descriptor
    return Inherited(sockets, tuple(others))


def _names(names: str | None, number: int) -> list[str]:
    if names is None:
        return ["unknown"] * number  # as sd_listen_fds_with_names(3) calls them
    found = names.split(":")
    if len(found) != number:
        raise ConfigurationError(
            f"LISTEN_FDNAMES has {len(found)} names, and LISTEN_FDS says {number}",
            hint="the service manager sets both; unset them to start without what it passes on",
        )
    return found


def _close_on_exec(descriptor: int, number: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.fcntl(descriptor, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)
    except (OSError, OverflowError) as error:
        raise StartError(
            f"LISTEN_FDS says {number} descriptors, but {descriptor} is not open",
            hint="a wrapper must not close what the service manager passes on: start aiolb itself with ExecStart=",
        ) from error


def _socket_address(text: str) -> str:
    """What connect(2) takes: an abstract name begins with a zero byte."""
    if text[:1] not in ("/", "@"):
        raise ConfigurationError(
            f"NOTIFY_SOCKET is {text!r}, and only AF_UNIX sockets can be told anything",
            hint="a path, or @ and an abstract name; unset it to tell nobody",
        )
    if not 1 < len(os.fsencode(text)) <= _SOCKET_PATH_LENGTH or "\0" in text:
        raise ConfigurationError(
            f"NOTIFY_SOCKET is {text!r}, which is no name of a socket",
            hint=f"it has {_SOCKET_PATH_LENGTH} bytes at most (unix(7))",
        )
    return f"\0{text[1:]}" if text.startswith("@") else text


def _status(text: str) -> tuple[str, ...]:
    """A line break would begin another assignment."""
    return (f"STATUS={' '.join(text.split())[:_STATUS_LENGTH]}",) if text else ()


def _check_name(name: str) -> None:
    if not 0 < len(name) <= _MAX_NAME or not all(" " <= letter < "\x7f" and letter != ":" for letter in name):
        raise ConfigurationError(
            f"the service manager keeps no socket under the name {name!r}",
            hint=f"1 to {_MAX_NAME} ASCII characters without colons (FDNAME= in sd_notify(3))",
        )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _number(variable: str, text: str, *, low: int = 0) -> int:
    if not _is_number(text) or int(text) < low:
        raise ConfigurationError(
            f"{variable} is {text!r}, which is no number{f' from {low} up' if low else ''}",
            hint=f"the service manager sets it; to start without: env -u {variable} aiolb …",
        )
    return int(text)
