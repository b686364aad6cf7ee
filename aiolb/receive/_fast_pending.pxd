# The layout of the compiled queue of pending datagrams.

from aiolb.receive._fast cimport Batch

cdef class FastPending:
    # The batch in front, which may be used up, and the others with the number of datagrams in them.
    cdef Batch head
    cdef Py_ssize_t behind
    cdef object _batches

    cdef int advance(self) except -1
    cdef list _settle(self)

cdef inline Py_ssize_t size_of(FastPending pending):
    return pending.behind + (pending.head.left if pending.head is not None else 0)
