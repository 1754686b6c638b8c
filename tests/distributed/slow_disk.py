"""Disks that are slow, stand still or are full, for the writing of a rank's tensors. For forked ranks only."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from megatron_apriel.checkpoint import background_save
from megatron_apriel.checkpoint.background_save import HostBuffers


def hold_writing(items: int = 3) -> threading.Event:
    """From here on this rank's writing stands still after so many tensors, until the event is set."""
    released, written, write_piece = threading.Event(), itertools.count(), background_save.write_piece

    def held(*arguments: Any) -> None:
        if next(written) >= items:
            assert released.wait(60)
        write_piece(*arguments)

    background_save.write_piece = held
    return released


def slow_writing(seconds: float) -> None:
    """From here on this rank's writing takes so much longer for each tensor."""
    write_piece = background_save.write_piece

    def slow(*arguments: Any) -> None:
        time.sleep(seconds)
        write_piece(*arguments)

    background_save.write_piece = slow


def fail_writing(at: str = "writing") -> None:
    """From here on this rank cannot write, or not even copy what is to be written."""

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    if at == "copying":
        HostBuffers.copies = full
    else:
        background_save.write_piece = full
