"""``aiolb serve --workers``: run all members of a group under a supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aiolb.bpf.abi import MAX_MEMBERS
from aiolb.config import ServeConfig
from aiolb.errors import ConfigurationError

if TYPE_CHECKING:
    from aiolb.balancing import RebalancePolicy
    from aiolb.supervisor import Supervisor

_F = TypeVar("_F", bound=Callable[..., Any])

REBALANCING = ("rebalance", "rebalance_bound", "rebalance_interval")

SUPERVISION = ("workers", "worker_timeout", "start_timeout", "recycle_after", "restart_limit", "reload", *REBALANCING)
"""The arguments of ``aiolb serve`` that are the supervisor's."""


class Workers(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """A number of workers, or ``auto``: the CPUs that this process may use."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number."""
        if value == "auto":
            return len(os.sched_getaffinity(0))
        if not (str(value).isascii() and str(value).isdigit()):
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)
        return int(value)


def supervisor_options(command: _F) -> _F:
    """Add the supervisor's options to a command."""
    options = [
        click.option(
            "--workers",
            type=Workers(),
            metavar="N|auto",
            help="Run all members of the group, a worker process each, under a supervisor. auto: one per usable CPU.",
        ),
        click.option(
            "--worker-timeout",
            type=float,
            metavar="SECONDS",
            help="Replace a worker that gives no sign of life for so long.  [default: 30]",
        ),
        click.option(
            "--start-timeout",
            type=float,
            metavar="SECONDS",
            help="Give a worker so long to import the application and run startup().  [default: 60]",
        ),
        click.option(
            "--restart-limit",
            metavar="N/SECONDS",
            help="Take a member out of the group when its workers die more often than this.  [default: 5/60]",
        ),
        click.option(
            "--recycle-after",
            metavar="DATAGRAMS|DURATION",
            help="Replace a worker after so many datagrams (tcp: connections), or so long: 10M, 12h, 10M,12h. 10 %"
            " earlier or later.",
        ),
        click.option(
            "--rebalance",
            is_flag=True,
            default=None,
            help="Move slots, and the sources in them, from members that are too busy to others; see aiolb rebalance.",
        ),
        click.option(
            "--rebalance-bound",
            type=float,
            metavar="X",
            help="A member is too busy above X times its share of all packets.  [default: 1.1]",
        ),
        click.option(
            "--rebalance-interval",
            type=float,
            metavar="SECONDS",
            help="Look at the load this often.  [default: 10]",
        ),
        click.option(
            "--reload",
            is_flag=True,
            default=None,
            help="Replace the workers when a Python file beside APP changes; for development. Alone: one worker.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def supervise(
    app: str,
    binds: tuple[str, ...],
    config: ServeConfig,
    log: dict[str, Any],
    *,
    workers: int,
    worker_timeout: float = 30.0,
    start_timeout: float = 60.0,
    restart_limit: str = "5/60",
    recycle_after: str | None = None,
    reload: bool = False,
    **rebalancing: Any,
) -> None:
    """Run a supervisor until it is stopped. Raises ConfigurationError, StartError."""
    if config.index or config.count is not None:
        option = "--reload" if reload else "--workers"
        raise ConfigurationError(f"{option} runs all members of the group", hint="leave --index and --count out")
    if config.weight is not None:
        raise ConfigurationError("--weight is for a single member", hint="once they run: aiolb weight INDEX N")
    if not 1 <= workers <= MAX_MEMBERS:
        raise ConfigurationError(f"a group has 1 to {MAX_MEMBERS} members, not {workers}", hint="--workers auto")
    from aiolb import logs, loops, privileges, sockets, systemd
    from aiolb.recycling import parse_recycle_after
    from aiolb.supervised import WorkerPolicy
    from aiolb.supervisor import Supervisor, Target

    rebalance = _rebalance_policy(config, **rebalancing)
    policy = WorkerPolicy(
        start_timeout=start_timeout,
        worker_timeout=worker_timeout,
        graceful_timeout=config.graceful_timeout,
        restart=_restart_policy(restart_limit),
        recycle=None if recycle_after is None else parse_recycle_after(recycle_after),
    )
    config = replace(config, count=workers, bind=sockets.resolve_all(binds))
    logs.configure(**log, owner=privileges.owner(config.user))
    manager, inherited = systemd.ServiceManager.from_environment(), systemd.inherited()
    # -B: bytecode is known by its source's size and second, and a file may be changed twice within one.
    # -P: what lies in the working directory is the application's, and not to be run before privileges are dropped.
    python = (sys.executable, "-P", "-B") if reload else (sys.executable, "-P")
    target = Target(command=(*python, "-m", "aiolb", "worker"), app=app, log=log)
    supervisor = Supervisor(target, config, policy, manager=manager, inherited=inherited, rebalance=rebalance)
    with loops.runner(config.loop) as runner:
        runner.run(_run(supervisor, app, reload=reload))


async def _run(supervisor: Supervisor, app: str, *, reload: bool) -> None:
    from aiolb.reload import restarting

    async with restarting(app, supervisor.restart) if reload else nullcontext():
        await supervisor.run()


def _rebalance_policy(
    config: ServeConfig,
    *,
    rebalance: bool = False,
    rebalance_bound: float | None = None,
    rebalance_interval: float | None = None,
) -> RebalancePolicy | None:
    from aiolb.balancing import RebalancePolicy

    given = {"bound": rebalance_bound, "interval": rebalance_interval}
    settings = {name: value for name, value in given.items() if value is not None}
    if not rebalance:
        if settings:
            raise ConfigurationError(f"--rebalance-{next(iter(settings))} is for --rebalance", hint="add --rebalance")
        return None
    if config.balancer in ("classic", "none"):
        raise ConfigurationError(
            f"the balancer {config.balancer!r} has no slots to move", hint="--balancer ebpf, or without --rebalance"
        )
    return RebalancePolicy(**settings)


def _restart_policy(text: str) -> Any:
    from aiolb.recycling import parse_duration
    from aiolb.restarts import RestartPolicy

    limit, slash, window = text.partition("/")
    if not slash or not (limit.isascii() and limit.isdigit()):
        raise ConfigurationError(f"{text!r} is no restart limit", hint="deaths/seconds, e.g. 5/60")
    return RestartPolicy(limit=int(limit), window=parse_duration(window))
