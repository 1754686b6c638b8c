"""``torchrun -m megatron_apriel.train STAGE.yaml key=value ...``: train one stage, on CPU or GPUs.

The command line is in ``command.py``. It is loaded here only once requests to stop are listened to: what it imports
takes seconds, and a job's end may come in any of them.
"""

from __future__ import annotations

import sys

from megatron_apriel.errors import ConfigError, run_command
from megatron_apriel.train import early_requests
from megatron_apriel.train.launcher_summary import leave_message


def main() -> int:
    """Listen, then load the command line and do what it says."""
    early_requests.listen()
    try:
        from megatron_apriel.train.command import main as train
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{sys.executable} has no module {error.name}.",
            "It is another Python than the one with the project's packages, or make setup did not get to its end.",
            "make setup, then source .venv/bin/activate; or name that Python: .venv/bin/python",
        ) from None
    return train()


if __name__ == "__main__":
    code = run_command(main, leave_message)
    early_requests.ignore()
    sys.exit(code)
