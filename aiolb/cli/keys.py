"""The options of ``aiolb serve`` for the key, and the verifier's log when it refuses a key file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aiolb.errors import ConfigurationError

if TYPE_CHECKING:
    from aiolb.bpf.program import VerifierError

_F = TypeVar("_F", bound=Callable[..., Any])


def key_options(command: _F) -> _F:
    """Add ``--key``, ``--key-file`` and ``--verifier-log`` to a command."""
    options = [
        click.option(
            "--key",
            metavar="KEY",
            help="What stays on one member: source, prefix/24,64, flow (address and port), or random for nothing.  "
            "[default: what the group has; source for a new one]",
        ),
        click.option(
            "--key-file",
            type=click.Path(path_type=Path),
            metavar="FILE.c",
            help="Compile this C function, which makes the key out of a datagram, into the balancer; needs bcc.",
        ),
        click.option(
            "--verifier-log",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write all that the kernel's verifier said to this file when it refuses the balancer.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def verifier_log_kept(path: Path | None) -> Iterator[None]:
    """Write the log of a verifier that refuses the program to ``path``. Raises ConfigurationError when that fails."""
    from aiolb.bpf.program import VerifierError

    try:
        yield
    except VerifierError as error:
        if path is not None:
            _write(path, error)
            error.hint = f"all that it said is in {path}"
        raise


def _write(path: Path, refusal: VerifierError) -> None:
    try:
        path.write_text(refusal.log)
    except OSError as error:
        raise ConfigurationError(
            f"{refusal}, and the verifier's log cannot be written to {path}: {error.strerror}"
        ) from refusal
