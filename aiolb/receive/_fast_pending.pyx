# cython: language_level=3, wraparound=False, binding=False
"""The compiled queue of pending datagrams: it keeps batches whole, and a datagram is made when its turn comes."""

from collections import deque

from aiolb.receive._fast cimport Batch, ready


cdef class FastPending:
    """A :class:`~aiolb.receive.step.Pending` of batches."""

    def __cinit__(self):
        self._batches = deque()

    def __len__(self):
        return self.size

    def __bool__(self):
        return self.size > 0

    def __iter__(self):
        return iter(self._settle())

    def extend(self, datagrams):
        """Put a batch behind the others."""
        cdef Batch batch
        # A batch is used up by the queue that it is in: no other queue may share it.
        if type(datagrams) is Batch and not (<Batch>datagrams).queued:
            batch = datagrams
        else:
            batch = ready(datagrams)
        if batch.left:
            batch.queued = True
            self.size += batch.left
            self._batches.append(batch)

    def popleft(self):
        """Take the datagram that is first. Raises IndexError when there is none."""
        if not self.size:
            raise IndexError("no datagram is pending")
        datagram = self.next()
        # Read before a tuple is made, which may start the garbage collector and whatever that runs.
        addr = self.addr
        return (datagram, addr)

    def clear(self):
        """Forget them all."""
        self._batches.clear()
        self._head = None
        self.size = 0

    cdef object next(self):
        cdef Batch head = self._head
        cdef object datagram
        if head is None:
            head = self._head = self._batches.popleft()
        self.size -= 1
        datagram = head.next()
        self.addr = head.addr
        if not head.left and self._head is head:
            self._head = None
        return datagram

    cdef list _settle(self):
        """All of them, as one list; they stay pending."""
        cdef list all = []
        cdef Batch batch = self._head
        if batch is not None:
            all += batch.settle()
        for batch in self._batches:
            all += batch.settle()
        return all
