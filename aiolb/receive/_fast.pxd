# The layout of the compiled receiver.

from libc.stdint cimport uint32_t, uint64_t
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject

from aiolb.receive._linux cimport iovec, mmsghdr

cdef struct Name:
    # A raw sockaddr_in or sockaddr_in6 with zeros behind it, so that two are compared in four steps.
    uint64_t words[4]

cdef struct Entry:
    Name name
    PyObject *addr
    # Datagrams since somebody asked.
    uint64_t count

cdef struct Control:
    # Room for UDP_GRO and SCM_TIMESTAMPNS, and for SO_RXQ_OVFL where somebody switched that on.
    uint64_t words[16]

cdef class AddressBook:
    cdef Entry *_entries
    cdef uint64_t _seed
    # Of senders that were pushed out: address and datagrams of some, and how many datagrams of the others.
    cdef dict _former
    cdef uint64_t _missed
    # Of all sources: registers, and while they are few their marks, in a hash table.
    cdef unsigned char _registers[2048]
    cdef uint32_t _marks[1024]
    cdef unsigned int _marked

    cdef tuple find(self, const Name *name, unsigned int count)
    cdef int _forget(self, Entry *entry) except -1
    cdef void _note(self, const Name *name) noexcept
    cdef void _keep(self, uint32_t mark) noexcept

cdef class Batch:
    # Datagrams that nobody has made yet, of the messages from `_message` on. `next` makes one; `addr` is its
    # address and `stamp` the time of its arrival, until the one after.
    cdef Py_ssize_t left
    cdef bint queued
    cdef object addr
    cdef unsigned long long stamp
    cdef FastReceiver _receiver
    cdef unsigned int _message
    # Of the message that is open: where its next datagram is, how many are left, their size and the last one's.
    cdef unsigned int _count
    cdef const char *_data
    cdef unsigned int _segment
    cdef unsigned int _tail
    cdef list _made
    cdef Py_ssize_t _at

    cdef object next(self)
    cdef int _open_message(self) except -1
    cdef object _take_made(self)
    cdef list settle(self)
    cdef int _make_all(self) except -1

cdef inline object next_of(Batch batch):
    # `Batch.next` without a call where a train goes on: most of what a datagram costs here.
    cdef unsigned int size
    if batch._count <= 1 or batch.left <= 1:
        return batch.next()
    size = batch._segment
    datagram = PyBytes_FromStringAndSize(batch._data, size)
    batch._data += size
    batch._count -= 1
    batch.left -= 1
    return datagram

cdef Batch ready(object datagrams)

cdef object item_of(object datagram, object addr, unsigned long long stamp)

cdef class FastReceiver:
    cdef readonly unsigned long long datagrams
    cdef readonly unsigned long long bytes
    cdef readonly unsigned long long truncated
    cdef readonly unsigned long long messages
    cdef readonly unsigned long long trains
    # Messages that were taken and not handed out: they are the first `kept` from `_first` on.
    cdef readonly unsigned int kept
    cdef unsigned int _first
    cdef object _sock
    cdef object _fileno
    cdef AddressBook _book
    cdef unsigned long long _sizes[16]
    cdef Batch _last
    cdef unsigned int _batch
    cdef unsigned int _limit
    cdef unsigned int _vlen
    cdef size_t _size
    cdef size_t _stride
    cdef size_t _control_size
    cdef bint _stamped
    cdef bint _busy
    cdef bint _few
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
    cdef void _measure(self, unsigned int taken) noexcept
    cdef Py_ssize_t _hand_out(self) noexcept
