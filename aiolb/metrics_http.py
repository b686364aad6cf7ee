"""An HTTP server of a few threads, for one WSGI application that needs no event loop."""

from __future__ import annotations

import socket
import threading
import time
from io import BufferedReader, RawIOBase, StringIO
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiolb.address import Address

TIMEOUT = 5.0
"""Seconds that a client has to send its request, and once more to read the answer."""
CLIENTS = 32
"""Connections at a time; more are closed, for each takes a thread and a descriptor from the collector."""

_log = structlog.get_logger(__name__)


def _logging(app: Callable[..., Any]) -> Callable[..., Any]:
    """The same application, which logs what it raises."""

    def answer(*request: Any) -> Any:
        try:
            return app(*request)
        except Exception:
            _log.exception("metrics_request_failed")
            raise

    return answer


class _Request(RawIOBase):
    """What a client sends, TIMEOUT seconds long: whoever drips it byte by byte would have a place for ever."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + TIMEOUT

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for more of it. Raises TimeoutError, OSError."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request takes too long")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(TIMEOUT)  # for the answer


class _Handler(WSGIRequestHandler):
    """One connection; what it asks for is nothing to log."""

    def setup(self) -> None:
        """Read with a deadline."""
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_Request(self.connection))

    def log_message(self, *_: object) -> None:
        pass

    def get_stderr(self) -> TextIO:
        """Where tracebacks go: nowhere, for what we raise is logged, and a client that reads nothing is no error."""
        return StringIO()


class Server(ThreadingMixIn, WSGIServer):
    """Serves ``app`` from now until ``stop()``; raises OSError where the port cannot be had.

    A thread accepts, and each connection has one, so that a slow client holds nobody up.
    """

    daemon_threads = True

    def __init__(self, address: Address, app: Callable[..., Any]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__((address.host, address.port), _Handler)
        self.set_app(_logging(app))
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        """Bind, without the look into DNS that the base class takes for a name that nobody uses."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is a place; the client finds its connection closed otherwise."""
        if not self._places.acquire(blocking=False):
            _log.debug("metrics_refused", clients=CLIENTS, client=client_address[0])
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class has them
        """A client that has gone is no error of ours; whatever else it is, the collector goes on."""
        _log.debug("metrics_client_failed", exc_info=True)

    def stop(self) -> None:
        """Accept nobody any more, and close the port."""
        self.shutdown()
        self._thread.join()
        self.server_close()
