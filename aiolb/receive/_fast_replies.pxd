# The layout of the compiled replies.

from aiolb.receive._linux cimport iovec, mmsghdr, sockaddr_in6

cdef enum:
    HELD = 64

cdef class FastReplies:
    cdef readonly unsigned long long datagrams_sent
    cdef readonly unsigned long long bytes_sent
    cdef public object on_left
    cdef object _fileno
    cdef bint _corked
    cdef bint _six
    cdef bint _busy
    cdef unsigned int _first
    cdef unsigned int _count
    cdef list _held
    cdef dict _packed
    cdef mmsghdr _messages[HELD]
    cdef iovec _vectors[HELD]
    cdef sockaddr_in6 _names[HELD]

    cdef bint _hold(self, bytes data, tuple addr, bytes name) except -1
    cdef bint _send(self, bytes data, bytes name) except -1
    cdef int _send_held(self) except -1
    cdef bytes _pack(self, tuple addr)
