"""Which sender there is: the compiled one where it was built, else the one in pure Python."""

from __future__ import annotations

import os

from aiolb.errors import StartError
from aiolb.send.contract import SenderClass


def sender_class() -> SenderClass:
    """FastSender, or PlainSender; with AIOLB_REQUIRE_FAST=1 in the environment, StartError instead of the latter."""
    try:
        from aiolb.send._fast import FastSender
    except ImportError as error:
        if os.environ.get("AIOLB_REQUIRE_FAST") == "1":
            raise StartError(
                f"the compiled sender is required, and is not there: {error}",
                hint="install a C compiler and the headers of Python, then install aiolb again",
            ) from None
        from aiolb.send.plain import PlainSender

        return PlainSender
    return FastSender
