# cython: language_level=3, wraparound=False, binding=False
"""The compiled sender: many pieces in one call, without the interpreter between the system calls."""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from aiolb.receive._linux cimport MSG_DONTWAIT, iovec, mmsghdr, sendmmsg, timespec
from aiolb.stamp import STAMP_SIZE, Stamp

cdef extern from "<endian.h>" nogil:
    uint32_t htobe32(uint32_t)
    uint64_t htobe64(uint64_t)

cdef extern from "<time.h>" nogil:
    int CLOCK_REALTIME
    int clock_gettime(int, timespec *)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int, const void *, size_t, int)

cdef enum:
    # Where the fields of a stamp are; a test compares them with aiolb.stamp.
    SOURCE_AT = 12
    SEQUENCE_AT = 16
    TIME_AT = 24


cdef class FastSender:
    """See :class:`aiolb.send.contract.Sender`."""

    cdef readonly int error
    cdef readonly unsigned int limit
    cdef public bint trains
    cdef bint _stamped
    cdef unsigned int _sources
    cdef size_t _size
    cdef object _sockets  # keeps the descriptors open
    cdef bytearray _buffer
    cdef char *_data
    cdef int *_descriptors
    cdef uint32_t *_numbers
    cdef uint64_t *_sent
    cdef iovec *_vectors
    cdef mmsghdr *_messages

    def __cinit__(self, sockets, bytes datagram, *, unsigned int limit, bint trains, run, numbers):
        cdef unsigned int i
        self._sources = len(sockets)
        self._descriptors = <int *>calloc(self._sources, sizeof(int))
        self._numbers = <uint32_t *>calloc(self._sources, sizeof(uint32_t))
        self._sent = <uint64_t *>calloc(self._sources, sizeof(uint64_t))
        self._vectors = <iovec *>calloc(limit, sizeof(iovec))
        self._messages = <mmsghdr *>calloc(limit, sizeof(mmsghdr))
        if not (self._descriptors and self._numbers and self._sent and self._vectors and self._messages):
            raise MemoryError
        self.limit = limit
        self.trains = trains
        self._stamped = run is not None
        self._size = len(datagram)
        self._sockets = tuple(sockets)
        self._buffer = bytearray(datagram * limit)
        if self._stamped:
            if self._size < STAMP_SIZE:
                raise ValueError(f"{self._size} bytes have no room for a stamp")
            for i in range(limit):
                Stamp(run, 0, 0, 0).pack_into(self._buffer, i * self._size)
        self._data = self._buffer
        for i in range(self._sources):
            self._descriptors[i] = sockets[i].fileno()
            self._numbers[i] = numbers[i]
        for i in range(limit):
            self._vectors[i].iov_base = self._data + (i * self._size if self._stamped else 0)
            self._vectors[i].iov_len = self._size
            self._messages[i].msg_hdr.msg_iov = &self._vectors[i]
            self._messages[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self._descriptors)
        free(self._numbers)
        free(self._sent)
        free(self._vectors)
        free(self._messages)

    @property
    def sent(self):
        """How many datagrams each source sent."""
        return [self._sent[i] for i in range(self._sources)]

    def send(self, unsigned int first, unsigned long long pieces, unsigned int length):
        """See :meth:`aiolb.send.contract.Sender.send`."""
        cdef unsigned long long done
        if not 1 <= length <= self.limit:
            raise ValueError(f"a piece of {length} datagrams is not from 1 to {self.limit}")
        if first >= self._sources:
            raise IndexError(f"there is no source {first}")
        with nogil:
            done = self._send(first, pieces, length)
        return done

    cdef unsigned long long _send(
        self, unsigned int source, unsigned long long pieces, unsigned int length
    ) noexcept nogil:
        cdef unsigned long long done = 0
        cdef unsigned int sent
        self.error = 0
        while pieces:
            pieces -= 1
            if self._stamped:
                self._stamp(source, length)
            if self.trains or length == 1:
                sent = self._train(self._descriptors[source], length)
            else:
                sent = self._batch(self._descriptors[source], length)
            self._sent[source] += sent
            done += sent
            if sent < length:
                break
            source = source + 1 if source + 1 < self._sources else 0
        return done

    cdef unsigned int _train(self, int descriptor, unsigned int length) noexcept nogil:
        if c_send(descriptor, self._data, length * self._size, MSG_DONTWAIT) >= 0:
            return length
        self.error = errno
        return 0

    cdef unsigned int _batch(self, int descriptor, unsigned int length) noexcept nogil:
        cdef unsigned int sent = 0
        cdef int number
        while sent < length:
            # A call that sent some tells no error; the next one does.
            number = sendmmsg(descriptor, self._messages + sent, length - sent, MSG_DONTWAIT)
            if number < 0:
                self.error = errno
                break
            sent += number
        return sent

    cdef void _stamp(self, unsigned int source, unsigned int length) noexcept nogil:
        cdef timespec now
        cdef uint32_t number = htobe32(self._numbers[source])
        cdef uint64_t time, sequence
        cdef char *at = self._data
        cdef unsigned int i
        clock_gettime(CLOCK_REALTIME, &now)
        time = htobe64(<uint64_t>now.tv_sec * 1000000000 + now.tv_nsec)
        for i in range(length):
            sequence = htobe64(self._sent[source] + i)
            memcpy(at + SOURCE_AT, &number, sizeof(number))
            memcpy(at + SEQUENCE_AT, &sequence, sizeof(sequence))
            memcpy(at + TIME_AT, &time, sizeof(time))
            at += self._size
