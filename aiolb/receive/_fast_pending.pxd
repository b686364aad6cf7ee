# The layout of the compiled queue of pending datagrams.

from aiolb.receive._fast cimport Batch

cdef class FastPending:
    # `next` makes the datagram at the head of a queue that is not empty; `addr` is its address.
    cdef Py_ssize_t size
    cdef object addr
    cdef object _batches
    cdef Batch _head

    cdef object next(self)
    cdef list _settle(self)
