"""``torchrun -m megatron_apriel.train STAGE.yaml key=value ...``: train one stage, on CPU or GPUs.

The command line is in ``command.py``. It is loaded here only once requests to stop are listened to: what it imports
takes seconds, and a job's end may come in any of them.
"""

from __future__ import annotations

import sys

from megatron_apriel.errors import run_command
from megatron_apriel.train import early_requests


def main() -> int:
    """Listen, then load the command line and do what it says."""
    early_requests.listen()
    from megatron_apriel.train.command import main as train

    return train()


if __name__ == "__main__":
    code = run_command(main)
    early_requests.ignore()
    sys.exit(code)
