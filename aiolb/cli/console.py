"""The console that commands print on: colours where the terminal has them, and text as it stands."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, soft_wrap: bool = True) -> Console:
    """Standard output. ``[fd00:1234::1]`` is an address, and neither markup nor an emoji named 1234."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)
