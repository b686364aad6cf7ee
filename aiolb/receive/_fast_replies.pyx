# cython: language_level=3, wraparound=False, binding=False
"""The compiled replies: datagrams are held, and leave together in one sendmmsg."""

import os
import socket

from libc.errno cimport errno
from libc.string cimport memcpy, memset

from aiolb.receive._linux cimport (
    AF_INET, AF_INET6, MSG_DONTWAIT, htonl, htons, inet_pton, iovec, mmsghdr, sendmmsg, sendto, sockaddr_in,
    sockaddr_in6,
)

cdef enum:
    # Addresses whose raw form is kept; when there are more, all are forgotten.
    ENTRIES = 4096
    # Up to so many leave faster than another thread could take over; the system call does not wait.
    FEW = 8


cdef class FastReplies:
    """A :class:`~aiolb.receive.contract.Replies` for an IPv4 or IPv6 UDP socket; see the .pyi file."""

    def __cinit__(self, sock):
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"a socket of IPv4 or IPv6 is needed, not {sock.family!r}")
        self._fileno = sock.fileno
        self._six = sock.family == socket.AF_INET6
        self._held = []
        self._packed = {}
        memset(self._messages, 0, sizeof(self._messages))

    def __len__(self):
        return self._count - self._first

    def cork(self):
        """See :meth:`aiolb.receive.contract.Replies.cork`."""
        self._corked = True

    def uncork(self):
        """See :meth:`aiolb.receive.contract.Replies.uncork`."""
        self._corked = False
        if self._count == self._first or self._busy:
            return
        self._send_held()
        if self._count != self._first and self.on_left is not None:
            self.on_left()

    def reply(self, data, addr, /):
        """See :meth:`aiolb.receive.contract.Replies.reply`."""
        cdef bytes name
        if type(data) is not bytes or type(addr) is not tuple or self._busy:
            return False
        name = self._pack(addr)
        if name is None:
            return False
        return self._hold(data, addr, name) if self._corked else self._send(data, name)

    cdef bint _hold(self, bytes data, tuple addr, bytes name) except -1:
        # Made first: it may start the garbage collector, and what that runs may reply or flush too.
        cdef tuple item = (data, addr)
        cdef unsigned int i = self._count
        if i == HELD or self._busy:
            return False
        self._held.append(item)
        memcpy(&self._names[i], <char *>name, len(name))
        self._vectors[i].iov_base = <char *>data
        self._vectors[i].iov_len = len(data)
        self._messages[i].msg_hdr.msg_name = &self._names[i]
        self._messages[i].msg_hdr.msg_namelen = len(name)
        self._messages[i].msg_hdr.msg_iov = &self._vectors[i]
        self._messages[i].msg_hdr.msg_iovlen = 1
        self._count += 1
        return True

    cdef bint _send(self, bytes data, bytes name) except -1:
        cdef ssize_t sent
        if self._count != self._first:
            return False
        sent = sendto(self._fileno(), <char *>data, len(data), MSG_DONTWAIT, <const void *><char *>name, len(name))
        if sent < 0:
            return False
        self.datagrams_sent += 1
        self.bytes_sent += sent
        return True

    def flush(self):
        """See :meth:`aiolb.receive.contract.Replies.flush`."""
        cdef int error
        self._check_idle()
        if self._first == self._count:
            return
        error = self._send_held()
        if error:
            raise OSError(error, os.strerror(error))

    cdef int _send_held(self) except -1:
        """One system call; its errno, or 0."""
        cdef int sent, error = 0, fd = self._fileno()
        cdef unsigned int i, number = self._count - self._first
        if number <= FEW:
            sent = sendmmsg(fd, &self._messages[self._first], number, MSG_DONTWAIT)
            if sent < 0:
                return errno
        else:
            self._busy = True
            with nogil:
                sent = sendmmsg(fd, &self._messages[self._first], number, MSG_DONTWAIT)
                if sent < 0:
                    error = errno
            self._busy = False
            if error:
                return error
        for i in range(self._first, self._first + sent):
            self.bytes_sent += self._messages[i].msg_len
        self.datagrams_sent += sent
        self._first += sent
        if self._first == self._count:
            self._forget()
        return 0

    def drop(self):
        """See :meth:`aiolb.receive.contract.Replies.drop`."""
        self._check_idle()
        if self._first < self._count:
            self._first += 1
        if self._first == self._count:
            self._forget()

    def release(self):
        """See :meth:`aiolb.receive.contract.Replies.release`."""
        cdef list fresh = [], held = self._held
        cdef unsigned int first = self._first
        self._check_idle()
        self._held = fresh
        self._first = self._count = 0
        return held[first:]

    def _check_idle(self):
        if self._busy:
            raise RuntimeError("another thread is inside flush()")

    def _forget(self):
        self._first = self._count = 0
        self._held.clear()

    cdef bytes _pack(self, tuple addr):
        """The raw form of an address; None for one that must be left to the socket module."""
        cdef sockaddr_in v4
        cdef sockaddr_in6 v6
        cdef bytes name
        known = self._packed.get(addr)
        if known is not None:
            return known
        if not (2 <= len(addr) <= 4) or type(addr[0]) is not str or not addr[0].isascii():
            return None
        for number, limit in zip(addr[1:], (65535, 0xFFFFF, 0xFFFFFFFF)):
            if type(number) is not int or not 0 <= number <= limit:
                return None
        host = addr[0].encode("ascii")
        if b"\0" in host:
            return None
        if self._six:
            memset(&v6, 0, sizeof(v6))
            v6.sin6_family = AF_INET6
            v6.sin6_port = htons(addr[1])
            v6.sin6_flowinfo = htonl(addr[2] if len(addr) > 2 else 0)
            v6.sin6_scope_id = addr[3] if len(addr) > 3 else 0
            if inet_pton(AF_INET6, <char *>host, &v6.sin6_addr) != 1:
                return None
            name = (<char *>&v6)[:sizeof(v6)]
        else:
            memset(&v4, 0, sizeof(v4))
            v4.sin_family = AF_INET
            v4.sin_port = htons(addr[1])
            if len(addr) != 2 or inet_pton(AF_INET, <char *>host, &v4.sin_addr) != 1:
                return None
            name = (<char *>&v4)[:sizeof(v4)]
        if len(self._packed) >= ENTRIES:
            self._packed.clear()
        self._packed[addr] = name
        return name
