"""The ``aiolb`` command: its subcommands, and how errors are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from aiolb.bpf.discovery import GroupName
from aiolb.cli.completion import completion
from aiolb.cli.demo import demo
from aiolb.cli.doctor import doctor
from aiolb.cli.flood import flood
from aiolb.cli.group import group
from aiolb.cli.guard import guard
from aiolb.cli.move import move
from aiolb.cli.rebalance import rebalance
from aiolb.cli.route import route
from aiolb.cli.serve import serve
from aiolb.cli.shares import drain, undrain, weight
from aiolb.cli.status import status
from aiolb.cli.top import top
from aiolb.cli.trace import trace
from aiolb.cli.version import version_option
from aiolb.cli.worker import worker
from aiolb.errors import AiolbError, ConfigurationError, StartError

EXIT_ERROR, EXIT_USAGE, EXIT_START = 1, 2, 3


class Commands(click.Group):
    """Tells an AiolbError, or click's own, in one line, with its hint, and turns it into the exit code."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the options that come before the subcommand."""
        with _errors_told():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        with _errors_told():
            return super().invoke(ctx)


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        message = error.format_message()  # of a parameter that is missing, error.message is empty
        if error.ctx is None or not message or isinstance(error, click.exceptions.NoArgsIsHelpError):
            raise
        hint = _group_meant(error) or f"see: {error.ctx.command_path} --help"
        failure: AiolbError = ConfigurationError(message.rstrip("."), hint=hint)
    except AiolbError as error:
        failure = error
    else:
        return
    tell(failure)
    raise click.exceptions.Exit(exit_code(failure))


def _group_meant(error: click.UsageError) -> str | None:
    """What to write instead, where a group was given without its option: some commands take it as an argument."""
    extra = re.search(r"unexpected extra arguments? \((?P<group>\S+)\)", error.message)
    if extra is None or error.ctx is None or not any("--group" in one.opts for one in error.ctx.command.params):
        return None
    with suppress(ConfigurationError):
        return f"{error.ctx.command_path} --group {GroupName.parse(extra['group'])}"
    return None


def tell(error: AiolbError) -> None:
    """Write what happened, and what to do about it, to standard error."""
    click.echo(f"aiolb: error: {error}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)


def exit_code(error: AiolbError) -> int:
    """2 for wrong usage, 3 for a start that failed, 1 for the rest."""
    if isinstance(error, ConfigurationError):
        return EXIT_USAGE
    return EXIT_START if isinstance(error, StartError) else EXIT_ERROR


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@version_option
def main() -> None:
    """Many collector processes on one UDP port; eBPF keeps every source on one of them."""


main.add_command(completion)
main.add_command(demo)
main.add_command(doctor)
main.add_command(drain)
main.add_command(flood)
main.add_command(group)
main.add_command(guard)
main.add_command(move)
main.add_command(rebalance)
main.add_command(route)
main.add_command(serve)
main.add_command(status)
main.add_command(top)
main.add_command(trace)
main.add_command(undrain)
main.add_command(weight)
main.add_command(worker)
