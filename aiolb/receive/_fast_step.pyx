# cython: language_level=3, wraparound=False, binding=False
"""The compiled inner loop of a lane: a handler that returns at once costs one call and one send."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from aiolb.receive._fast_pending cimport FastPending

from aiolb.receive._fast_pending import FastPending as Queue
from aiolb.receive.step import as_coroutine

cdef extern from "Python.h":
    enum:
        PYGEN_NEXT
    # PYGEN_ERROR is -1, and an exception is set then.
    int PyIter_Send(object iter, object value, PyObject **result) except -1
    bint PyCoro_CheckExact(object)


cdef class FastStepper:
    """A :class:`~aiolb.receive.step.Stepper` in C; the twin of PlainStepper."""

    queue = Queue

    cdef FastPending _pending
    cdef dict _holders
    cdef object _put_aside
    cdef object _datagram
    cdef object _addr
    cdef bint _has_item

    def __cinit__(self, FastPending pending not None, dict holders not None, put_aside, /):
        self._pending = pending
        self._holders = holders
        self._put_aside = put_aside

    @property
    def item(self):
        """The datagram that the lane works on."""
        return (self._datagram, self._addr) if self._has_item else None

    @item.setter
    def item(self, item):
        self._has_item = item is not None
        self._datagram, self._addr = item or (None, None)

    def step(self, handle, int limit):
        """Run handlers; see :meth:`aiolb.receive.step.Stepper.step`."""
        cdef object datagram, addr
        cdef PyObject *result
        cdef object coroutine
        cdef int outcome
        while limit > 0 and self._pending.size:
            limit -= 1
            datagram = self._pending.next()
            addr = self._pending.addr
            if self._holders and addr[0] in self._holders:
                self._put_aside((datagram, addr))
                continue
            self._datagram = datagram
            self._addr = addr
            self._has_item = True
            coroutine = handle(datagram, addr)
            if not PyCoro_CheckExact(coroutine):
                coroutine = as_coroutine(coroutine)
            outcome = PyIter_Send(coroutine, None, &result)
            if outcome == PYGEN_NEXT:
                return _rest(coroutine, result)
            Py_DECREF(<object>result)
        self.item = None
        return None


cdef class _Rest:
    """What is left of a coroutine that was started already: what it yielded first, then itself."""

    cdef object _coroutine
    cdef object _yielded
    cdef bint _resumed

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject *result
        if not self._resumed:
            return self._first()
        # A return value ends the iteration, and nobody asks what it was.
        if PyIter_Send(self._coroutine, None, &result) != PYGEN_NEXT:
            Py_DECREF(<object>result)
            raise StopIteration
        yielded = <object>result
        Py_DECREF(yielded)
        return yielded

    cdef _first(self):
        yielded, self._yielded, self._resumed = self._yielded, None, True
        return yielded

    def send(self, value):
        return self._coroutine.send(value) if self._resumed else self._first()

    def throw(self, *error):
        return self._coroutine.throw(*error)

    def close(self):
        self._coroutine.close()


cdef _Rest _rest(object coroutine, PyObject *yielded):
    cdef _Rest rest = _Rest.__new__(_Rest)
    rest._coroutine = coroutine
    rest._yielded = <object>yielded
    Py_DECREF(rest._yielded)
    return rest
