"""Output files that are whole or as they were: written beside their place under a hidden name, then renamed.

The hidden name says who is writing, as that of a directory does (``outputs.py``)::

    scores/.partial-node17-4711-889123-table.csv      <- being written
    scores/table.csv                                  <- as it was, until one rename

What a killed process of this host left is removed by the next one that writes the same file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_apriel.errors import OutputError
from megatron_apriel.outputs import check_place, flush, followed, resolved, start_time, writer_name

PARTIAL = ".partial-"
"""How the name of a file begins that is being written, or was when its process was killed."""
_LEFT = re.compile(rf"{re.escape(PARTIAL)}(?P<host>\w+)-(?P<process>\d+)-(?P<started>\d+)-(?P<file>.+)", re.DOTALL)


def check_file(path: Path, overwrite: bool = False, inputs: Sequence[Path] = ()) -> None:
    """Check that a file that a person named may be written, before any work is done.

    Args:
        path: of it; :func:`whole_file` makes missing directories above it.
        overwrite: an existing file is replaced.
        inputs: files that are read, and not replaced, and directories of such files.

    Raises:
        OutputError: if it exists and may not be replaced, or cannot be written.
    """
    target = resolved(path)
    check_place(path, target)
    if not os.path.lexists(target):
        return
    if not target.is_file():
        raise OutputError(f"{path} exists and is no file.", fix="Give the name of a file.")
    if not overwrite:
        raise OutputError(
            f"{path} exists.", "Nothing is overwritten unless you ask for it.",
            "Give another name, or --overwrite to replace it.",
        )  # fmt: skip
    for given in inputs:
        place = followed(given)
        if place == target:
            raise OutputError(f"{path} is the input {given}.", "An input is only read.", "Give another name.")
        if place in target.parents:
            raise OutputError(
                f"{path} belongs to the input {given}.", "An input is only read.", "Give a name outside of it."
            )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; what is there becomes ``path`` when the block ends well, and vanishes otherwise.

    Its name ends as that of ``path`` does. Missing directories are made, and a link that leads back to itself is
    replaced. Raises OSError.
    """
    target = followed(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    partial = target.with_name(f"{PARTIAL}{writer_name()}-{target.name}")
    try:
        yield partial
        flush(partial)
        partial.replace(target)
    except OSError as error:
        error.filename = error.filename or str(path)  # which a write that fails does not know
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_file(path: Path, text: str) -> None:
    """Write a small file that is whole or as it was. Raises OSError."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogatepass")


def _remove_stale(target: Path) -> None:
    """Remove what killed processes of this host left of a file."""
    host = writer_name().partition("-")[0]
    for path in target.parent.iterdir():
        left = _LEFT.fullmatch(path.name)
        if left is None or (left["host"], left["file"]) != (host, target.name):
            continue
        if start_time(int(left["process"])) != left["started"]:
            with suppress(OSError):  # another user's, in a directory that both write to
                path.unlink()
