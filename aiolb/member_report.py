"""What the workers of one member did together: the sums of their reports, and what its sockets tell at the end."""

from __future__ import annotations

from collections import Counter, deque
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Any

from aiolb import listening, sockets
from aiolb.receive.plain import PlainReceiver

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from aiolb.worker_process import WorkerProcess

MAX_COLLECTOR_REPORTS = 100
"""Reports of collectors that are kept of one member, the last ones."""

# Not a worker's own, or true at one moment only.
_NO_SUMS = {"index", "count", "pid", "kernel_drops", "queued_bytes", "in_flight", "waiting", "open"}


class MemberReport:
    """Grows with each worker that has ended; ``close`` it with the sockets."""

    def __init__(self, index: int, socks: Iterable[socket.socket], *, collectors: bool) -> None:
        self.index = index
        self.workers = 0
        """Workers that the member has had."""
        self.killed = 0
        """Workers among them that ended without a report."""
        self.lost_at_most = 0
        """Datagrams that those had in their memory, at most."""
        self._socks = list(socks)
        # A socket that was taken back has drops that another supervisor told of.
        self._drops = -self._drops_of_sockets()
        self._closed = False
        self._sums: Counter[str] = Counter()
        self._collectors: deque[Any] | None = deque(maxlen=MAX_COLLECTOR_REPORTS) if collectors else None

    def add(self, worker: WorkerProcess) -> None:
        """Take the report of a worker that has ended, or note that there is none."""
        if worker.report is None:
            self.killed += worker.has("receiving")
            self.lost_at_most += worker.held
            return
        report = dict(worker.report)
        collector = report.pop("collector")
        self._sums.update(
            {name: value for name, value in report.items() if type(value) is int and name not in _NO_SUMS}
        )
        if self._collectors is not None:
            self._collectors.append(collector)

    def close(self, *, kept: bool) -> None:
        """Count the kernel's drops and, unless the sockets are ``kept``, what is left in their queues. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._drops += self._drops_of_sockets()
        if not kept:
            self._sums["abandoned"] += sum(map(_queued, self._socks))

    def _drops_of_sockets(self) -> int:
        return sum(sockets.memory(sock).drops for sock in self._socks)

    def as_dict(self) -> dict[str, Any]:
        """For the report file."""
        return {
            "index": self.index,
            "workers": self.workers,
            "killed": self.killed,
            "lost_at_most": self.lost_at_most,
            **self._sums,
            "kernel_drops": self._drops,
            "collector": list(self._collectors or ()),
        }


def _queued(sock: socket.socket) -> int:
    """Datagrams, or connections, that nobody will take any more; they are taken out of the queue."""
    if sock.type == SOCK_STREAM:
        return listening.stop_listening(sock)
    sockets.refuse_datagrams(sock)
    receiver = PlainReceiver(sock)
    while receiver.receive():
        pass
    return receiver.datagrams
