"""``aiolb serve``: run one member of a group."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from aiolb.address import PROTOCOLS
from aiolb.cli.groups import bpffs_option
from aiolb.cli.keys import key_options, verifier_log_kept
from aiolb.cli.supervise import SUPERVISION, supervise, supervisor_options
from aiolb.config import BALANCERS, LOOPS, ServeConfig
from aiolb.errors import AiolbError, ConfigurationError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DEFAULTS = ServeConfig()


class Size(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """Bytes: a number, with K, M or G (or KiB, MiB, GiB) for powers of 1,024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number and its unit."""
        if isinstance(value, int):
            return value
        text = str(value).lower().removesuffix("ib").removesuffix("b")
        number, unit = (text[:-1], text[-1]) if text[-1:] in ("k", "m", "g") else (text, "")
        if not (number.isascii() and number.isdigit()):
            self.fail(f"{value!r} is no size; e.g. 20M or 20971520", param, ctx)
        return int(number) * _UNITS[unit]


@click.command(short_help="Receive datagrams or connections, as a member or as all.")
@click.argument("app", default="print")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default=_DEFAULTS.protocol,
    show_default=True,
    help="udp: APP is a Collector and handles datagrams; tcp: a StreamCollector, which handles connections.",
)
@click.option(
    "--bind",
    "binds",
    multiple=True,
    metavar="HOST:PORT",
    default=["0.0.0.0:10001"],
    show_default=True,
    help="Receive on this address; may be given several times, each is a group of its own.",
)
@click.option(
    "--index",
    type=int,
    default=_DEFAULTS.index,
    show_default=True,
    help="Place of this member in the group, 0 … count-1.",
)
@click.option("--count", type=int, help="Members of the group.  [default: what the group has; 1 for a new one]")
@click.option(
    "--weight",
    type=int,
    metavar="0…1000",
    help="Part of the sources beside the other members' weights.  [default: what the member has; 100 for a new one]",
)
@click.option("--takeover", is_flag=True, help="Replace the live member with this index; it drains and exits.")
@click.option(
    "--balancer",
    type=click.Choice(BALANCERS),
    default=_DEFAULTS.balancer,
    show_default=True,
    help="auto: eBPF, or the classic balancer, with a warning, where privileges are missing.",
)
@click.option("--seed", type=int, help="Of the source hash, 128 bits.  [default: random, kept by the group]")
@key_options
@click.option(
    "--strict/--no-strict",
    default=None,
    help="Drop datagrams when no member is alive, instead of leaving them to the kernel's hash.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="CIDR|@FILE",
    help="Drop what does not come from here, before it is received; may be repeated.  [default: the group's rules]",
)
@click.option(
    "--deny",
    multiple=True,
    metavar="CIDR|@FILE",
    help="Drop what comes from here; may be repeated. The longest prefix decides between --allow and --deny.",
)
@click.option(
    "--limit-source",
    metavar="PPS[:BURST]|off",
    help="Drop what a source (IPv6: a /64) sends beyond so many packets a second, or at once.  "
    "[default: the group's limit]",
)
@click.option("--compile", is_flag=True, help="Compile the balancer with bcc instead of loading the shipped bytecode.")
@click.option(
    "--debug",
    is_flag=True,
    help="Compile it so that every decision appears in the kernel's trace file (trace_pipe).",
)
@click.option("--rcvbuf", type=Size(), default="20M", show_default=True, help="Receive buffer in bytes; udp only.")
@click.option(
    "--graceful-timeout",
    type=float,
    default=_DEFAULTS.graceful_timeout,
    show_default=True,
    help="Seconds that handlers have to finish when stopped.",
)
@click.option(
    "--concurrency",
    type=int,
    default=_DEFAULTS.concurrency,
    show_default=True,
    help="Handlers in flight per address, with tcp open connections; beyond that the kernel's queue holds what comes.",
)
@click.option(
    "--backlog",
    type=int,
    default=_DEFAULTS.backlog,
    show_default=True,
    help="Datagrams that may wait behind blocked handlers; with tcp, connections that may wait to be accepted.",
)
@click.option(
    "--event-loop", "loop", type=click.Choice(LOOPS), default=_DEFAULTS.loop, show_default=True, help="Event loop."
)
@click.option(
    "--user",
    metavar="NAME[:GROUP]",
    help="Run handlers as this user: a single collector once it has joined, a supervisor's workers from their start.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the statistics as JSON to this file when stopped.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus here: of this member, or of a supervisor's members; port 0 takes a free one.",
)
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    help="Format of the log.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least severe events to log.",
)
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Append the log to this file instead of standard error; SIGUSR1 reopens it, for logrotate.",
)
@bpffs_option
@supervisor_options
def serve(
    app: str,
    binds: tuple[str, ...],
    *,
    verifier_log: Path | None,
    log_format: str,
    log_level: str,
    log_file: Path | None,
    metrics: str | None,
    **settings: Any,
) -> None:
    """Receive datagrams, or connections, as one member of a group, or with --workers as all of them.

    APP is the collector: FILE.py:Class, package.module:Class, or one of print (the default), echo, discard, verify
    (udp only).

    SIGTERM or SIGINT (Ctrl-C) stops gracefully: leave the group, drain, finish handlers. A second SIGINT gives up
    what is still being handled. With --workers, SIGHUP replaces the workers one at a time, SIGTTIN and SIGTTOU make
    it a member more or less, SIGQUIT stops at once. SIGUSR1 reopens the log file.
    """
    supervision = {name: settings.pop(name) for name in SUPERVISION}
    supervision = {name: value for name, value in supervision.items() if value is not None}
    if "reload" in supervision:  # without workers nothing could be restarted
        supervision.setdefault("workers", 1)
    settings["metrics"] = None if metrics is None else _resolved(metrics)
    config = ServeConfig(**settings)  # wrong numbers are told before anything heavy is imported
    log = {"log_format": log_format, "level": log_level, "file": log_file and str(log_file.absolute())}
    if "workers" in supervision:
        with verifier_log_kept(verifier_log):
            supervise(app, binds, config, log, **supervision)
        return
    if supervision:
        option = next(iter(supervision)).replace("_", "-")
        raise ConfigurationError(f"--{option} is for a supervisor", hint="add --workers N, or --workers auto")
    from aiolb.application import load

    with users_traceback_shown(), verifier_log_kept(verifier_log):
        load(app, config.protocol).run(
            bind=binds,
            log_format=log_format,
            log_level=log_level,
            log_file=log_file,
            **{name: getattr(config, name) for name in settings},
        )


def _resolved(metrics: str) -> Any:
    from aiolb import sockets

    return sockets.resolve(metrics, default_port=None)


@contextmanager
def users_traceback_shown() -> Iterator[None]:
    """Show the traceback of what the application's own code raised during the start, before our error."""
    from aiolb.server import ApplicationError

    try:
        yield
    except ApplicationError as error:
        _show_users_traceback(error)
        raise


def _show_users_traceback(error: AiolbError) -> None:
    """The traceback of the application's own code, without ours and the import machinery's frames."""
    cause = error.__cause__
    if cause is None:
        return
    trace = traceback.TracebackException.from_exception(cause)
    ours = (f"{Path(__file__).parent.parent}{os.sep}", importlib.__file__, "<frozen")
    trace.stack = traceback.StackSummary.from_list(
        [frame for frame in trace.stack if not frame.filename.startswith(ours)]
    )
    if not trace.stack and not isinstance(cause, SyntaxError):
        return  # nothing of the user's own, e.g. a class that cannot be made without arguments
    sys.stderr.write("".join(trace.format()))
