"""Serves metrics for as long as a block runs, as soon as the port can be had."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import structlog

from aiolb.address import Address
from aiolb.errors import ConfigurationError, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiolb.metrics import GroupMetrics
    from aiolb.metrics_http import Server
    from aiolb.observed import Observed

RETRY = 0.25
"""Seconds between two looks whether the process that is taken over has given its port up; nobody tells."""

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
        self._server: Server | None = None
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
        return make_wsgi_app(registry)

    def _serve(self, app: Callable[..., Any], address: Address) -> None:
        from aiolb.metrics_http import Server

        self._server = Server(address, app)
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
