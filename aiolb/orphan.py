"""The end of a worker whose supervisor has died, and which does not notice because it hangs."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import threading
import time


def end_after_supervisor(channel: int, *, seconds: float) -> None:
    """Kill this process ``seconds`` after the other end of ``channel`` has gone, with its tracebacks on standard error.

    A thread waits for that: it runs even while a handler blocks the event loop, though not while C code keeps the GIL.
    """
    poll = select.poll()
    poll.register(os.dup(channel), 0)  # a hang-up is always told (poll(2))

    def wait() -> None:
        poll.poll()
        time.sleep(seconds)
        faulthandler.dump_traceback()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="aiolb-orphan", daemon=True).start()
