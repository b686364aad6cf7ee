"""The maps of one group: created or opened together, pinned together, closed together."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

from aiolb.bpf import abi, syscall
from aiolb.bpf.abi import MAP_TYPE_PERCPU_ARRAY, MAPS, Layout, MapSpec

_SPECS = {spec.pin: spec for spec in MAPS}
_L = TypeVar("_L", bound=Layout)


class LayoutMismatchError(Exception):
    """The pinned maps are those of another version; says what was found."""


class Maps:
    """Descriptors of a group's maps by pin name; owns them until ``close()``."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self._descriptors = dict(descriptors)
        self._mapped: dict[str, mmap.mmap] = {}

    @classmethod
    def create(cls, protocol: str) -> Self:
        """Create all maps of a group. Raises OSError; nothing is left open then."""
        return cls._collect(
            lambda spec: syscall.map_create(
                spec.type,
                key_size=spec.key_size,
                value_size=spec.value_size,
                entries=spec.entries,
                name=spec.name_for(protocol),
                flags=spec.flags,
            )
        )

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the maps pinned in ``folder``. Raises LayoutMismatchError, OSError; nothing is left open then."""
        maps = cls._collect(lambda spec: syscall.obj_get(str(folder / spec.pin)))
        try:
            maps._check_layout()  # noqa: SLF001 - our own instance
        except BaseException:
            maps.close()
            raise
        return maps

    @classmethod
    def _collect(cls, descriptor_of: Callable[[MapSpec], int]) -> Self:
        maps = cls({})
        try:
            for spec in MAPS:
                maps._descriptors[spec.pin] = descriptor_of(spec)
        except OSError:
            maps.close()
            raise
        return maps

    def _check_layout(self) -> None:
        # The kernel copies as many bytes as the map's values have: sizes first, or our buffers would overflow.
        layout = syscall.map_lookup(self._descriptors["config"], 0, syscall.map_shape(self._descriptors["config"])[2])
        found = abi.U32.unpack_from(layout or bytes(4))[0]
        if found != abi.LAYOUT_VERSION:
            raise LayoutMismatchError(f"layout {found}")
        for spec in MAPS:
            if syscall.map_shape(self._descriptors[spec.pin]) != (
                spec.type,
                spec.key_size,
                spec.value_size,
                spec.entries,
                spec.flags,
            ):
                raise LayoutMismatchError(f"another shape of the map {spec.pin}")

    def pin(self, folder: Path) -> None:
        """Pin every map in ``folder`` under its pin name, ``config`` last. Raises OSError."""
        for pin in sorted(self._descriptors, key=lambda pin: pin == "config"):
            syscall.obj_pin(self._descriptors[pin], str(folder / pin))

    def close(self) -> None:
        """Close the descriptors; pinned maps live on."""
        while self._mapped:
            self._mapped.popitem()[1].close()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def by_placeholder(self) -> dict[int, int]:
        """Descriptors by the number that stands for them in the bytecode."""
        return {spec.placeholder: self._descriptors[spec.pin] for spec in MAPS if spec.placeholder}

    def descriptor(self, pin: str) -> int:
        """A map's descriptor, which stays ours to close."""
        return self._descriptors[pin]

    @property
    def slots(self) -> mmap.mmap:
        """The slot table, SLOT_COUNT u16 that the program reads: each is written in one piece."""
        return self._memory_of("slots")

    @property
    def reports(self) -> mmap.mmap:
        """What each member tells of itself: MAX_MEMBERS structs."""
        return self._memory_of("reports")

    @property
    def reports_descriptor(self) -> int:
        """The descriptor of ``reports``, for a process that inherits it; it stays ours to close."""
        return self._descriptors["reports"]

    def _memory_of(self, pin: str) -> mmap.mmap:
        if pin not in self._mapped:
            spec = _SPECS[pin]
            self._mapped[pin] = mmap.mmap(self._descriptors[pin], spec.value_size * spec.entries)
        return self._mapped[pin]

    def read(self, pin: str, key: int) -> bytes | None:
        """One value of a plain array or the sockarray (8 bytes: the socket's cookie)."""
        return syscall.map_lookup(self._descriptors[pin], key, _SPECS[pin].value_size)

    def read_each(self, pin: str, entries: int) -> list[bytes | None]:
        """The first values of the sockarray, which can only be read one by one."""
        return syscall.map_lookup_each(self._descriptors[pin], entries, _SPECS[pin].value_size)

    def read_all(self, pin: str) -> bytes:
        """All values of a plain array, one after the other."""
        spec = _SPECS[pin]
        stride = _stride(spec)
        try:
            raw = syscall.map_lookup_batch(self._descriptors[pin], spec.entries, stride)
        except OSError:  # no batch operations for this map type before Linux 5.6 (arrays) or 5.13 (per-CPU)
            return b"".join(
                syscall.map_lookup(self._descriptors[pin], key, stride) or bytes(stride) for key in range(spec.entries)
            )
        return raw

    def read_struct(self, pin: str, key: int, layout: type[_L]) -> _L:
        """One value of a plain array as a struct."""
        return layout.unpack(self.read(pin, key) or bytes(layout.STRUCT.size))

    def items(self, pin: str) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a map that is no array, each key once; those that come or go meanwhile may be missed."""
        spec, fd = _SPECS[pin], self._descriptors[pin]
        seen: set[bytes] = set()
        key: bytes | None = None
        # After a key that is gone the kernel begins again from the first one.
        for _ in range(2 * spec.entries):
            key = syscall.map_next_key(fd, key, spec.key_size)
            if key is None:
                return
            if key not in seen and (value := syscall.map_lookup(fd, key, spec.value_size)) is not None:
                seen.add(key)
                yield key, value

    def write(self, pin: str, key: int | bytes, value: bytes) -> None:
        """Write one value."""
        syscall.map_update(self._descriptors[pin], key, value)

    def write_many(self, pin: str, values: Mapping[int, bytes]) -> None:
        """Write many values of an array in one call where the kernel can."""
        if values:
            syscall.map_update_batch(self._descriptors[pin], list(values), b"".join(values.values()))

    def delete(self, pin: str, key: int | bytes) -> bool:
        """Remove one value; whether there was one."""
        return syscall.map_delete(self._descriptors[pin], key)

    def sums(self, pin: str) -> list[tuple[int, ...]]:
        """All values of a per-CPU array of counters, added up over the CPUs; ``slot_stats`` has 32-bit ones."""
        spec = _SPECS[pin]
        counters = struct.Struct(f"={spec.value_size // 4}I" if pin == "slot_stats" else f"={spec.value_size // 8}Q")
        raw, stride = self.read_all(pin), _stride(spec)
        return [
            tuple(map(sum, zip(*counters.iter_unpack(raw[start : start + stride]), strict=True)))
            for start in range(0, len(raw), stride)
        ]


def _stride(spec: MapSpec) -> int:
    """Bytes that the kernel copies for one value: 8-byte aligned, and once per possible CPU for per-CPU maps."""
    return spec.value_size * possible_cpus() if spec.type == MAP_TYPE_PERCPU_ARRAY else spec.value_size


@cache
def possible_cpus() -> int:
    """The number of CPUs that the kernel keeps per-CPU values for."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return sum(int(part.rpartition("-")[2]) - int(part.partition("-")[0]) + 1 for part in ranges)
