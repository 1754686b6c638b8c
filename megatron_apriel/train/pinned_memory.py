"""Host memory that a GPU copies from and to by itself, of exactly the size that is asked for.

The GPU must know where memory lies and that it stays there, so it is registered (pinned) with the driver. torch's own
allocator of such memory rounds every block up to a power of two, which for most of a machine's memory is more than the
machine has. Here it is mapped in slabs of whole pieces and registered as it is. Forked processes, which load data, do
not get it: a page that both write would move away from where the GPU writes.

Registering a hundred GiB takes a minute, since every page is made and found.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from megatron_apriel.errors import ConfigError
from megatron_apriel.quantities import size as in_words

SLAB_BYTES = 1 << 30
"""Registered at a time; more where one piece is larger."""
_ALIGNMENT = 256
_THREADS = 8


class _RefusedError(Exception):
    """The system does not give so many bytes more, or the driver does not register them."""

    def __init__(self, size: int, reason: str) -> None:
        super().__init__(size, reason)
        self.size, self.reason = size, reason


class HostMemory:
    """Zeros in host memory, in pieces.

    Args:
        sizes: bytes of the pieces.
        device: that copies from and to them, a GPU with its number. Memory beside a CPU is not registered.
        purpose, instead: what it is for, and what to do where there is not as much.

    Attributes:
        pieces: uint8, in the order of ``sizes``. Not registered any more once this object is gone.

    Raises:
        ConfigError: the machine does not give so much memory, or does not register it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        device: torch.device,
        purpose: str = "the optimizer's states",
        instead: str = "Lower optimizer.host",
    ) -> None:
        slabs = _slabs(sizes)
        made: dict[int, Tensor] = {}
        registered: list[int] = []

        def make(number: int) -> None:
            made[number] = _made(sum(map(_rounded, slabs[number])), device)
            if device.type == "cuda":
                registered.append(made[number].data_ptr())

        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(make, range(len(slabs))))
        except _RefusedError as error:
            _release(registered)
            raise ConfigError(
                f"{in_words(error.size)} more of host memory for {purpose} were refused: {error.reason}.",
                "It must be mapped and registered with the GPU's driver before the first step.",
                f"{instead}, or give the job more host memory.",
            ) from None
        # A process that ends gives it back anyway, and sooner.
        weakref.finalize(self, _release, registered).atexit = False
        self.pieces: list[Tensor] = []
        for number, slab in enumerate(slabs):
            start = 0
            for size in slab:
                self.pieces.append(made[number][start : start + size])
                start += _rounded(size)


def _slabs(sizes: Sequence[int]) -> list[list[int]]:
    """The pieces' sizes by slabs."""
    slabs: list[list[int]] = []
    left = 0
    for size in sizes:
        if not slabs or _rounded(size) > left:
            slabs.append([])
            left = SLAB_BYTES
        slabs[-1].append(size)
        left -= _rounded(size)
    return slabs


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _made(size: int, device: torch.device) -> Tensor:
    """One slab of zeros."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise _RefusedError(size, str(error.strerror)) from None
    with contextlib.suppress(OSError):  # a kernel may be built without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    slab = torch.frombuffer(memory, dtype=torch.uint8)
    if device.type == "cuda":
        memory.madvise(mmap.MADV_DONTFORK)
        torch.cuda.set_device(device)  # of this thread, which would otherwise wake the first one
        runtime: Any = torch.cuda.cudart()
        result = runtime.cudaHostRegister(slab.data_ptr(), size, 0)
        if int(result) != 0:
            raise _RefusedError(size, f"CUDA error {int(result)} from cudaHostRegister")
    return slab


def _release(addresses: Sequence[int]) -> None:
    for address in addresses:
        runtime: Any = torch.cuda.cudart()
        runtime.cudaHostUnregister(address)
