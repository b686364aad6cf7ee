from collections.abc import Sequence
from socket import socket

class FastSender:
    trains: bool
    limit: int
    error: int

    def __init__(
        self,
        sockets: Sequence[socket],
        datagram: bytes,
        *,
        limit: int,
        trains: bool,
        run: int | None,
        numbers: Sequence[int],
    ) -> None: ...
    @property
    def sent(self) -> list[int]: ...
    def send(self, first: int, pieces: int, length: int) -> int: ...
