"""What a stage begins with, and the command that makes it: said by the stage's script where a stage cannot begin.

usage: python -m examples.recipe.beginning STAGE [key=value ...]
"""

from __future__ import annotations

import shlex
import sys

from examples.recipe.chain import of_environment
from examples.recipe.stage_file import places
from megatron_apriel.errors import run_command
from megatron_apriel.formats.run_directory import RunDirectory, checkpoints_in
from megatron_apriel.outputs import followed
from megatron_apriel.terminal import note


def main(argv: list[str] | None = None) -> int:
    name, *overrides = sys.argv[1:] if argv is None else argv
    steps, [(init_from, output)] = of_environment(), places([(name, overrides)])
    if checkpoints_in(RunDirectory(output).checkpoints):
        return 0  # it resumes from its own
    for before in (steps[before] for before in steps[name].before):
        if followed(before.product) == followed(init_from) and not before.done:
            note(
                f"{before.product}, with which {name} begins, is not there. It is made by:",
                f"  sbatch {shlex.join(before.command)}     (bash instead of sbatch where there is no Slurm)",
                "  examples/submit_all.sh submits everything that is missing, in order.",
            )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
