"""A program under watch: what it writes is collected, and it is ended where all its processes together use too much.

Limits of the kernel's hold for each process alone, and an address space is not the memory that is held; so all of them
are looked at, twenty times a second.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from megatron_apriel.grading.process_tree import descendants, kill_tree, resident_bytes


class End(StrEnum):
    """How a program ended."""

    BY_ITSELF = "by itself"
    TIME = "time"
    MEMORY = "memory"
    PROCESSES = "processes"
    OUTPUT = "output"
    DISK = "disk"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: from its start to its end.
        memory_bytes: of address space for each process, and of memory held by all together.
        processes: at once, threads included.
        output_bytes: of both outputs together.
        disk_bytes: of all files that it writes; for each file the same.
        open_files: of each process.
    """

    seconds: float = 10.0
    memory_bytes: int = 2 * 2**30
    processes: int = 64
    output_bytes: int = 2**20
    disk_bytes: int = 64 * 2**20
    open_files: int = 128


@dataclass(frozen=True)
class Watched:
    """What became of a program.

    Attributes:
        end: what ended it.
        code: its exit code, 128 and the signal's number where a signal ended it; None where the watch ended it.
        output, errors: what it wrote.
        seconds: that it took.
    """

    end: End
    code: int | None
    output: str
    errors: str
    seconds: float


def watched(process: subprocess.Popen[bytes], limits: Limits, work: Path | None) -> Watched:
    """Collect what a program writes, and end it, with all that it started, at a limit or at its end.

    Args:
        process: with pipes for both outputs, that adopts what its descendants leave behind or takes it along.
        limits: of all its processes together.
        work: the only folder that it can write to, where its files have to be counted.
    """
    begun = time.monotonic()
    texts = {"output": bytearray(), "errors": bytearray()}
    end = End.BY_ITSELF
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "output")  # type: ignore[arg-type]
        selector.register(process.stderr, selectors.EVENT_READ, "errors")  # type: ignore[arg-type]
        looked = 0.0
        while selector.get_map():
            left = begun + limits.seconds - time.monotonic()
            if left <= 0:
                end = End.TIME
                break
            for key, _ in selector.select(min(left, 0.05)):
                data = os.read(key.fd, 65536)
                texts[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
            if sum(map(len, texts.values())) > limits.output_bytes:
                end = End.OUTPUT
                break
            if time.monotonic() - looked >= 0.05:
                looked = time.monotonic()
                if (broken := _broken_limit(process.pid, limits, work)) is not None:
                    end = broken
                    break
    if end is End.BY_ITSELF:
        # Whatever closes its outputs and goes on has the rest of its time.
        try:
            process.wait(max(begun + limits.seconds - time.monotonic(), 0.05))
        except subprocess.TimeoutExpired:
            end = End.TIME
    if end is End.BY_ITSELF and _fills_disk(work, limits):
        end = End.DISK  # faster than the watch looks
    seconds = time.monotonic() - begun
    if process.returncode is None:  # or its number may be another's by now
        kill_tree(process.pid)
    code = process.wait()
    for pipe in (process.stdout, process.stderr):
        pipe.close()  # type: ignore[union-attr]
    output, errors = (bytes(text[: limits.output_bytes]).decode("utf-8", "replace") for text in texts.values())
    own = (128 - code if code < 0 else code) if end is End.BY_ITSELF else None
    return Watched(end, own, output, errors, seconds)


def _broken_limit(process: int, limits: Limits, work: Path | None) -> End | None:
    """Which limit all its processes and files together are over."""
    family = descendants(process)
    if resident_bytes(family) > limits.memory_bytes:
        return End.MEMORY
    if len(family) > limits.processes + 3:  # the sandbox's own
        return End.PROCESSES
    return End.DISK if _fills_disk(work, limits) else None


def _fills_disk(work: Path | None, limits: Limits) -> bool:
    return work is not None and _bytes_below(work) > limits.disk_bytes


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_blocks * 512
    return total
