"""The reader's side of a BPF_MAP_TYPE_RINGBUF: records taken out of memory that the kernel writes to."""

from __future__ import annotations

import mmap
import struct

_HEADER = struct.Struct("=II")  # length with the two flags below, and the page that the kernel frees by
_BUSY, _DISCARD = 1 << 31, 1 << 30


class Ring:
    """Maps a ring buffer of ``size`` bytes; whoever has the descriptor may read, but only one at a time.

    The layout is that of Linux kernel commit 457f44363a88 ("bpf: Implement BPF ring buffer and verifier support for
    it"): a page with the reader's position, which is ours to write, then a page with the writers' position, then the
    data twice in a row, so that a record at the end goes on without a seam.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._mask = size - 1
        self._ours = mmap.mmap(fd, mmap.PAGESIZE)
        try:
            self._theirs = mmap.mmap(fd, mmap.PAGESIZE + 2 * size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        except BaseException:
            self._ours.close()
            raise
        # A view of native numbers reads and writes each in one piece, which the struct module does not promise.
        self._position = memoryview(self._ours).cast("L")
        self._end = memoryview(self._theirs)[: mmap.PAGESIZE].cast("L")
        self._headers = memoryview(self._theirs)[mmap.PAGESIZE :].cast("I")

    def close(self) -> None:
        """Unmap it. Idempotent."""
        for view in (self._position, self._end, self._headers):
            view.release()
        self._ours.close()
        self._theirs.close()

    def skip(self) -> None:
        """Leave out what is there."""
        self._position[0] = self._end[0]

    def read(self, most: int) -> list[bytes]:
        """Take up to ``most`` records out, oldest first; none where there is none, or the next one is being written."""
        records: list[bytes] = []
        at = begin = self._position[0]
        end = self._end[0]
        while at != end and len(records) < most:
            offset = at & self._mask
            length = self._headers[offset // 4]
            if length & _BUSY:
                break
            size = length & ~_DISCARD
            if not length & _DISCARD:
                start = mmap.PAGESIZE + offset + _HEADER.size
                records.append(self._theirs[start : start + size])
            at += _HEADER.size + (size + 7 & ~7)
        if at != begin:
            self._position[0] = at
        return records
