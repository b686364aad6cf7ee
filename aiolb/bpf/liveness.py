"""Who lives in a pinned group, whatever its layout is: asked of the map that holds its sockets."""

from __future__ import annotations

import os
from pathlib import Path

from aiolb.bpf import syscall
from aiolb.bpf.abi import MAP_TYPE_REUSEPORT_SOCKARRAY, U64
from aiolb.errors import KernelError, PrivilegeError


def live_members(folder: Path) -> list[int]:
    """The indexes with a live socket, in the group that is pinned in a folder. Raises PrivilegeError, KernelError."""
    try:
        targets = syscall.obj_get(str(folder / "targets"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _error(folder, error) from error
    try:
        kind, _, value_size, entries, _ = syscall.map_shape(targets)
        if (kind, value_size) != (MAP_TYPE_REUSEPORT_SOCKARRAY, U64.size):
            return []
        return [index for index in range(entries) if syscall.map_lookup(targets, index, value_size) is not None]
    except OSError as error:
        raise _error(folder, error) from error
    finally:
        os.close(targets)


def _error(folder: Path, error: OSError) -> KernelError:
    if isinstance(error, PermissionError):
        return PrivilegeError(
            f"this user may not look at the group in {folder}: {error.strerror}", errno=error.errno, hint="run as root"
        )
    return KernelError(f"the group in {folder} cannot be looked at: {error}", errno=error.errno)
