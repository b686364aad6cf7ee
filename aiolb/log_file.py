"""A log file: texts are appended whole, and it is opened by its name again after another program moved it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from aiolb.errors import ConfigurationError

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class LogFile:
    """Appends to the file at ``path``; owns its descriptor until ``close``.

    Missing, it is made as the umask says, for ``owner`` (uid, gid) if there is one: for whoever writes to it without
    the privileges of its maker. A file that is there keeps its owner. Raises ConfigurationError when it cannot be
    opened.

    Several processes may write to one file: a text is one write(2), and with O_APPEND finding the end and writing are
    one atomic step (open(2); not so on NFS, and on pipes up to PIPE_BUF bytes only).
    """

    def __init__(self, path: Path, *, owner: tuple[int, int] | None = None) -> None:
        self._owner = owner
        self.path = path.absolute()  # whoever changes the working directory later does not move the log
        try:
            self._descriptor = _open(self.path, self._owner)
        except OSError as error:
            raise ConfigurationError(
                f"the log file {path} cannot be opened: {error.strerror}",
                hint="--log-file FILE in a folder that exists, and in which this user may write",
            ) from None

    def reopen(self) -> None:
        """Go on in the file that has the name now. Raises OSError, and then goes on in the old one."""
        descriptor = _open(self.path, self._owner)
        try:
            # In one step: a thread that is writing must not meet a closed descriptor, nor one that is reused.
            os.dup2(descriptor, self._descriptor, inheritable=False)
        finally:
            os.close(descriptor)

    def write(self, text: str) -> None:
        """Append the text. Raises OSError; what did not fit on the disk then is lost."""
        data = text.encode(errors="backslashreplace")
        while data:  # once, but for a disk that gets full and for pipes
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Its descriptor; the same after ``reopen``."""
        return self._descriptor

    def close(self) -> None:
        """Close it; writing raises OSError from then on. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)


def _open(path: Path, owner: tuple[int, int] | None) -> int:
    if owner is not None:
        _make(path, owner)
    # Without O_NONBLOCK a named pipe that nobody reads would hold up the event loop; this way it is an error.
    descriptor = os.open(path, _FLAGS | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def _make(path: Path, owner: tuple[int, int]) -> None:
    # O_EXCL, which follows no link: only a file that is made here is given away.
    with suppress(FileExistsError):
        descriptor = os.open(path, _FLAGS | os.O_EXCL, 0o666)
        try:
            with suppress(PermissionError):  # who may not give it away cannot become that user either
                os.fchown(descriptor, *owner)
        finally:
            os.close(descriptor)
