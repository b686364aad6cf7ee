"""Writes what is made from the command line's own help: docs/reference/cli.md, and the pages of the manual in man/."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import click
from click_man.core import generate_man_page

from aiolb.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE, MANUAL = "docs/reference/cli.md", "man"
DATE = "2026-11-23"
"""What the manual's pages are dated: of the last change that concerns all of them."""
INTRODUCTION = """# Command line

Written by `make reference` from what `aiolb COMMAND --help` says. Exit status: 0, 1 when something failed, 2 for wrong
usage, 3 for a start that failed.
"""


def contexts(
    command: click.Command = main, name: str = "aiolb", parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A command and those below it, hidden ones left out."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield context
    for below, found in visible(context).items():
        yield from contexts(found, below, context)


def help_of(command: click.Command) -> str:
    """The text of a command's help, without click's marks."""
    return inspect.cleandoc(command.help or "").replace("\b\n", "")


def markdown(context: click.Context) -> str:
    """The part of the page that is a command's."""
    usage = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", "```text", usage, "```", "", help_of(context.command), ""]
    options = [option for option in context.command.params if isinstance(option, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    if records:
        lines += ["| option | meaning |", "| --- | --- |"]
        lines += [f"| `{_cell(names)}` | {_prose(text)} |" for names, text in records]
    if isinstance(context.command, click.Group):
        lines += ["", "| command | meaning |", "| --- | --- |"]
        for name, command in visible(context).items():
            anchor = f"{context.command_path} {name}".replace(" ", "-")
            lines.append(f"| [`{name}`](#{anchor}) | {_prose(first_sentence(command))} |")
    return "\n".join(lines) + "\n"


def visible(context: click.Context) -> dict[str, click.Command]:
    """The subcommands that are for people; none where there are no subcommands."""
    if not isinstance(group := context.command, click.Group):
        return {}
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None and not command.hidden}


def first_sentence(command: click.Command) -> str:
    """What a command does, in one line."""
    return " ".join(help_of(command).partition("\n\n")[0].split()).rstrip(".")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _prose(text: str) -> str:
    """Text in a cell: what click puts in brackets is no link, and an option is code."""
    text = re.sub(r"([\[\]*_])", r"\\\1", _cell(text).replace("<", "&lt;").replace(">", "&gt;"))
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", text)


def manual(context: click.Context) -> str:
    """The manual's page of a command."""
    context.command = copy(context.command)
    context.command.short_help = first_sentence(context.command)
    if isinstance(context.command, click.Group):
        below = {name: copy(command) for name, command in visible(context).items()}
        for command in below.values():
            command.short_help = first_sentence(command)
        context.command.commands = below
    return _as_roff(generate_man_page(context, version="aiolb", date="aiolb"))


def _as_roff(page: str) -> str:
    """A page that groff and mandoc take without a warning; its names are those of the files."""
    page = re.sub(
        r'^\.TH "(.*?)".*',
        lambda title: f'.TH "{title[1].replace(" ", "-")}" "1" "{DATE}" "aiolb" "aiolb manual"',
        page,
    )
    page = re.sub(r"\\fB(aiolb [^(\n]*)\(1\)", lambda name: f"\\fB{name[1].replace(' ', '-')}(1)", page)
    page = re.sub(r"^(\.SH .*)\n\.PP$", r"\1", page, flags=re.MULTILINE)
    return re.sub(r"[^\0-\x7f]", lambda character: f"\\[u{ord(character[0]):04X}]", page)


def files() -> dict[str, str]:
    """All files, by their path in the checkout."""
    found = {PAGE: "\n".join([INTRODUCTION, *map(markdown, contexts())])}
    for context in contexts():
        found[f"{MANUAL}/{context.command_path.replace(' ', '-')}.1"] = manual(context)
    return found


def write() -> None:
    """Write them, and remove pages of commands that are no more."""
    wanted = files()
    (ROOT / MANUAL).mkdir(exist_ok=True)
    for path in (ROOT / MANUAL).glob("*.1"):
        if str(path.relative_to(ROOT)) not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (ROOT / name).write_text(text)
    sys.stdout.write("".join(f"{name}\n" for name in wanted))


if __name__ == "__main__":
    write()
