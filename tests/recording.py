"""What collectors of tests have in common."""

import asyncio


class Recording:
    """Notes in ``calls`` when a collector starts and ends; its handlers may wait for ``gate``."""

    def __init__(self):
        self.calls = []
        self.gate = asyncio.Event()

    async def startup(self):
        """Note it."""
        self.calls.append("startup")

    async def shutdown(self):
        """Note it."""
        self.calls.append("shutdown")
