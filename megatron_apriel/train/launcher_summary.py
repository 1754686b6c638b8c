"""What ended a rank, where torchrun quotes it: in the summary that is the last thing on the screen.

Below whatever a failed rank says, torchrun prints a traceback of its own and a list of ranks, some fifty lines. For
each rank that list quotes a file, which torchrun names to the rank in its environment; without one it says how to
"enable traceback". A rank whose failure has a message leaves it there.

A rank that ended by something unforeseen leaves none. Often it has lost another rank, and torchrun takes the oldest
file for the root cause: it would name the one that noticed, and not the one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def leave_message(message: str) -> None:
    """Have torchrun's summary quote ``message`` for this rank; nothing where no torchrun started it."""
    place = os.environ.get(FILE_VARIABLE)
    if not place:
        return
    record = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    with contextlib.suppress(OSError):  # the message has been printed already
        Path(place).write_text(json.dumps(record), encoding="utf-8")
