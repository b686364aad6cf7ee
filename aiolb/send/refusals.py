"""What the kernel says when it does not send, by the names that statistics have; pure."""

from __future__ import annotations

import errno

BLOCKED = frozenset({errno.EAGAIN, errno.ENOBUFS})
"""A queue is full: that of the socket, or the device's."""

_NAMES = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EPERM: "forbidden",
    errno.EACCES: "forbidden",
    errno.EMSGSIZE: "too_long",
}


def name_of(number: int) -> str:
    """The name of an errno."""
    return _NAMES.get(number) or errno.errorcode.get(number, str(number)).lower()
