"""The exceptions that aiolb raises: one tree, each with a message and, where there is one, a hint."""

from __future__ import annotations


class AiolbError(Exception):
    """Base of every error that aiolb raises on purpose.

    ``str(error)`` says what happened, with the values in it. ``hint`` says what to do about it, as a
    command where one exists, or is ``None``.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message


class ConfigurationError(AiolbError, ValueError):
    """A setting, an argument or an application that cannot work, found before anything was started."""


class WireError(AiolbError, ValueError):
    """Bytes from the network are not what the reader expects."""


class CaptureError(AiolbError):
    """A capture file is broken, or ends within a packet."""


class StartError(AiolbError):
    """The collector could not be started."""


class KernelError(StartError, OSError):
    """The kernel refused something that the start needs; ``errno`` holds its reason."""

    def __init__(self, message: str, *, errno: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class PrivilegeError(KernelError, PermissionError):
    """The user may not do what was asked (usually: no CAP_BPF)."""


class UnsupportedError(KernelError):
    """The kernel or the machine lacks a feature."""


class GroupError(StartError):
    """The group on this port cannot be created, opened or joined."""


class GroupNotFoundError(GroupError):
    """There is no group at this address."""


class MemberTakenError(GroupError):
    """The index is held by a live socket, and no takeover was asked for."""


class CompileError(StartError):
    """bcc is missing, is not the real one, or could not compile the program."""


class CompileStoppedError(CompileError):
    """A signal came that ends this process while bcc compiled; its handler has been called."""
