"""The exceptions: one tree, a message, and a hint where there is one."""

from __future__ import annotations

import inspect
import pickle

import pytest

from aiolb import errors
from aiolb.bpf.program import VerifierError
from aiolb.errors import AiolbError, KernelError, PrivilegeError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", CLASSES)
def test_one_tree(kind):
    """Every exception is an AiolbError, says its message, and carries its hint."""
    error = kind("what happened", hint="what to do")
    assert isinstance(error, AiolbError)
    assert (str(error), error.message, error.hint) == ("what happened", "what happened", "what to do")
    assert error.__notes__ == ["hint: what to do"]


@pytest.mark.parametrize("kind", CLASSES)
def test_without_a_hint(kind):
    """The hint is optional, and leaves no note then."""
    error = kind("what happened")
    assert error.hint is None
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.WireError, ValueError),
        (errors.KernelError, OSError),
        (errors.UnsupportedError, OSError),
        (errors.PrivilegeError, PermissionError),
        (errors.GroupNotFoundError, errors.GroupError),
        (errors.MemberTakenError, errors.GroupError),
        (errors.CompileError, errors.StartError),
        (errors.GroupError, errors.StartError),
        (errors.KernelError, errors.StartError),
        (VerifierError, errors.KernelError),
    ],
)
def test_kinds(kind, builtin):
    """Errors can be caught as what they are in Python, too."""
    assert issubclass(kind, builtin)


def test_errno():
    """An error of the kernel keeps its number, and says its message and no more."""
    error = PrivilegeError("no", errno=1, hint="become root")
    assert (error.errno, str(error)) == (1, "no")
    assert KernelError("no").errno is None


@pytest.mark.parametrize("kind", CLASSES)
def test_survives_another_process(kind):
    """An error can be sent to another process with its message and hint."""
    error = pickle.loads(pickle.dumps(kind("what happened", hint="what to do")))  # noqa: S301 - our own bytes
    assert (type(error), str(error), error.hint) == (kind, "what happened", "what to do")
