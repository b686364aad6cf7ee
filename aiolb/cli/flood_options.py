"""What the options of ``aiolb flood`` hold, and which of them go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from aiolb.errors import ConfigurationError


class Rate(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """Datagrams per second, or ``max``, which becomes None."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Read the number; whether it can be a rate is the publisher's to say."""
        if value == "max":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is no rate; e.g. 100 or max", param, ctx)


class Gso(click.ParamType):  # type: ignore[type-arg] # generic in new versions only
    """``auto``, ``off``, or the datagrams of a train."""

    name = "gso"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """Read the number; whether trains can have so many is the publisher's to say."""
        if value in {"auto", "off"}:
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is no number of datagrams, and neither auto nor off", param, ctx)


_ONLY_REPLAY = ("speed", "loop", "port")
_NOT_REPLAY = ("echo", "size", "payload", "stamp", "gso", "workers")
_NOT_ECHO = ("gso", "workers")


def given(name: str) -> bool:
    """Whether the option was given to the command that runs."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def check_together(*, replay: Path | None, echo: bool) -> None:
    """Refuse options that would do nothing beside --replay, --echo, or neither. Raises ConfigurationError."""
    if replay is None:
        for name in filter(given, _ONLY_REPLAY):
            raise ConfigurationError(f"--{name} is for a replay", hint=f"--replay FILE --{name} …")
    else:
        _refuse("replay", _NOT_REPLAY, "a replay sends what the capture has, as it is, from one process")
    if echo:
        _refuse("echo", _NOT_ECHO, "round trips are measured one by one, in one process")


def _refuse(mode: str, names: tuple[str, ...], reason: str) -> None:
    for name in filter(given, names):
        raise ConfigurationError(f"--{mode} and --{name} do not go together", hint=reason)


def read_payload(text: str | None) -> bytes | None:
    """A payload given as TEXT, or as @FILE. Raises ConfigurationError."""
    if text is None or not text.startswith("@"):
        return None if text is None else text.encode(errors="surrogateescape")
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the payload from {text[1:]!r}: {error.strerror}",
            hint="--payload TEXT, or @FILE to read a file",
        ) from None
