"""Which parts receive, run handlers and reply: the compiled ones where they were built, else those in pure Python."""

from __future__ import annotations

import os
from dataclasses import dataclass

import structlog

from aiolb.errors import StartError
from aiolb.receive.contract import ReceiverFactory, RepliesFactory
from aiolb.receive.plain import PlainReceiver
from aiolb.receive.step import PlainStepper, StepperFactory

REQUIRE_FAST = "AIOLB_REQUIRE_FAST"
"""Set to 1, this variable makes it an error that the compiled parts are missing."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """Interchangeable parts that belong together; without a ``replies`` each reply leaves at once.

    ``trains`` tells whether the receiver gains by UDP_GRO. The plain one does when trains come, but a single
    datagram costs it half as much again, because recvmsg() has to be asked for what is beside the datagram.
    """

    receiver: ReceiverFactory
    stepper: StepperFactory
    replies: RepliesFactory | None
    trains: bool


PLAIN = Parts(PlainReceiver, PlainStepper, replies=None, trains=False)


def compiled() -> Parts:
    """The compiled parts. Raises ImportError where they were not built."""
    from aiolb.receive._fast import FastReceiver
    from aiolb.receive._fast_replies import FastReplies
    from aiolb.receive._fast_step import FastStepper

    return Parts(FastReceiver, FastStepper, replies=FastReplies, trains=True)


def best() -> Parts:
    """The compiled parts, else the plain ones and a log line; StartError instead if AIOLB_REQUIRE_FAST is 1."""
    try:
        return compiled()
    except ImportError as error:
        hint = "install a C compiler and Python's headers, then: pip install --force-reinstall --no-binary aiolb aiolb"
        if os.environ.get(REQUIRE_FAST) == "1":
            raise StartError(f"{REQUIRE_FAST}=1, and the compiled receiver is missing: {error}", hint=hint) from error
        _log.info("fast_receiver_missing", receiver=PlainReceiver.__name__, reason=str(error), hint=hint)
        return PLAIN
