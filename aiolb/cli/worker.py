"""``aiolb worker``: what a supervisor starts; not for people."""

from __future__ import annotations

import faulthandler
import socket

import click

from aiolb.assignment import Assignment


@click.command(hidden=True)
@click.argument("channel", type=int)
@click.argument("assignment")
def worker(channel: int, assignment: str) -> None:
    """Serve as a supervisor orders, on the sockets that it passed on."""
    from aiolb import logs, loops, privileges
    from aiolb.application import load
    from aiolb.channel import Channel
    from aiolb.cli.serve import users_traceback_shown
    from aiolb.collector import make
    from aiolb.worker import Worker

    faulthandler.enable()  # the supervisor sends SIGABRT to a worker that hangs
    work = Assignment.from_text(assignment)
    logs.configure(**work.log)

    async def serve() -> None:
        # Before any code of the application, and not sooner: ours may lie where that user cannot read it.
        if work.user is not None:
            privileges.drop(privileges.parse(work.user))
        with socket.socket(fileno=channel) as sock:
            sock.set_inheritable(False)
            sock.setblocking(False)
            await Worker(make(load(work.app)), work, await Channel.over(sock)).serve()

    with users_traceback_shown(), loops.runner(work.settings["loop"]) as runner:
        runner.run(serve())
