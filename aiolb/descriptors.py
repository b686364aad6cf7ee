"""How many files a process may have open: raised as far as that goes, or said before it matters."""

from __future__ import annotations

import resource
from pathlib import Path

from aiolb.errors import StartError

_SPARE = 16


def allow(number: int, what: str) -> None:
    """Raise the soft limit of open files if ``number`` more, for ``what``, do not fit; it stays raised.

    Raises StartError when the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(list(Path("/proc/self/fd").iterdir())) + number + _SPARE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise StartError(
            f"{what} need {needed:,} open files, and the hard limit is {hard:,}",
            hint=f"use fewer, or as root first: ulimit -Hn {needed}; in a unit: LimitNOFILE={needed}",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
