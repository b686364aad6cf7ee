# cython: language_level=3, wraparound=False, binding=False
"""The compiled inner loop of a lane, and the door: a handler that returns at once costs one call and one send."""

from asyncio.tasks import _enter_task, _leave_task

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF

from aiolb.receive._fast cimport Batch, item_of, next_of
from aiolb.receive._fast_pending cimport FastPending, size_of
from aiolb.receive._linux cimport CLOCK_MONOTONIC, clock_gettime, timespec

from aiolb.receive._fast_pending import FastPending as Queue
from aiolb.receive.step import as_coroutine

cdef extern from "Python.h":
    enum:
        PYGEN_NEXT
    # PYGEN_ERROR is -1, and an exception is set then.
    int PyIter_Send(object iter, object value, PyObject **result) except -1
    bint PyCoro_CheckExact(object)
    # Unlike an assignment it lets the old value go last, for whatever that runs.
    void Py_XSETREF(PyObject *, PyObject *)
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1


cdef class FastDoor:
    """A :class:`~aiolb.receive.door.Door` in C; the twin of PlainDoor."""

    cdef public unsigned long long received
    cdef public object runner
    cdef readonly list parked
    cdef public object cork
    cdef public object uncork
    cdef FastPending _pending
    cdef object _keeper
    cdef object _handlers
    cdef object _loop
    cdef bint _at_once
    cdef int _limit
    cdef double _seconds
    # What is known of the lane that was parked last: these do not change.
    cdef object _lane
    cdef object _task
    cdef object _context
    cdef FastStepper _stepper

    def __cinit__(
        self, keeper, handlers, FastPending pending not None, loop, *, bint at_once, int limit, double seconds
    ):
        self.parked = []
        self._keeper = keeper
        self._handlers = handlers
        self._pending = pending
        self._loop = loop
        self._at_once = at_once
        self._limit = limit
        self._seconds = seconds

    def take(self, batch, /):
        """Take a batch; see :meth:`aiolb.receive.door.Door.take`."""
        cdef object lane, rest
        self.received += len(batch)
        if self.runner is not None or not self.parked or not self._at_once:
            self._keeper.take_later(batch)
            return
        self._pending.extend(batch)
        lane = self.parked[len(self.parked) - 1]
        if lane is not self._lane:
            self._lane, self._task, self._context, self._stepper = lane, lane.task, lane.context, lane.stepper
        if lane.wakeup.done() or not self._enter():
            self._keeper.take_later(())
            return
        self.runner = lane
        rest = self._run()
        if rest is None and not size_of(self._pending):
            self.runner = None
        else:
            self._keeper.go_on(lane, rest)

    cdef bint _enter(self) except -1:
        try:
            _enter_task(self._loop, self._task)
        except RuntimeError:
            return False
        return True

    cdef object _run(self):
        cdef FastStepper stepper = self._stepper
        cdef object lane = self._lane, task = self._task, context = self._context
        cdef bint corked = self.cork is not None and size_of(self._pending) > 1
        cdef object rest
        try:
            # What answers a single datagram may leave by itself.
            if corked:
                self.cork()
            rest = stepper._run_in(context, self._handlers.handle, self._limit, self._seconds)
        except BaseException as error:
            rest = context.run(self._keeper.recover, lane, error)
        finally:
            _leave_task(self._loop, task)
            if corked:
                self.uncork()
        return rest


cdef class FastStepper:
    """A :class:`~aiolb.receive.step.Stepper` in C; the twin of PlainStepper."""

    queue = Queue
    door = FastDoor

    cdef FastPending _pending
    cdef dict _holders
    cdef object _put_aside
    # Of the datagram in hand: itself or NULL, its address, the time of its arrival.
    cdef PyObject *_datagram
    cdef PyObject *_addr
    cdef unsigned long long _stamp

    def __cinit__(self, FastPending pending not None, dict holders not None, put_aside, /):
        self._pending = pending
        self._holders = holders
        self._put_aside = put_aside

    def __dealloc__(self):
        Py_XDECREF(self._datagram)
        Py_XDECREF(self._addr)

    @property
    def item(self):
        """The datagram that the lane works on."""
        if self._datagram == NULL:
            return None
        return item_of(<object>self._datagram, <object>self._addr, self._stamp)

    @item.setter
    def item(self, item):
        if item is None:
            Py_XSETREF(self._datagram, NULL)
            return
        datagram, addr = item
        self._hold(datagram, addr, 0 if type(item) is tuple else getattr(item, "received_at", 0))

    cdef inline void _hold(self, object datagram, object addr, unsigned long long stamp) noexcept:
        self._stamp = stamp
        if self._addr != <PyObject *>addr:
            Py_INCREF(addr)
            Py_XSETREF(self._addr, <PyObject *>addr)
        Py_INCREF(datagram)
        Py_XSETREF(self._datagram, <PyObject *>datagram)

    def step(self, handle, int limit):
        """Run handlers; see :meth:`aiolb.receive.step.Stepper.step`."""
        return self._step(handle, limit)

    cdef object _step(self, object handle, int limit):
        cdef FastPending pending = self._pending
        cdef Batch head = None
        cdef object datagram, addr, coroutine
        cdef PyObject *result
        while limit > 0:
            # A handler may have emptied the queue, or used up the batch.
            if head is None or head is not pending.head or not head.left:
                if not pending.advance():
                    break
                head = pending.head
            limit -= 1
            datagram = next_of(head)
            addr = head.addr
            if self._holders and addr[0] in self._holders:
                self._put_aside(item_of(datagram, addr, head.stamp))
                continue
            self._hold(datagram, addr, head.stamp)
            coroutine = handle(datagram, addr)
            if not PyCoro_CheckExact(coroutine):
                coroutine = as_coroutine(coroutine)
            if PyIter_Send(coroutine, None, &result) == PYGEN_NEXT:
                return _rest(coroutine, result)
            Py_DECREF(<object>result)
        Py_XSETREF(self._datagram, NULL)
        return None

    def run(self, handle, int limit, double seconds):
        """Run handlers for a turn; see :meth:`aiolb.receive.step.Stepper.run`."""
        return self._run(handle, limit, seconds)

    cdef object _run(self, object handle, int limit, double seconds):
        cdef FastPending pending = self._pending
        # A turn that is over before anybody looks at the clock need not know when it began.
        cdef bint timed = size_of(pending) > limit
        cdef double end = monotonic() + seconds if timed else 0
        cdef object rest
        while True:
            rest = self._step(handle, limit)
            if rest is not None or not size_of(pending):
                return rest
            if not timed:
                timed, end = True, monotonic() + seconds
            if monotonic() >= end:
                return None

    def run_in(self, context, handle, int limit, double seconds):
        """Run handlers in a context; see :meth:`aiolb.receive.step.Stepper.run_in`."""
        return self._run_in(context, handle, limit, seconds)

    cdef object _run_in(self, object context, object handle, int limit, double seconds):
        PyContext_Enter(context)
        try:
            return self._run(handle, limit, seconds)
        finally:
            PyContext_Exit(context)


cdef inline double monotonic() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


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
