"""Choose a parallel layout for a stage: predicted memory and time per step of every one that could run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_apriel.command_line import CommandLine, above_zero, fraction
from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError, ExitCode, listed, run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.output_files import check_file, replace_file
from megatron_apriel.planning.certainty import Doubt, legend
from megatron_apriel.planning.choosing_moments import with_smaller_states
from megatron_apriel.planning.dry_run import planned_architecture
from megatron_apriel.planning.hardware import KINDS, Hardware, hardware, hardware_yaml
from megatron_apriel.planning.layouts import Candidate, Candidates, candidates
from megatron_apriel.planning.plan_tables import misses, ranking, stage_row, stages_table, states_table
from megatron_apriel.planning.plan_words import further_settings, hours_of, nothing_fits, record, yaml_lines
from megatron_apriel.planning.workload import Workload
from megatron_apriel.quantities import counted
from megatron_apriel.tables import Table, standard_output
from megatron_apriel.terminal import say

EXAMPLES = """\
examples:
  # the ten fastest layouts of a stage on 640 H100, before its model exists
  python tools/plan.py --gpus 640 --gpu h100 --stage examples/cpt_stage1.yaml --architecture apriel-15b

  # the whole recipe on one GPU: the fastest way for every stage in examples/one_gpu
  python tools/plan.py --gpus 1

  # the same stage in FP8, with documents of 4096 tokens and slower links between nodes
  python tools/plan.py --gpus 640 --gpu h200 --stage examples/cpt_stage1.yaml --architecture apriel-15b \\
      --document-tokens 4096 --set inter_node=25 precision.fp8=tensorwise

  # a stage at full size on one GPU, with optimizer states in 128 GiB of the host's memory
  python tools/plan.py --gpus 1 --set host_memory=128 --stage examples/sft.yaml --architecture apriel-15b \\
      precision.fp8=tensorwise

  # what smaller optimizer states would give eight GPUs
  python tools/plan.py --gpus 8 --gpu h100 --compare-states --stage examples/upscale.yaml --architecture apriel-15b \\
      precision.fp8=tensorwise

  # all numbers that a prediction rests on, as a file to correct and give back with --hardware
  python tools/plan.py --gpu h200 --print-hardware

A micro-batch is always one packed sequence. Exit code 0: the fastest layout is printed; 1: none fits, with
what is missing; without --stage 1 also where one of the stages does not fit.
"""
WIDTH = 160
EXAMPLES_FOLDER = Path(__file__).resolve().parents[1] / "examples"
RECIPE = "apriel-15b"
"""The model of these examples."""
ORDER = ("upscale", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long")
"""Of the recipe's stages."""
TAKEN_AS_GIVEN = ("parallel.overlap", "parallel.tensor_overlap", "parallel.dealing")
"""Of the settings in the two sections that a plan chooses."""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the stage")
    parser.add_argument("--stage", type=Path, help="the stage's YAML file (default: each stage in examples)")
    parser.add_argument("--architecture", help="a preset such as apriel-15b, where init_from does not exist yet")
    machine = parser.add_argument_group("hardware")
    machine.add_argument("--gpus", type=above_zero, help="GPUs of the run")
    machine.add_argument("--gpu", choices=sorted(KINDS), default="h200", help="kind of GPU (default: %(default)s)")
    machine.add_argument("--hardware", type=Path, metavar="FILE", help="YAML with numbers that replace those of --gpu")
    machine.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one such number; repeatable")
    machine.add_argument("--print-hardware", action="store_true", help="print all numbers with their origin, and end")
    data = parser.add_argument_group("what the sequences hold")
    data.add_argument(
        "--document-tokens", type=above_zero, help="length of the documents (default: one fills the sequence)"
    )
    data.add_argument(
        "--images-share",
        type=fraction,
        help="part of the tokens that are image tokens (default: 15%% where tower or projector trains, else none)",
    )
    shown = parser.add_argument_group("output")
    shown.add_argument("--top", type=above_zero, default=10, help="how many layouts are listed (default: %(default)s)")
    shown.add_argument("--compare-states", action="store_true", help="predict also what smaller optimizer states give")
    shown.add_argument("--show-refused", action="store_true", help="list the layouts that cannot run, with the reason")
    shown.add_argument("--json", type=Path, metavar="FILE", help="write every layout that was predicted")
    shown.add_argument("--overwrite", action="store_true", help="replace that file")
    return parser


def _show(found: Candidates, config: StageConfig, arguments: argparse.Namespace, gpu: Hardware, work: Workload) -> None:
    console = standard_output(WIDTH)
    fitting, missing = found.fitting(), found.missing()
    images = f"{work.image_tokens / config.sequence_length:.0%} image tokens"
    documents = f"documents of {counted(work.document_tokens, 'token')}, {images}"
    title = f"{config.stage} on {gpu.counted(arguments.gpus)}, fp8={config.precision.fp8}, {documents}"
    if fitting:
        console.print(ranking(fitting[: arguments.top], title))
        say("m.b.: micro-batches per step and rank, each one packed sequence. comm.: waited for, nothing hides it.")
        say(*legend([candidate.doubts for candidate in fitting[: arguments.top]]))
        say("All of it is predicted, nothing measured. Sequences are taken to be alike: uneven ones were up to 7%")
        say("slower, with documents of all lengths 15%. docs/layouts.md says how far predictions were off.", "")
    if missing:
        console.print(misses(missing[:5]))
    say(
        f"{counted(len(fitting), 'layout fits', 'layouts fit')}, {counted(len(missing), 'does', 'do')} not, "
        f"{len(found.refused)} cannot run"
        f"{'' if arguments.show_refused or not found.refused else ' (--show-refused says why)'}."
    )
    if arguments.show_refused:
        for label, error in found.refused:
            say(*f"{label}: {error}".split("\n"))
    if config.tokens is None:
        say(
            f"GPU-hours are not known: epochs={config.epochs:g} become steps only with the corpora, which a plan does"
            " not read. Give tokens=..., or count them with python -m megatron_apriel.train STAGE.yaml --dry-run."
        )
    if fitting:
        cost = ""
        if config.tokens is not None:
            cost = f", {hours_of(fitting[0])} GPU-hours for {counted(config.steps, 'step')}"
        say("", f"The fastest{cost}:", "")
        say(*yaml_lines(fitting[0]).split("\n"))
        words = further_settings(fitting[0], config)
        if words:
            say("", f"and in the file's own sections, or on the command line: {' '.join(words)}")


def recipe_table(arguments: argparse.Namespace, gpu: Hardware) -> tuple[Table, list[str], bool]:
    """The fastest layout of every stage of the recipe, what its signs mean, and whether each has one."""
    folder = EXAMPLES_FOLDER / "one_gpu" if arguments.gpus == 1 else EXAMPLES_FOLDER
    architecture = Architecture.from_preset(arguments.architecture or RECIPE)
    files = f"The stages in {folder.relative_to(EXAMPLES_FOLDER.parent)}"
    title = f"{files} of {arguments.architecture or RECIPE} on {gpu.counted(arguments.gpus)}"
    table, all_fit = stages_table(title), True
    shown: list[list[Doubt]] = []
    for file in sorted(folder.glob("*.yaml"), key=lambda file: (*ORDER, file.stem).index(file.stem)):
        config = load_stage(file, arguments.overrides)
        _check_compute(config)
        work = Workload.of(config, arguments.document_tokens, arguments.images_share)
        found = candidates(config, architecture, arguments.gpus, gpu, work)
        table.add_row(*stage_row(file.stem, config, found))
        all_fit = all_fit and bool(found.fitting())
        shown += [best.doubts for best in found.fitting()[:1]]
    return table, legend(shown) if shown else [], all_fit


def _check_compute(config: StageConfig) -> None:
    if config.precision.compute_on(gpu=True) != "bf16":
        raise ConfigError(
            f"precision.compute={config.precision.compute} is not predicted.",
            "The rates of --print-hardware are those of bf16, and of 8 bits with bf16 around them.",
            "Plan with precision.compute=bf16.",
        )


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what would be found out, or passed over, only after all layouts are predicted."""
    for word in arguments.overrides:
        name = word.partition("=")[0].strip()
        if name.partition(".")[0] in ("parallel", "recompute") and name not in TAKEN_AS_GIVEN:
            raise ConfigError(
                f"{word} would be replaced.",
                "Layout and recomputation are what a plan chooses; of them only"
                f" {listed(TAKEN_AS_GIVEN)} are taken as given.",
                "Leave it out; python -m megatron_apriel.train STAGE.yaml --dry-run shows one layout's memory.",
            )
    of_one_stage = ("json", "show_refused", "compare_states")
    if arguments.stage is None and (given := [name for name in of_one_stage if getattr(arguments, name)]):
        option = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{option} is for one stage.", "The whole recipe is planned otherwise.", "Give --stage FILE.")
    if arguments.json is not None:
        check_file(arguments.json, arguments.overwrite, [arguments.stage, *filter(None, [arguments.hardware])])


def _compare_states(
    found: Candidates,
    config: StageConfig,
    architecture: Architecture,
    arguments: argparse.Namespace,
    gpu: Hardware,
    work: Workload,
) -> None:
    best: dict[str, Candidate | ConfigError | None] = {"as the stage says": next(iter(found.fitting()), None)}
    for name, stage in with_smaller_states(config):
        if isinstance(stage, ConfigError):
            best[name] = stage
        else:
            best[name] = next(iter(candidates(stage, architecture, arguments.gpus, gpu, work).fitting()), None)
    say("")
    standard_output(WIDTH).print(states_table(best))
    for refused in (one for one in best.values() if isinstance(one, ConfigError)):
        say(f"refused: {refused.what}")


def _show_recipe(arguments: argparse.Namespace, gpu: Hardware) -> int:
    table, lines, all_fit = recipe_table(arguments, gpu)
    standard_output(WIDTH).print(table)
    say(*lines)
    say("All of it is predicted, nothing measured; docs/layouts.md says how far predictions were off.")
    hint = f"--stage FILE --architecture {arguments.architecture or RECIPE}"
    say(f"What each takes, and its other layouts: the same command with {hint}.")
    return ExitCode.OK if all_fit else ExitCode.FAILED


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 only when a layout fits."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    gpu = hardware(arguments.gpu, arguments.hardware, arguments.set)
    if arguments.print_hardware:
        say(*hardware_yaml(gpu).split("\n"))
        return ExitCode.OK
    if arguments.gpus is None:
        parser.error(
            "--gpus is needed, as in: python tools/plan.py --gpus 8 --stage examples/sft.yaml --architecture apriel-15b"
        )
    _check_arguments(arguments)
    if arguments.stage is None:
        return _show_recipe(arguments, gpu)
    config = load_stage(arguments.stage, arguments.overrides)
    _check_compute(config)
    architecture, origin = planned_architecture(config, arguments.architecture)
    if arguments.images_share and architecture.tower is None:
        raise ConfigError(
            f"--images-share {arguments.images_share:g}: the model of {origin} is text only.", fix="Leave it out."
        )
    work = Workload.of(config, arguments.document_tokens, arguments.images_share)
    found = candidates(config, architecture, arguments.gpus, gpu, work)
    _show(found, config, arguments, gpu, work)
    if arguments.compare_states:
        _compare_states(found, config, architecture, arguments, gpu, work)
    if arguments.json is not None:
        ordered = sorted(found.accepted, key=lambda candidate: candidate.time.total)
        replace_file(arguments.json, json.dumps([record(candidate) for candidate in ordered], indent=1) + "\n")
    if not found.fitting():
        raise nothing_fits(found, arguments.gpus, gpu)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
