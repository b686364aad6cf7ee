"""The sockets that a configuration asks for: of datagrams with a receive buffer, of connections with a backlog."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from aiolb import listening, sockets
from aiolb.address import Address
from aiolb.config import ServeConfig


def binder(config: ServeConfig) -> Callable[[Address], socket.socket]:
    """Makes a bound socket; with TCP it listens."""
    if config.protocol == "tcp":
        return partial(sockets.bind_listening, backlog=config.backlog)
    return partial(sockets.bind_buffered, size=config.rcvbuf)


def renew(sock: socket.socket, config: ServeConfig) -> None:
    """Make a socket that somebody else has kept as good as one of the ``binder``'s."""
    if config.protocol == "tcp":
        listening.listen_again(sock, config.backlog)
    else:
        sockets.accept_datagrams(sock)  # who had it before may have drained it
        sockets.set_receive_buffer(sock, config.rcvbuf)


def reopen(sock: socket.socket) -> None:
    """Let in again what an owner before has refused, because it drained the socket."""
    sockets.accept_datagrams(sock)  # it takes a filter away, whatever that refused


def queue(config: ServeConfig) -> int:
    """What is asked for the queue of a socket: bytes, or with TCP connections."""
    return config.backlog if config.protocol == "tcp" else config.rcvbuf
