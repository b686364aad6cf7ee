"""The kernel calls that Python has no function for: bpf(2), mount(2), membarrier(2), timerfd_create(2), filters.

The only place with ctypes and raw numbers. Every failure is an OSError whose ``filename`` is the call's name.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import struct
import time
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# (bpf, membarrier) by machine, from the kernel's syscall tables; little-endian ones, as the shipped bytecode is.
_NUMBERS = {
    "x86_64": (321, 324),
    "aarch64": (280, 283),
    "riscv64": (280, 283),
    "ppc64le": (361, 365),
    "armv7l": (386, 389),
    "i686": (357, 375),
}

# enum bpf_cmd, include/uapi/linux/bpf.h
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_GET_NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET = 5, 6, 7
_OBJ_GET_INFO_BY_FD, _MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH = 15, 24, 26

PROG_TYPE_SK_REUSEPORT = 21
SK_REUSEPORT_SELECT, SK_REUSEPORT_SELECT_OR_MIGRATE = 39, 40
_ENOENT = 2
_NO_DESCRIPTOR = (1 << 32) - 1
_PIDFD_GETFD = 438  # on every machine, as all system calls since Linux 5.1
MEMBARRIER_GLOBAL = 1
_PR_SET_PDEATHSIG = 1
_SO_ATTACH_FILTER = 26
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_ATTACH_REUSEPORT_EBPF = 52
_MOUNT_FLAGS = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC, as systemd mounts it

_LOG_SIZE = 1 << 20
_LOAD_ATTEMPTS = 5


def _syscall(which: int, name: str, *arguments: object) -> int:
    return _numbered(_number(which, name), name, *arguments)


def _number(which: int, name: str) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(38, f"no system call number known for {platform.machine()}", name)
    return numbers[which]


def _numbered(number: int, name: str, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), name)
    return result


def _bpf(command: int, name: str, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _syscall(0, name, ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))


def _pointer(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _in(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _name(name: str) -> bytes:
    return name.encode()[:15]


def map_create(map_type: int, *, key_size: int, value_size: int, entries: int, name: str, flags: int = 0) -> int:
    """Create a map and return its descriptor (close-on-exec); the caller closes it."""
    attributes = struct.pack("=IIIIIII16s", map_type, key_size, value_size, entries, flags, 0, 0, _name(name))
    return _bpf(_MAP_CREATE, "BPF_MAP_CREATE", attributes)


def _key(key: int | bytes) -> ctypes.Array[ctypes.c_char]:
    return _in(key if isinstance(key, bytes) else struct.pack("=I", key))


def map_lookup(fd: int, key: int | bytes, size: int) -> bytes | None:
    """The value under ``key`` (an array's is a number), ``size`` bytes; None where there is none (ENOENT)."""
    key_buffer, value = _key(key), ctypes.create_string_buffer(size)
    attributes = struct.pack("=I4xQQQ", fd, _pointer(key_buffer), _pointer(value), 0)
    try:
        _bpf(_MAP_LOOKUP, "BPF_MAP_LOOKUP_ELEM", attributes)
    except FileNotFoundError:
        return None
    return value.raw


def map_lookup_each(fd: int, entries: int, size: int) -> list[bytes | None]:
    """The values of the first ``entries`` of an array that has no batch look-up, as a sockarray; None: there is none.

    A call for each, but with the same buffers: 2 µs (measured), where ``map_lookup`` takes 9.
    """
    key, value = ctypes.c_uint32(), ctypes.create_string_buffer(size)
    attributes = _in(struct.pack("=I4xQQQ", fd, ctypes.addressof(key), _pointer(value), 0))
    call, number = _libc.syscall, _number(0, "BPF_MAP_LOOKUP_ELEM")
    arguments = ctypes.c_long(number), ctypes.c_int(_MAP_LOOKUP), attributes, ctypes.c_uint(len(attributes))
    found: list[bytes | None] = []
    for index in range(entries):
        key.value = index
        if call(*arguments) == 0:
            found.append(value.raw)
        elif (errno := ctypes.get_errno()) == _ENOENT:
            found.append(None)
        else:
            raise OSError(errno, os.strerror(errno), "BPF_MAP_LOOKUP_ELEM")
    return found


def map_update(fd: int, key: int | bytes, value: bytes) -> None:
    """Write the value under ``key``; replacing one is atomic for a sockarray."""
    key_buffer, value_buffer = _key(key), _in(value)
    attributes = struct.pack("=I4xQQQ", fd, _pointer(key_buffer), _pointer(value_buffer), 0)
    _bpf(_MAP_UPDATE, "BPF_MAP_UPDATE_ELEM", attributes)


def map_delete(fd: int, key: int | bytes) -> bool:
    """Remove the value under ``key``; whether there was one."""
    key_buffer = _key(key)
    attributes = struct.pack("=I4xQQQ", fd, _pointer(key_buffer), 0, 0)
    try:
        _bpf(_MAP_DELETE, "BPF_MAP_DELETE_ELEM", attributes)
    except FileNotFoundError:
        return False
    return True


def map_next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key of ``size`` bytes that follows ``key`` in a map that is no array; the first one after None."""
    following = ctypes.create_string_buffer(size)
    before = None if key is None else _in(key)
    at = 0 if before is None else _pointer(before)
    try:
        _bpf(_MAP_GET_NEXT_KEY, "BPF_MAP_GET_NEXT_KEY", struct.pack("=I4xQQQ", fd, at, _pointer(following), 0))
    except FileNotFoundError:
        return None
    return following.raw


def map_lookup_batch(fd: int, entries: int, size: int) -> bytes:
    """The values of a whole array of ``entries`` values, ``size`` bytes each, in one call (Linux 5.6, per-CPU 5.13)."""
    position, keys = ctypes.create_string_buffer(4), ctypes.create_string_buffer(4 * entries)
    values = ctypes.create_string_buffer(size * entries)
    attributes = struct.pack("=QQQQIIQQ", 0, _pointer(position), _pointer(keys), _pointer(values), entries, fd, 0, 0)
    # ENOENT says that the end of the map was reached, with everything before it copied.
    with suppress(FileNotFoundError):
        _bpf(_MAP_LOOKUP_BATCH, "BPF_MAP_LOOKUP_BATCH", attributes)
    return values.raw


def map_update_batch(fd: int, keys: list[int], values: bytes) -> None:
    """Write many values of an array in one call (Linux 5.6)."""
    key_buffer, value_buffer = _in(struct.pack(f"={len(keys)}I", *keys)), _in(values)
    attributes = struct.pack("=QQQQIIQQ", 0, 0, _pointer(key_buffer), _pointer(value_buffer), len(keys), fd, 0, 0)
    _bpf(_MAP_UPDATE_BATCH, "BPF_MAP_UPDATE_BATCH", attributes)


def prog_load(program_type: int, instructions: bytes, *, license_text: str, name: str, attach_type: int = 0) -> int:
    """Load a program and return its descriptor (close-on-exec); the caller closes it.

    ``attach_type`` (enum bpf_attach_type) is what it will be used for, where there is a choice.
    """
    return _prog_load(program_type, instructions, None, license_text=license_text, name=name, attach_type=attach_type)


def prog_verify(program_type: int, instructions: bytes, *, license_text: str, name: str, attach_type: int = 0) -> str:
    """The verifier's whole log for a program, loaded or refused; nothing stays loaded."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    with suppress(OSError):
        os.close(
            _prog_load(program_type, instructions, log, license_text=license_text, name=name, attach_type=attach_type)
        )
    return log.value.decode(errors="replace")


def _prog_load(
    program_type: int,
    instructions: bytes,
    log: ctypes.Array[ctypes.c_char] | None,
    *,
    license_text: str,
    name: str,
    attach_type: int,
) -> int:
    code, license_buffer = _in(instructions), ctypes.create_string_buffer(license_text.encode())
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        program_type,
        len(instructions) // 8,
        _pointer(code),
        _pointer(license_buffer),
        0 if log is None else 1,
        0 if log is None else _LOG_SIZE,
        0 if log is None else _pointer(log),
        0,
        0,
        _name(name),
        0,
        attach_type,
    )
    for _ in range(_LOAD_ATTEMPTS - 1):
        try:
            return _bpf(_PROG_LOAD, "BPF_PROG_LOAD", attributes)
        except BlockingIOError:
            # The verifier gives up when a signal arrives; the signal has been taken by now.
            # Linux kernel commit c3494801cd17 ("bpf: check pending signals while verifying programs")
            continue
    return _bpf(_PROG_LOAD, "BPF_PROG_LOAD", attributes)


def obj_pin(fd: int, path: str) -> None:
    """Pin a map or program in bpffs; FileExistsError when the name is taken."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, "BPF_OBJ_PIN", struct.pack("=QII", _pointer(name), fd, 0))


def obj_get(path: str) -> int:
    """A new descriptor (close-on-exec) of what is pinned at ``path``; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, "BPF_OBJ_GET", struct.pack("=QII", _pointer(name), 0, 0))


def map_shape(fd: int) -> tuple[int, int, int, int, int]:
    """A map's type, key size, value size (bytes), number of entries and flags (struct bpf_map_info)."""
    info = ctypes.create_string_buffer(256)
    _bpf(_OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD", struct.pack("=IIQ", fd, len(info), _pointer(info)))
    kind, _, key_size, value_size, entries, flags = struct.unpack_from("=IIIIII", info)
    return kind, key_size, value_size, entries, flags


def bpf_errno() -> int:
    """The errno of a bpf(2) call that changes nothing and cannot succeed: EBADF or EBADFD where it gets to the kernel.

    EPERM is a seccomp filter's answer, or that of a kernel before 5.19 to a user without CAP_BPF. Linux kernel commit
    c8644cd0efe7 ("bpf: refine kernel.unprivileged_bpf_disabled behaviour").
    """
    try:
        _bpf(_OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD", struct.pack("=IIQ", _NO_DESCRIPTOR, 0, 0))
    except OSError as error:
        return error.errno or 0
    return 0


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A descriptor (close-on-exec) of what another process has open as ``number``; the caller closes it (Linux 5.6).

    OSError: EPERM where this process may not trace that one (ptrace(2)), EBADF where the number is not open.
    """
    return _numbered(_PIDFD_GETFD, "pidfd_getfd", ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0))


def attach_reuseport(sock: socket.socket, program_fd: int) -> None:
    """Let a program choose among the sockets of a bound socket's reuseport group (socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, program_fd)


def attach_reuseport_classic(sock: socket.socket, instructions: bytes) -> None:
    """The same with a classic BPF program (8 bytes an instruction), which needs no privilege."""
    _attach_classic(sock, _SO_ATTACH_REUSEPORT_CBPF, instructions)


def attach_filter(sock: socket.socket, instructions: bytes) -> None:
    """Let a classic BPF program (8 bytes an instruction) decide what enters the socket's queue (socket(7))."""
    _attach_classic(sock, _SO_ATTACH_FILTER, instructions)


def _attach_classic(sock: socket.socket, option: int, instructions: bytes) -> None:
    code = _in(instructions)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(instructions) // 8, _pointer(code)))


def mount_bpffs(path: str) -> None:
    """Mount a BPF file system at ``path``, as ``mount -t bpf bpf PATH`` does."""
    kind = ctypes.c_char_p(b"bpf")
    if _libc.mount(kind, ctypes.c_char_p(os.fsencode(path)), kind, ctypes.c_ulong(_MOUNT_FLAGS), b"mode=0755"):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path)


def end_with_parent() -> None:
    """Let the kernel send this process SIGTERM when its parent dies (prctl(2), PR_SET_PDEATHSIG). OSError."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "prctl")


def membarrier() -> None:
    """Wait for an RCU grace period: what packet processing had begun before the call is done after it.

    MEMBARRIER_CMD_GLOBAL is synchronize_rcu() in the kernel (kernel/sched/membarrier.c). Takes some
    milliseconds. OSError: EINVAL on a nohz_full kernel, ENOSYS where membarrier(2) is not built in.
    """
    _syscall(1, "membarrier", ctypes.c_int(MEMBARRIER_GLOBAL), ctypes.c_uint(0), ctypes.c_int(0))


def timer_create() -> int:
    """A non-blocking timerfd_create(2) descriptor on the monotonic clock, which the caller closes. OSError."""
    # Its flags are those of open(2) (include/linux/timerfd.h). os.timerfd_create() comes with Python 3.13.
    fd = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "timerfd_create")
    return fd


def timer_set(fd: int, nanoseconds: int) -> None:
    """Let the timer make its descriptor readable once, after that time; 0 stops it (timerfd_settime(2)). OSError."""
    value = (ctypes.c_long * 4)(0, 0, *divmod(nanoseconds, 1_000_000_000))
    if _libc.timerfd_settime(fd, 0, ctypes.byref(value), None):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "timerfd_settime")
