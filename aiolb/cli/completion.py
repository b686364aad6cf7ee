"""``aiolb completion``: the script with which a shell completes this command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from aiolb.errors import AiolbError

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the script that completes commands and options.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    For this shell only: source <(aiolb completion bash). For every new one, write it to a file where the shell looks
    for completions.
    """
    kind = get_completion_class(shell)
    if kind is None:  # click knows these three
        raise AiolbError(f"this version of click completes nothing in {shell}", hint="pip install --upgrade click")
    click.echo(kind(ctx.find_root().command, {}, "aiolb", "_AIOLB_COMPLETE").source())
