# cython: language_level=3, wraparound=False, binding=False
"""The compiled queue of pending datagrams: it keeps batches whole, and a datagram is made when its turn comes."""

from collections import deque

from aiolb.receive._fast cimport Batch, item_of, next_of, ready


cdef class FastPending:
    """A :class:`~aiolb.receive.step.Pending` of batches."""

    def __cinit__(self):
        self._batches = deque()

    def __len__(self):
        return size_of(self)

    def __bool__(self):
        return size_of(self) > 0

    def __iter__(self):
        return iter(self._settle())

    def extend(self, datagrams):
        """Put a batch behind the others."""
        cdef Batch batch, over = self.head
        # A batch is used up by the queue that it is in: no other queue may share it.
        if type(datagrams) is Batch and not (<Batch>datagrams).queued:
            batch = datagrams
        else:
            batch = ready(datagrams)
        if not batch.left:
            return
        batch.queued = True
        if size_of(self):
            self.behind += batch.left
            self._batches.append(batch)
        else:
            self.head = batch

    def popleft(self):
        """Take the datagram that is first. Raises IndexError when there is none."""
        cdef Batch head
        if not self.advance():
            raise IndexError("no datagram is pending")
        head = self.head
        datagram = next_of(head)
        # Read before a tuple is made, which may start the garbage collector and whatever that runs.
        addr, stamp = head.addr, head.stamp
        return item_of(datagram, addr, stamp)

    def clear(self):
        """Forget them all."""
        # Held until the queue is empty, for whatever is run when it goes.
        batches, head = self._batches, self.head
        self._batches, self.head, self.behind = deque(), None, 0
        del batches, head

    cdef int advance(self) except -1:
        """Bring a batch with datagrams to the front; false when there is none."""
        cdef Batch over = self.head
        if over is not None and over.left:
            return True
        if not self.behind:
            return False
        self.head = self._batches.popleft()
        self.behind -= self.head.left
        return True

    cdef list _settle(self):
        """All of them, as one list; they stay pending."""
        cdef list all = []
        cdef Batch batch = self.head
        if batch is not None and batch.left:
            all += batch.settle()
        for batch in self._batches:
            all += batch.settle()
        return all
