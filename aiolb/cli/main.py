"""The ``aiolb`` command: its subcommands, and how errors are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import click

from aiolb.cli.version import version_option
from aiolb.errors import AiolbError, ConfigurationError, StartError

EXIT_ERROR, EXIT_USAGE, EXIT_START = 1, 2, 3
_COMMANDS = {
    "completion": "completion",
    "demo": "demo",
    "doctor": "doctor",
    "drain": "shares",
    "flood": "flood",
    "group": "group",
    "guard": "guard",
    "move": "move",
    "rebalance": "rebalance",
    "route": "route",
    "serve": "serve",
    "status": "status",
    "top": "top",
    "trace": "trace",
    "undrain": "shares",
    "weight": "shares",
    "worker": "worker",
}
"""The module of each subcommand; a process imports those that it needs, for all of them take 50 ms."""


class Commands(click.Group):
    """The subcommands. An AiolbError, or click's own, is told in one line, with its hint, and makes the exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own has it
        """All of them, in the order of ``--help``."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """One of them, imported now; None if there is none of that name."""
        if name in _COMMANDS and name not in self.commands:
            self.add_command(getattr(import_module(f"aiolb.cli.{_COMMANDS[name]}"), name))
        return super().get_command(ctx, name)

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
    from aiolb.bpf.group_name import GroupName

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
