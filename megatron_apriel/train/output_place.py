"""Whether a run's output directory is still the one that it began in.

A process writes on into files that somebody removed, and makes directories anew that are gone: a run whose output was
deleted, renamed or unmounted would train for days and save what nobody finds. So it is looked at after every step.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_apriel.errors import OutputError


class OutputPlace:
    """The directory ``path``, remembered until the end of ``with``.

    Kept open meanwhile, so that no other directory gets its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def lost(self) -> bool:
        """Whether something else, or nothing, is at that path now; not where a file system fails for a moment."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False

    def error(self, step: int) -> OutputError:
        """What to raise where it is lost after ``step``."""
        return OutputError(
            f"{self.path} is no longer the directory that this run began in; noticed after step {step}.",
            "It was removed, renamed or unmounted. Nothing more was written, neither there nor elsewhere.",
            "Put it back if it was moved, and start the same command again: it resumes from the newest checkpoint.",
        )
