"""The command line of training: reads the stage, and plans it or trains it.

A dry run answers without torch, for any number of ranks, on any machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_apriel.command_line import CommandLine, above_zero
from megatron_apriel.config.explain import refused_options
from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import quiet_libraries, say, time_stamps
from megatron_apriel.train import early_requests

EXAMPLES = """\
examples:
  one process (CPU, or one GPU):
      python -m megatron_apriel.train examples/cpt_stage2.yaml output=runs/trial tokens=10M
  the eight GPUs of one machine:
      torchrun --nproc-per-node 8 -m megatron_apriel.train examples/cpt_stage2.yaml
  what would run on 640 GPUs, without starting anything:
      python -m megatron_apriel.train examples/cpt_stage2.yaml --dry-run --world-size 640

The same command again resumes from the newest checkpoint in the stage's output directory. With --change, learning
rate, schedule, the number of tokens, the mixture's weights and the form of the optimizer's states may then differ from
those that the run had so far.

exit codes: 0 the stage is complete; 75 stopped by SIGTERM, SIGUSR1 or the job's time limit after saving (start the
same command again); 76 failed for what may pass by itself, as a port that is taken; 130 stopped by Ctrl-C after saving;
anything else is a failure, explained on standard error.
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line; plan or train."""
    parser = _parser()
    # Intermixed, so that overrides may also stand after options.
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise refused_options(unknown, parser.nearest_option)
    config = load_stage(arguments.stage, arguments.overrides)
    RunDirectory(config.output).check_own()
    if arguments.dry_run:
        early_requests.give_back()
        from megatron_apriel.parallel.layout import started_ranks
        from megatron_apriel.planning.dry_run import print_plan

        given = arguments.world_size
        world_size = started_ranks(os.environ, "WORLD_SIZE") if given is None else given
        print_plan(
            config,
            world_size,
            architecture=arguments.architecture,
            check_data=arguments.check_data,
            change=arguments.change,
        )
        return 0
    if arguments.world_size is not None or arguments.architecture or arguments.check_data:
        parser.error("--world-size, --architecture and --check-data go with --dry-run")
    with time_stamps():
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            say(f"{length_in_words(config)}, to {config.output}; loading torch and Megatron Core")
        from megatron_apriel.planning.beginning import check_early

        check_early(config, os.environ, arguments.change)
        quiet_libraries()
        from megatron_apriel.train.run import run_stage

        early_requests.loaded()
        return run_stage(config, arguments.change)


def _parser() -> CommandLine:
    parser = CommandLine(
        prog="megatron_apriel.train",
        description="Train one stage of the recipe from its YAML file.",
        epilog=EXAMPLES,
    )
    parser.add_argument("stage", type=Path, help="the stage's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    parser.add_argument(
        "--change",
        action="store_true",
        help="resume with another learning rate, schedule, number of tokens, other weights and sources of the mixture,"
        " or another form of the optimizer's states",
    )
    planning = parser.add_argument_group("planning")
    planning.add_argument("--dry-run", action="store_true", help="print what would run, and check it; start nothing")
    planning.add_argument("--world-size", type=above_zero, help="ranks to plan for (default: WORLD_SIZE, or 1)")
    planning.add_argument(
        "--architecture", help="with --dry-run: a preset such as apriel-15b, where init_from does not exist yet"
    )
    planning.add_argument(
        "--check-data",
        action="store_true",
        help="with --dry-run: corpora that do not exist yet are errors, not notes; those that do are always checked",
    )
    return parser


def length_in_words(config: StageConfig) -> str:
    """The first line of a run: what was read, before anything is loaded."""
    epochs = config.epochs if config.tokens is None else None
    length = counted(config.steps, "step") if epochs is None else counted(epochs, "epoch")
    return (
        f"stage {config.stage}: {length} in global batches of {config.sequences_per_step:,} x"
        f" {config.sequence_length:,} tokens"
    )
