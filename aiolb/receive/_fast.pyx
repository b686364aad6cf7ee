# cython: language_level=3, wraparound=False, cdivision=True, binding=False
"""The compiled receiver: one recvmmsg into reused buffers, trains split, address tuples made once per sender."""

import os
import socket

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from aiolb.receive._linux cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, IPPROTO_UDP, MSG_DONTWAIT,
    MSG_TRUNC, SO_TIMESTAMPNS, SOL_SOCKET, UDP_GRO, cmsghdr, inet_ntop, iovec, mmsghdr, ntohl, ntohs, recvmmsg,
    sockaddr_in, sockaddr_in6, timespec,
)

from aiolb.receive.contract import BATCH, BUFFER_SIZE, DATAGRAMS, SIZES, TimedDatagram

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject *)
    bint PyGC_Disable()
    bint PyGC_Enable()
    int __builtin_clzll(unsigned long long)
    int __builtin_clz(unsigned int)

# Senders whose address tuple is kept: about 1 MiB at most, whoever sends.
cdef enum:
    ENTRIES = 4096
# Senders of a single datagram that are kept when another one has pushed them out.
cdef enum:
    SINGLES = 1024
# Registers of the sketch of all sources, the bits that choose one, and how many sources are told apart exactly, in a
# table that is half empty then: aiolb/sketch.py is the twin.
cdef enum:
    REGISTERS = 2048
    INDEX_BITS = 11
    EXACT = 512
    MARKS = 2 * EXACT
# Buffers exactly 64 KiB apart would share one set of the processor's caches: a cache line more than a page apart
# from that, their first bytes do not.
cdef enum:
    SKEW = 4096 + 64
# A call that follows one with fewer messages than these is over sooner than another thread could take the GIL, which
# would cost a single datagram 5 %. It never waits.
cdef enum:
    FEW = 8


cdef class AddressBook:
    """The address tuples of recent senders, by raw address; a sender may push another one out, never add to it."""

    def __cinit__(self):
        self._entries = <Entry *>calloc(ENTRIES, sizeof(Entry))
        if self._entries == NULL:
            raise MemoryError
        # Nobody can aim senders at one entry, which would make each of their datagrams dearer.
        self._seed = int.from_bytes(os.urandom(8), "little")
        self._former = {}

    def __dealloc__(self):
        cdef int i
        if self._entries != NULL:
            for i in range(ENTRIES):
                Py_XDECREF(self._entries[i].addr)
            free(self._entries)

    cdef tuple find(self, const Name *name, unsigned int count):
        """The address tuple of a sender, from whom so many datagrams came."""
        cdef uint64_t mixed = (name.words[0] ^ self._seed) * <uint64_t>0x9E3779B97F4A7C15
        cdef Entry *entry
        cdef PyObject *old
        cdef tuple addr
        cdef bint collecting
        mixed = (mixed ^ (mixed >> 32) ^ name.words[1]) * <uint64_t>0xD6E8FEB86659FD93
        mixed = (mixed ^ (mixed >> 32) ^ name.words[2]) * <uint64_t>0xD6E8FEB86659FD93
        mixed = (mixed ^ (mixed >> 32) ^ name.words[3]) * <uint64_t>0xD6E8FEB86659FD93
        entry = &self._entries[(mixed >> 32) % ENTRIES]
        if entry.addr != NULL and _same(&entry.name, name):
            entry.count += count
            return <tuple>entry.addr
        # What the garbage collector would run may come back here, or take another batch over this name.
        collecting = PyGC_Disable()
        try:
            addr = _make_addr(name)
            if entry.count:
                self._forget(entry)
        finally:
            if collecting:
                PyGC_Enable()
        # A source that was never noted is in no entry.
        self._note(name)
        old = entry.addr
        entry.name = name[0]
        entry.count = count
        Py_INCREF(addr)
        entry.addr = <PyObject *>addr
        Py_XDECREF(old)
        return addr

    cdef int _forget(self, Entry *entry) except -1:
        """Keep the count of a sender that is pushed out, unless it is one of very many that send a single datagram."""
        cdef tuple addr = <tuple>entry.addr
        cdef uint64_t known = self._former.get(addr, 0)
        if known or len(self._former) < (SINGLES if entry.count == 1 else ENTRIES):
            self._former[addr] = known + entry.count
        else:
            self._missed += entry.count
        return 0

    cdef void _note(self, const Name *name) noexcept:
        """Add the source to the sketch."""
        cdef const sockaddr_in *v4 = <const sockaddr_in *>name
        cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>name
        cdef uint64_t words[2]
        cdef uint32_t mark, rest
        cdef unsigned char rank
        if v4.sin_family == AF_INET:
            # ::ffff:a.b.c.d, read as two numbers of a little-endian machine.
            words[0], words[1] = 0, <uint64_t>v4.sin_addr.s_addr << 32 | <uint64_t>0xFFFF0000
        else:
            memcpy(words, &v6.sin6_addr, sizeof(words))
        mark = <uint32_t>(_mix(_mix(words[0]) ^ words[1]) >> 32)
        if mark == 0:
            mark = 1
        rest = mark >> INDEX_BITS
        rank = 32 - INDEX_BITS + 1
        if rest:
            rank = __builtin_clz(rest) - INDEX_BITS + 1
        if self._registers[mark % REGISTERS] < rank:
            self._registers[mark % REGISTERS] = rank
        if self._marked <= EXACT:
            self._keep(mark)

    cdef void _keep(self, uint32_t mark) noexcept:
        """Add a mark to the table; from the first one too many on there is no more to be kept."""
        cdef unsigned int i = mark >> INDEX_BITS
        while self._marks[i % MARKS] != 0:
            if self._marks[i % MARKS] == mark:
                return
            i += 1
        self._marks[i % MARKS] = mark
        self._marked += 1

    def take_counts(self):
        """Datagrams by host since the last call, and those of unknown hosts."""
        cdef Entry *entry
        cdef uint64_t count, missed = self._missed
        cdef dict former = self._former
        cdef tuple addr
        cdef int i
        cdef dict counts = {}
        self._former, self._missed = {}, 0
        for i in range(ENTRIES):
            entry = &self._entries[i]
            if entry.count:
                addr, count = <tuple>entry.addr, entry.count
                entry.count = 0
                counts[addr[0]] = counts.get(addr[0], 0) + count
        for addr, count in former.items():
            counts[addr[0]] = counts.get(addr[0], 0) + count
        return counts, missed

    @property
    def sketch(self):
        """All sources that were noted."""
        cdef int i
        if self._marked > EXACT:
            return None, PyBytes_FromStringAndSize(<char *>self._registers, REGISTERS)
        return frozenset([self._marks[i] for i in range(MARKS) if self._marks[i]]), b""


cdef class FastReceiver:
    """A :class:`~aiolb.receive.contract.Receiver` of an IPv4 or IPv6 UDP socket that takes a batch in one system call.

    See the .pyi file for what it promises.
    """

    def __cinit__(self, sock, *, unsigned int batch=BATCH, unsigned int limit=DATAGRAMS,
                  size_t size=BUFFER_SIZE, bint timestamps=False):
        if batch < 1 or limit < 1 or size < 1:
            raise ValueError(f"batch {batch}, limit {limit} and size {size} must be at least 1")
        if size > BUFFER_SIZE:
            raise ValueError(f"size {size} is more than {BUFFER_SIZE}, and no message is longer")
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"a socket of IPv4 or IPv6 is needed, not {sock.family!r}")
        self._fileno = sock.fileno
        self._book = AddressBook()
        self._batch = self._vlen = batch
        self._limit = limit
        self._size = size
        self._stride = size + SKEW
        self._stamped = timestamps
        if timestamps:
            sock.setsockopt(SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # A datagram costs the kernel less when there is nothing to say beside it.
        self._control_size = sizeof(Control) if timestamps or _gives_trains(sock) else 0
        self._allocate()

    def _allocate(self):
        self._buffers = <char *>malloc(self._batch * self._stride)
        self._messages = <mmsghdr *>calloc(self._batch, sizeof(mmsghdr))
        self._vectors = <iovec *>calloc(self._batch, sizeof(iovec))
        self._names = <Name *>calloc(self._batch, sizeof(Name))
        self._controls = <Control *>calloc(self._batch, sizeof(Control))
        self._segments = <unsigned int *>calloc(self._batch, sizeof(unsigned int))
        self._counts = <unsigned int *>calloc(self._batch, sizeof(unsigned int))
        self._stamps = <unsigned long long *>calloc(self._batch, sizeof(unsigned long long))
        if (self._buffers == NULL or self._messages == NULL or self._vectors == NULL or self._names == NULL
                or self._controls == NULL or self._segments == NULL or self._counts == NULL
                or self._stamps == NULL):
            raise MemoryError
        cdef unsigned int i
        for i in range(self._batch):
            self._vectors[i].iov_base = self._buffers + i * self._stride
            self._vectors[i].iov_len = self._size
            self._messages[i].msg_hdr.msg_iov = &self._vectors[i]
            self._messages[i].msg_hdr.msg_iovlen = 1
            self._messages[i].msg_hdr.msg_name = &self._names[i]
            self._messages[i].msg_hdr.msg_control = &self._controls[i] if self._control_size else NULL
            self._rearm(i)

    def __dealloc__(self):
        free(self._buffers)
        free(self._messages)
        free(self._vectors)
        free(self._names)
        free(self._controls)
        free(self._segments)
        free(self._counts)
        free(self._stamps)

    cdef void _rearm(self, unsigned int i) noexcept:
        self._messages[i].msg_hdr.msg_namelen = sizeof(Name)
        self._messages[i].msg_hdr.msg_controllen = self._control_size

    def receive(self):
        """Take one batch; see :meth:`aiolb.receive.contract.Receiver.receive`."""
        cdef Batch batch = self.take()
        return batch.settle()

    def take(self):
        """Take one batch; see :meth:`aiolb.receive.contract.Receiver.take`."""
        cdef Batch batch = Batch.__new__(Batch), last = self._last
        if self._busy:
            raise RuntimeError("the receiver is at work already")
        self._busy = True
        try:
            if last is not None:
                # What nobody has looked at yet is still in the buffers. The variable keeps it alive meanwhile.
                last.settle()
            if not self.kept:
                self._measure(self._fill(self._fileno()))
            batch._message = self._first
            batch.left = self._hand_out()
        finally:
            self._busy = False
        if batch.left:
            batch._receiver = self
            self._last = batch
            self._sizes[min(64 - __builtin_clzll(batch.left), 15)] += 1
        return batch

    @property
    def batch_sizes(self):
        """See :meth:`aiolb.receive.contract.Receiver.batch_sizes`."""
        return [self._sizes[i] for i in range(SIZES)]

    @property
    def sketch(self):
        """See :meth:`aiolb.receive.contract.Receiver.sketch`."""
        return self._book.sketch

    def senders(self):
        """See :meth:`aiolb.receive.contract.Receiver.senders`."""
        return self._book.take_counts()

    cdef int _fill(self, int fd) except -2:
        """One system call; how many messages it took."""
        cdef int taken, error = 0
        if self._few:
            taken = recvmmsg(fd, self._messages, self._vlen, MSG_DONTWAIT, NULL)
            if taken < 0:
                error = errno
        else:
            with nogil:
                taken = recvmmsg(fd, self._messages, self._vlen, MSG_DONTWAIT, NULL)
                if taken < 0:
                    error = errno
        self._few = taken < FEW
        if taken >= 0:
            return taken
        if error == EINTR:
            PyErr_CheckSignals()
        elif error != EAGAIN:
            raise OSError(error, os.strerror(error))
        return 0

    cdef void _measure(self, unsigned int taken) noexcept:
        """Read what came beside each message, and make it ready for the next call."""
        cdef unsigned int i, size, count, most = 1
        cdef mmsghdr *message
        for i in range(taken):
            message = &self._messages[i]
            size = message.msg_len
            self._segments[i] = size
            self._stamps[i] = 0
            if message.msg_hdr.msg_controllen:
                self._read_control(i)
            if message.msg_hdr.msg_flags & MSG_TRUNC:
                self.truncated += 1
            count = 1
            if self._segments[i] < size:
                count = (size + self._segments[i] - 1) / self._segments[i]
                self.trains += 1
                most = max(most, count)
            self._counts[i] = count
            self.bytes += size
            self._rearm(i)
        self.messages += taken
        self._first = 0
        self.kept = taken
        self._vlen = max(1, min(self._batch, self._limit / most))

    cdef Py_ssize_t _hand_out(self) noexcept:
        """Messages until the limit is reached; the datagrams in them."""
        cdef Py_ssize_t total = 0
        while self.kept and total < self._limit:
            total += self._counts[self._first]
            self._first += 1
            self.kept -= 1
        self.datagrams += total
        return total

    cdef void _read_control(self, unsigned int i) noexcept:
        cdef cmsghdr *control = CMSG_FIRSTHDR(&self._messages[i].msg_hdr)
        cdef timespec *time
        while control != NULL:
            if control.cmsg_level == IPPROTO_UDP and control.cmsg_type == UDP_GRO:
                self._segments[i] = (<int *>CMSG_DATA(control))[0] or self._messages[i].msg_len
            elif control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_TIMESTAMPNS:
                time = <timespec *>CMSG_DATA(control)
                self._stamps[i] = <unsigned long long>time.tv_sec * 1_000_000_000 + time.tv_nsec
            control = CMSG_NXTHDR(&self._messages[i].msg_hdr, control)


cdef class Batch:
    """Datagrams of one call, each made when somebody wants it: most of them live as long as their handler.

    A sequence of datagrams for whoever looks at it as one; it is settled then, its datagrams made.
    """

    def __len__(self):
        return self.left

    def __iter__(self):
        return iter(self.settle())

    def __getitem__(self, index):
        return self.settle()[index]

    cdef object next(self):
        """Make the next datagram; there must be one."""
        cdef object datagram
        if self.left < 1:
            raise IndexError("no datagram is left in the batch")
        if self._made is not None:
            datagram = self._take_made()
        else:
            if self._count == 0:
                self._open_message()
            self._count -= 1
            datagram = PyBytes_FromStringAndSize(self._data, self._segment if self._count else self._tail)
            self._data += self._segment
        self.left -= 1
        if self.left == 0:
            _let_go(self)
        return datagram

    cdef object _take_made(self):
        item = self._made[self._at]
        self._at += 1
        datagram, self.addr = item
        self.stamp = 0 if type(item) is tuple else getattr(item, "received_at", 0)
        return datagram

    cdef int _open_message(self) except -1:
        cdef FastReceiver receiver = self._receiver
        cdef unsigned int i = self._message, size = receiver._messages[i].msg_len
        self.addr = receiver._book.find(&receiver._names[i], receiver._counts[i])
        self.stamp = receiver._stamps[i]
        self._data = <const char *>receiver._vectors[i].iov_base
        self._segment = receiver._segments[i]
        self._count = receiver._counts[i]
        self._tail = size - (self._count - 1) * self._segment
        self._message += 1
        return 0

    cdef list settle(self):
        """All that is left, made: from then on it is independent of the receiver's buffers."""
        cdef bint collecting
        if self._made is None:
            # What the garbage collector would run must not see a batch that is half made.
            collecting = PyGC_Disable()
            try:
                self._make_all()
            finally:
                if collecting:
                    PyGC_Enable()
        elif self._at:
            del self._made[:self._at]
            self._at = 0
        return self._made

    cdef int _make_all(self) except -1:
        cdef Py_ssize_t i, total = self.left
        cdef list made = PyList_New(total)
        cdef object item, datagram
        for i in range(total):
            datagram = self.next()
            item = item_of(datagram, self.addr, self.stamp)
            # It can be in no cycle: the garbage collector need not look at thousands of them.
            PyObject_GC_UnTrack(<PyObject *>item)
            Py_INCREF(item)
            PyList_SET_ITEM(made, i, item)
        self._made, self.left = made, total
        return 0


cdef inline void _let_go(Batch batch) noexcept:
    """Part a batch that is in no buffer any more from its receiver: neither keeps the other alive."""
    cdef FastReceiver receiver = batch._receiver
    if receiver is not None:
        batch._receiver = None
        if receiver._last is batch:
            receiver._last = None


cdef object item_of(object datagram, object addr, unsigned long long stamp):
    """A datagram with its address, and with its time where there is one."""
    return TimedDatagram(datagram, addr, stamp) if stamp else (datagram, addr)


cdef Batch ready(object datagrams):
    """A batch of datagrams that exist already."""
    cdef Batch batch = Batch.__new__(Batch)
    batch._made = list(datagrams)
    batch.left = len(batch._made)
    return batch


cdef inline uint64_t _mix(uint64_t value) noexcept:
    """The finalizer of SplitMix64."""
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)


cdef inline bint _same(const Name *a, const Name *b) noexcept:
    return (a.words[0] == b.words[0] and a.words[1] == b.words[1]
            and a.words[2] == b.words[2] and a.words[3] == b.words[3])


cdef tuple _make_addr(const Name *name):
    """The tuple that the socket module makes: inet_ntop(3) and the numbers in host order."""
    cdef char text[64]
    cdef const sockaddr_in *v4 = <const sockaddr_in *>name
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>name
    if v4.sin_family == AF_INET:
        inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text))
        return (text.decode("ascii"), ntohs(v4.sin_port))
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text))
    return (text.decode("ascii"), ntohs(v6.sin6_port), ntohl(v6.sin6_flowinfo), v6.sin6_scope_id)


def _gives_trains(sock):
    try:
        return bool(sock.getsockopt(IPPROTO_UDP, UDP_GRO))
    except OSError:
        # A kernel before 5.0: no trains.
        return False
