"""Where the processes of a benchmark write what they print: a folder that is removed unless something failed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Logs:
    """A folder for the output of processes.

    Attributes:
        folder: the place.
        wanted: a measurement failed, and the folder is kept for whoever asks why.
    """

    folder: Path
    wanted: bool = False


@contextmanager
def log_folder() -> Iterator[Logs]:
    """A new folder, removed behind the block; kept and named where its logs are wanted or the block raised."""
    logs = Logs(Path(tempfile.mkdtemp(prefix="benchmark-")))
    try:
        yield logs
    except BaseException:
        logs.wanted = True
        raise
    finally:
        if logs.wanted:
            print(f"logs in {logs.folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(logs.folder, ignore_errors=True)
