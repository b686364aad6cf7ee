"""``aiolb completion``: the script with which a shell completes this command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from aiolb.errors import AiolbError

SHELLS = ("bash", "zsh", "fish")
# click's script for zsh completes when zsh loads it as the function _aiolb, but not when that is called the next time.
_LOADED_NOW, _CALLED = "$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _aiolb"


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
    script = kind(ctx.find_root().command, {}, "aiolb", "_AIOLB_COMPLETE").source()
    click.echo(script.replace(_LOADED_NOW, _CALLED))
