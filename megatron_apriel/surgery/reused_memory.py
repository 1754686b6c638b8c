"""Memory for pieces, used again and again.

A piece that several threads work on (``lanes.py``) is free when the last of them is done with it. Given back to the
system and asked for anew, its pages would be taken away, found and cleared each time: a tenth of the work of a copy.

Each piece begins on a page, as a disk wants what is written to it past the page cache.
"""

from __future__ import annotations

import mmap


class ReusedMemory:
    """Gives memory for a piece, and takes it back when no view of it is left.

    It keeps as much as was ever in use at once, each piece of the largest size so far. Any thread may end a view.
    """

    def __init__(self) -> None:
        self._free: list[_Memory] = []

    def __call__(self, size: int) -> memoryview:
        """So many bytes, of any contents."""
        memory = self._free.pop() if self._free else None
        if memory is None or memory.size < size:
            memory = _Memory(size, self._free)
        return memoryview(memory)[:size]


class _Memory:
    """Puts itself among those that are free when the last view of it ends."""

    def __init__(self, size: int, free: list[_Memory]) -> None:
        self.size = size
        # Private: pages that another process could share, mmap's default, take longer to get and are never large ones.
        self._bytes = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bytes.madvise(mmap.MADV_HUGEPAGE)
        self._free = free

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._bytes)

    def __release_buffer__(self, view: memoryview) -> None:
        view.release()
        self._free.append(self)
