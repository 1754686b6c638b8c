"""Runs a function as a test of hostile input has to: in a process of its own, its memory, time and waiting bounded.

The process is a fork, so what the test has imported is there already and does not count; only what the function adds
does: resident memory at its peak over what there was before, and processor time of all its threads. Processors differ,
and a busy machine stretches their time: what takes long is measured by work of a known length, done right after it in
the same process, and what takes too long is tried again, and the least counts. Far above what is asserted stand limits
of the system, so that broken code takes down its own process and not the machine.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_apriel.errors import AprielError

SECONDS = 2.0
"""Of processor time, within which a refusal is expected: of a processor that does the known work in ``_KNOWN``."""
MEBIBYTES = 512
"""Of memory, within which a refusal is expected."""

_KNOWN = 0.1  # seconds of processor time that the known work takes, on a core of a server of 2022
_LONG = 0.5  # seconds below which nothing is in doubt, and the known work is not done
_TEXT = "[" + ",".join(['{"a":[1,2.5,"word"],"b":null}'] * 100_000) + "]"  # which is read, and that is the known work
_TRIES = 3
_WAIT = 120.0  # seconds until a function that says nothing counts as waiting for ever
_ROOM = 8 * 2**30  # bytes of address space beyond what the process has: threads and allocators reserve generously


@dataclass(frozen=True)
class Spent:
    """What a function did, and at what cost.

    Attributes:
        result: what it returned, as text.
        error: the type of what it raised, or None.
        message: of the error.
        refused: whether the error is one for a person to read.
        trace: the traceback of the error.
        seconds: processor time, less what a slower processor than that of ``SECONDS`` adds.
        mebibytes: growth of resident memory at its peak.
    """

    result: str = ""
    error: str | None = None
    message: str = ""
    refused: bool = False
    trace: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0


def refused_within(
    function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS, mebibytes: float = MEBIBYTES
) -> str:
    """The message with which ``function(*arguments)`` refuses its input, after checking what that cost.

    Args:
        function: may be a local function or a lambda.
        arguments: of the function.
        seconds: of processor time that it may take.
        mebibytes: of memory that it may take.

    Returns:
        The error's type and message, as ``DataError: a.jsonl ...``.

    Raises:
        AssertionError: it did not refuse (an error of the project or an OSError is a refusal, nothing else), waited,
            died, or took more than it may.
    """
    spent = measured(function, *arguments)
    for _ in range(_TRIES - 1):
        if spent.seconds <= seconds:
            break
        spent = min(spent, measured(function, *arguments), key=lambda one: one.seconds)
    assert spent.error is not None, f"not refused; the result is {spent.result}"
    assert spent.refused, f"refused by an error that nobody should see:\n{spent.trace}"
    check_cost(spent, seconds, mebibytes)
    return f"{spent.error}: {spent.message}"


def check_cost(spent: Spent, seconds: float = SECONDS, mebibytes: float = MEBIBYTES) -> None:
    """Raise AssertionError if more was spent than this."""
    assert spent.mebibytes <= mebibytes, f"it took {spent.mebibytes:.0f} MiB; allowed are {mebibytes:.0f}"
    assert spent.seconds <= seconds, f"it took {spent.seconds:.1f} s of processor time; allowed are {seconds:.1f}"


def measured(function: Callable[..., Any], *arguments: Any) -> Spent:
    """Run ``function(*arguments)`` in a process of its own and say what became of it and what it cost.

    Raises:
        AssertionError: it did not come to an end, or died.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        assert receiver.poll(_WAIT), f"no answer within {_WAIT:.0f} s: it waits or works without end"
        spent: Spent = receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the process died with exit code {process.exitcode}") from None
    finally:
        receiver.close()
        process.kill()
        process.join()
    return spent


def _child(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    gc.freeze()  # what the test made before stays shared with it, and is not copied to be looked at
    size, before = (_status(name) for name in ("VmSize", "VmRSS"))
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, size + _ROOM))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    begin = time.process_time()
    result, failure = None, None
    try:
        result = function(*arguments)
    except BaseException as error:
        failure = error
    seconds = time.process_time() - begin
    spent = Spent(seconds=seconds, mebibytes=(_status("VmHWM") - before) / 2**20)
    if failure is None:
        spent = replace(spent, result=repr(result)[:1000])
    else:
        refused, trace = isinstance(failure, AprielError | OSError), "".join(traceback.format_exception(failure))
        spent = replace(spent, error=type(failure).__name__, message=str(failure), refused=refused, trace=trace[-4000:])
    if seconds > _LONG:
        spent = replace(spent, seconds=seconds / slowness())
    sender.send(spent)
    sender.close()
    os._exit(0)


def slowness() -> float:
    """How many times as long as it should this processor takes now for work of a known length; at least 1."""
    begin = time.process_time()
    json.loads(_TEXT)
    return max(1.0, (time.process_time() - begin) / _KNOWN)


def _status(name: str) -> int:
    """A field of /proc/self/status that is a size, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
