"""How a forked worker process begins: it leaves signals to its parent, and ends with it."""

from __future__ import annotations

import ctypes
import signal
from contextlib import suppress

_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


def obey_parent() -> None:
    """Make this process, a worker just forked, end when its parent says so or is no more."""
    # Ctrl-C reaches the whole process group: the parent ends the work. Handlers inherited from it mean nothing here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A parent that is killed tells nobody; without this its workers would wait for work for ever.
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
