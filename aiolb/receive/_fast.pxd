# The layout of the compiled receiver.

from libc.stdint cimport uint64_t
from cpython.ref cimport PyObject

from aiolb.receive._linux cimport iovec, mmsghdr

cdef struct Name:
    # A raw sockaddr_in or sockaddr_in6 with zeros behind it, so that two are compared in four steps.
    uint64_t words[4]

cdef struct Entry:
    Name name
    PyObject *addr

cdef struct Control:
    # Room for UDP_GRO and SCM_TIMESTAMPNS, and for SO_RXQ_OVFL where somebody switched that on.
    uint64_t words[16]

cdef class AddressBook:
    cdef Entry *_entries
    cdef uint64_t _seed

    cdef tuple find(self, const Name *name)

cdef class Batch:
    # Datagrams that nobody has made yet: `next` makes one, and `addr` is its address until the one after.
    cdef Py_ssize_t left
    cdef bint queued
    cdef object addr
    cdef FastReceiver _receiver
    cdef unsigned int _message
    cdef unsigned int _count
    cdef char *_data
    cdef unsigned int _rest
    cdef unsigned int _segment
    cdef list _made
    cdef Py_ssize_t _at

    cdef object next(self)
    cdef int _open_message(self) except -1
    cdef list settle(self)
    cdef int _make_all(self) except -1

cdef Batch ready(object datagrams)

cdef class FastReceiver:
    cdef readonly unsigned long long datagrams
    cdef readonly unsigned long long bytes
    cdef readonly unsigned long long truncated
    cdef readonly unsigned long long messages
    cdef readonly unsigned long long trains
    cdef readonly list timestamps
    cdef object _sock
    cdef AddressBook _book
    cdef Batch _last
    cdef unsigned int _batch
    cdef unsigned int _limit
    cdef unsigned int _vlen
    cdef size_t _size
    cdef size_t _stride
    cdef size_t _control_size
    cdef bint _stamped
    cdef bint _busy
    cdef char *_buffers
    cdef mmsghdr *_messages
    cdef iovec *_vectors
    cdef Name *_names
    cdef Control *_controls
    cdef unsigned int *_segments
    cdef unsigned int *_counts
    cdef unsigned long long *_stamps

    cdef void _rearm(self, unsigned int i) noexcept
    cdef void _read_control(self, unsigned int i) noexcept
    cdef int _fill(self, int fd) except -2
    cdef Py_ssize_t _measure(self, unsigned int taken)
    cdef int _note_times(self, unsigned int taken) except -1
