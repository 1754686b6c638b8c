"""Memory for pieces, used again and again.

A piece that several threads work on (``lanes.py``) is free when the last of them is done with it. Given back to the
system and asked for anew, its pages would be taken away, found and cleared each time: a tenth of the work of a copy.

Each piece begins on a page, as a disk wants what is written to it past the page cache.
"""

from __future__ import annotations

import contextlib
import mmap


class ReusedMemory:
    """Gives memory for a piece, and takes it back when no view of it is left.

    It keeps as much as was ever in use at once, each piece of the largest size so far. Any thread may end a view.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def __call__(self, size: int) -> memoryview:
        """So many bytes, of any contents."""
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < size:
            memory = _new_memory(size)
        return memoryview(_Lent(memory, self._free))[:size]


def _new_memory(size: int) -> mmap.mmap:
    # Private: pages that another process could share, mmap's default, take longer to get and are never large ones.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # not every kernel has large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _Lent:
    """Puts its memory among what is free when the last view of it ends.

    What is free does not know this object, so that all of it is given back as soon as nobody can ask for it: a circle
    would wait for the collector of garbage, which counts objects and not their bytes.
    """

    def __init__(self, memory: mmap.mmap, free: list[mmap.mmap]) -> None:
        self._memory, self._free = memory, free

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._memory)

    def __release_buffer__(self, view: memoryview) -> None:
        view.release()
        with contextlib.suppress(AttributeError):  # the collector of garbage has taken this object apart
            self._free.append(self._memory)
