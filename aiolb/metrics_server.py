"""Serves metrics over HTTP, from a thread of its own, for as long as a block runs."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from contextlib import suppress
from io import BufferedReader, RawIOBase, StringIO
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog

from aiolb.address import Address
from aiolb.errors import ConfigurationError, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiolb.metrics import GroupMetrics
    from aiolb.observed import Observed

RETRY = 0.25
"""Seconds between two looks whether the process that is taken over has given its port up; nobody tells."""
TIMEOUT = 5.0
"""Seconds that a client has to send its request, and once more to read the answer."""
CLIENTS = 32
"""Connections at a time; more are closed, for each takes a thread and a descriptor from the collector."""

_log = structlog.get_logger(__name__)


class MetricsServer:
    """Serves at ``address`` what ``observe`` tells, from ``async with`` on; with None nothing is served.

    Entering raises ConfigurationError without prometheus-client, and StartError where the port cannot be had. With
    ``wait``, for who takes over from a process that has the port, it comes as soon as that one gives it up.
    """

    def __init__(
        self, address: Address | None, observe: Callable[[], Sequence[Observed]], *, wait: bool = False
    ) -> None:
        self._address = address
        self._observe = observe
        self._wait = wait
        self._server: _Server | None = None
        self._metrics: GroupMetrics | None = None
        self._retrying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._address is not None:
            app = self._application()
            try:
                self._serve(app, self._address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not self._wait:
                    raise _refused(self._address, error) from error
                _log.warning("metrics_wait", address=str(self._address), reason="another process has the port")
                self._retrying = asyncio.create_task(self._retry(app, self._address))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the port up, and let nobody ask any more. Idempotent."""
        if self._retrying is not None:
            self._retrying.cancel()
            with suppress(asyncio.CancelledError):
                await self._retrying
            self._retrying = None
        if self._metrics is not None:
            # Who asks at this moment is waited for, in milliseconds; a client that does not read is not.
            await asyncio.to_thread(self._metrics.close)
            self._metrics = None
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)
            self._server = None

    def _application(self) -> Callable[..., Any]:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError:
            raise ConfigurationError(
                "--metrics needs the package prometheus-client", hint="pip install prometheus-client"
            ) from None
        from aiolb.metrics import GroupMetrics

        self._metrics = GroupMetrics(self._observe)
        registry = CollectorRegistry()
        registry.register(self._metrics)
        return _logging(make_wsgi_app(registry))

    def _serve(self, app: Callable[..., Any], address: Address) -> None:
        self._server = _Server(address, app)
        host, port = self._server.server_address[:2]
        _log.info("metrics", url=f"http://{Address(str(host), int(port))}/metrics")

    async def _retry(self, app: Callable[..., Any], address: Address) -> None:
        while True:
            await asyncio.sleep(RETRY)
            try:
                return self._serve(app, address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    _log.error("metrics_failed", address=str(address), reason=error.strerror)
                    return None


def _refused(address: Address, error: OSError) -> StartError:
    taken = error.errno == errno.EADDRINUSE
    hint = f"ss -ltnp sport = {address.port} shows whose it is; --metrics HOST:0 takes a free port" if taken else None
    return StartError(f"metrics cannot be served at {address}: {error.strerror}", hint=hint)


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


class _Server(ThreadingMixIn, WSGIServer):
    """A thread that accepts, and one for each connection, so that a slow client holds nobody up."""

    daemon_threads = True

    def __init__(self, address: Address, app: Callable[..., Any]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__((address.host, address.port), _Handler)
        self.set_app(app)
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
        _log.debug("metrics_request_failed", exc_info=True)

    def stop(self) -> None:
        """Accept nobody any more, and close the port."""
        self.shutdown()
        self._thread.join()
        self.server_close()
