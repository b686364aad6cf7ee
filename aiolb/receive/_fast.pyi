"""The compiled receiver: one recvmmsg into reused buffers, trains split, address tuples made once per sender."""

import builtins
import socket
from collections.abc import Iterator, Sequence
from typing import overload

from aiolb.receive.contract import BATCH, BUFFER_SIZE, DATAGRAMS, Datagram

class Batch(Sequence[Datagram]):
    """Datagrams that stay in the receiver's buffers until somebody looks at them or the receiver takes more."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Datagram]: ...
    @overload
    def __getitem__(self, index: int) -> Datagram: ...
    @overload
    def __getitem__(self, index: slice) -> list[Datagram]: ...

class FastReceiver:
    """A :class:`~aiolb.receive.contract.Receiver` of a UDP socket of IPv4 or IPv6, one system call per batch.

    The GIL is released during that call, unless the one before took fewer than 8 messages. The address tuples of the
    senders seen last are kept, in about 1 MiB at most however many send. ``batch`` buffers of ``size`` bytes are
    reused: the 4 MiB of the default take as much memory as messages have filled so far.

    Trains are split if UDP_GRO is on when the receiver is made. Raises ValueError for another kind of socket and
    for a number below 1 or a size over 65536, OSError if the socket is closed and timestamps are asked for;
    RuntimeError when two threads receive at the same time.
    """

    @property
    def datagrams(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def truncated(self) -> int: ...
    @property
    def messages(self) -> int: ...
    @property
    def trains(self) -> int: ...
    @property
    def kept(self) -> int: ...
    @property
    def batch_sizes(self) -> list[int]: ...
    @property
    def sketch(self) -> tuple[frozenset[int] | None, builtins.bytes]: ...
    def senders(self) -> tuple[dict[str, int], int]: ...
    def __init__(
        self,
        sock: socket.socket,
        *,
        batch: int = BATCH,
        limit: int = DATAGRAMS,
        size: int = BUFFER_SIZE,
        timestamps: bool = False,
    ) -> None: ...
    def take(self) -> Batch: ...
    def receive(self) -> list[Datagram]: ...
