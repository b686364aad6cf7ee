"""``aiolb worker``: what a supervisor starts; not for people."""

from __future__ import annotations

import faulthandler
import signal
import socket

import click

from aiolb.assignment import Assignment

ORPHAN_MARGIN = 15.0
"""Seconds beyond the graceful timeout that a worker may outlive its supervisor."""


def _leave_it(*_: object) -> None:
    """Not SIG_IGN, which the processes that handlers start would inherit."""


@click.command(hidden=True)
@click.argument("channel", type=int)
@click.argument("assignment")
def worker(channel: int, assignment: str) -> None:
    """Serve as a supervisor orders, on the sockets that it passed on."""
    # A service manager, or an operator, may send a signal to every process of a service; these are the supervisor's.
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGQUIT):
        signal.signal(number, _leave_it)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until the log can be reopened
    from aiolb import logs, loops, orphan, privileges
    from aiolb.application import load
    from aiolb.base_collector import make
    from aiolb.channel import Channel
    from aiolb.cli.serve import users_traceback_shown
    from aiolb.worker import Worker

    faulthandler.enable()  # the supervisor sends SIGABRT to a worker that hangs
    work = Assignment.from_text(assignment)
    logs.configure(**work.log)
    orphan.end_after_supervisor(channel, seconds=work.settings["graceful_timeout"] + ORPHAN_MARGIN)

    async def serve() -> None:
        # Before any code of the application, and not sooner: ours may lie where that user cannot read it.
        if work.user is not None:
            privileges.drop(privileges.parse(work.user))
        with socket.socket(fileno=channel) as sock:
            sock.set_inheritable(False)
            sock.setblocking(False)
            await Worker(make(load(work.app, work.settings["protocol"])), work, await Channel.over(sock)).serve()

    with users_traceback_shown(), loops.runner(work.settings["loop"]) as runner:
        runner.run(serve())
