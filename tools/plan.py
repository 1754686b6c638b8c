"""Choose a parallel layout for a stage: predicted memory and time per step of every one that could run."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from megatron_apriel.command_line import CommandLine, above_zero, fraction
from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.output_files import replace_file
from megatron_apriel.planning.certainty import Doubt, legend, signs
from megatron_apriel.planning.choosing_moments import with_smaller_states
from megatron_apriel.planning.dry_run import planned_architecture
from megatron_apriel.planning.hardware import KINDS, Hardware, hardware, hardware_yaml
from megatron_apriel.planning.layouts import GIB, Candidate, Candidates, candidates
from megatron_apriel.planning.state_forms import FORMS
from megatron_apriel.planning.workload import Workload
from megatron_apriel.quantities import size, three_digits
from megatron_apriel.tables import Table, figures, standard_output
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
    shown.add_argument("--json", type=Path, metavar="FILE", help="write every layout that was predicted to a new file")
    return parser


def _layout_cells(candidate: Candidate) -> list[str]:
    layout = candidate.layout
    sizes = (layout.tensor, layout.context, layout.pipeline, layout.virtual, layout.data)
    runs = [(count, len(list(equal))) for count, equal in itertools.groupby(candidate.layers)]
    layers = ", ".join(f"{count} x{times}" if times > 1 else str(count) for count, times in runs)
    return [*map(str, sizes), layers, _recomputed(candidate)]


def _recomputed(candidate: Candidate) -> str:
    recompute = candidate.config.recompute
    words = [recompute.mode, *[str(recompute.layers)] * (recompute.layers is not None)]
    return ", ".join([*words, *["host"] * (recompute.inputs == "host")])


LAYOUT_COLUMNS = ("TP", "CP", "PP", "VP", "DP", "layers", "recompute")
LAYOUT_WORDS = (5, 6)
NAMED_BY = LAYOUT_COLUMNS.index("layers")
"""How many of them are repeated where a table has more columns than room."""


def ranking(found: Sequence[Candidate], title: str) -> Table:
    """The layouts that fit, as they are ordered."""
    columns = ("m.b.", "memory", "s/step", "tokens/s/GPU", "TFLOP/s/GPU", "bubble", "comm.", "sure", "GPU-hours")
    table = figures(*LAYOUT_COLUMNS, *columns, words=LAYOUT_WORDS, title=title, about=NAMED_BY)
    for candidate in found:
        time = candidate.time
        table.add_row(
            *_layout_cells(candidate),
            str(time.micro_batches),
            _memory(candidate),
            three_digits(time.total),
            three_digits(candidate.tokens_per_second),
            three_digits(candidate.teraflops),
            f"{time.bubble / time.total:.1%}",
            f"{time.communication / time.total:.1%}",
            signs(candidate.doubts),
            _hours(candidate),
        )
    return table


def states_table(best: dict[str, Candidate | None]) -> Table:
    """The fastest layout with each form of the optimizer's numbers; the first is the stage's own."""
    title = "What smaller optimizer states would give (docs/one_gpu.md says what they lose)"
    columns = ("states", *LAYOUT_COLUMNS[:4], "recompute", "memory", "tokens/s/GPU", "gain")
    table = figures(*columns, words=(0, 5), title=title)
    own = next(iter(best.values()))
    for name, candidate in best.items():
        if candidate is None:
            table.add_row(name, *["-"] * 5, "does not fit", "-", "-")
            continue
        faster = candidate.tokens_per_second / own.tokens_per_second - 1 if own not in (None, candidate) else None
        gain = "-" if faster is None else f"{faster:+.1%}"
        cells = _layout_cells(candidate)
        speed = three_digits(candidate.tokens_per_second)
        table.add_row(name, *cells[:4], cells[-1], _memory(candidate), speed, gain)
    return table


def _memory(candidate: Candidate) -> str:
    on_host = f", {size(candidate.memory.on_host)} on the host" if candidate.memory.on_host else ""
    return f"{size(candidate.memory.total)}{on_host}"


def _hours(candidate: Candidate) -> str:
    return "not known" if candidate.gpu_hours is None else three_digits(candidate.gpu_hours)


def misses(found: Sequence[Candidate]) -> Table:
    """Layouts that do not fit, and by how much."""
    title = "The nearest that do not fit"
    table = figures(*LAYOUT_COLUMNS, "memory", "over by", "stage", words=LAYOUT_WORDS, title=title, about=NAMED_BY)
    for candidate in found:
        table.add_row(*_layout_cells(candidate), _memory(candidate), size(candidate.over), str(candidate.fullest_stage))
    return table


def yaml_lines(best: Candidate) -> str:
    """The best layout as the stage's file would say it."""
    layout, parts = best.layout, {}
    for name, default in (("tensor", 1), ("sequence", False), ("pipeline", 1), ("virtual", 1), ("context", 1)):
        if getattr(layout, name) != default:
            parts[name] = getattr(layout, name)
    if layout.layers_per_stage is not None:
        parts["layers_per_stage"] = list(layout.layers_per_stage)
    if not best.config.parallel.overlap:
        parts["overlap"] = False
    words = ", ".join(f"{name}: {str(value).lower()}" for name, value in parts.items())
    section = best.config.recompute.model_dump(exclude_defaults=True) or {"mode": best.config.recompute.mode}
    recompute = ", ".join(f"{name}: {value}" for name, value in section.items())
    return f"parallel: {{{words}}}\nrecompute: {{{recompute}}}"


def further_settings(best: Candidate, config: StageConfig) -> list[str]:
    """What the plan chose beside layout and recomputation, as words of the command line."""
    words = []
    if config.optimizer.moments == "auto":
        words.append(f"optimizer.moments={best.config.optimizer.moments}")
    if best.memory.host and config.optimizer.host != best.config.optimizer.host:
        words.append(f"optimizer.host={best.config.optimizer.host}")
    if config.precision.fp8_weights != best.config.precision.fp8_weights:
        words.append(f"precision.fp8_weights={best.config.precision.fp8_weights}")
    return words


def nothing_fits(found: Candidates, gpus: int, gpu: Hardware) -> ConfigError:
    """Why there is no layout to name, and what would help."""
    if not found.accepted:
        reasons = dict.fromkeys(str(error) for _, error in found.refused)
        listing = "\n  ".join("- " + reason.replace("\n", "\n  ") for reason in list(reasons)[:3])
        more = f"\n  and {len(reasons) - 3} more with --show-refused" if len(reasons) > 3 else ""
        return ConfigError(
            f"no layout of this stage can run on {gpus} GPUs, for {len(reasons)} reason(s).", listing + more
        )
    nearest = found.missing()[0]
    shares = sorted(_on_the_gpu(nearest).items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {size(number)}" for name, number in shares[:3])
    helps = ["more GPUs, over which more is split", "a GPU with more memory"]
    host = nearest.memory.on_host
    if nearest.memory.total <= nearest.available:
        helps.insert(0, f"a host with {size(host)} for that (--set host_memory={ceil(host / GIB)})")
    if not nearest.memory.host and shares[0][0] == "optimizer":
        helps.insert(0, "optimizer.host=auto, which puts as much of its states as need be into the host's memory")
    if nearest.config.precision.fp8 != "none" and nearest.config.precision.fp8_weights == "kept":
        helps.insert(0, "precision.fp8_weights=remade, which keeps 8-bit copies of one layer's weights at a time")
    if nearest.config.precision.fp8 != "none":
        helps.insert(0, "precision.fp8=none, which keeps no 8-bit copies of the weights")
    if shares[0][0] in ("activations", "images", "logits"):
        helps.insert(0, "a shorter sequence_length")
    return ConfigError(
        f"no layout of this stage fits {gpus} {gpu.name}: the nearest, {nearest.label} with"
        f" recompute.mode={nearest.config.recompute.mode}, is over by {size(nearest.over)}"
        f" on pipeline stage {nearest.fullest_stage}.",
        f"It needs {size(nearest.memory.total)} of {size(nearest.available)}: {largest}"
        + (f"; and {size(host)} of {size(nearest.host_available)} of the host." if host else "."),
        f"What helps: {'; '.join(helps)}.",
    )


def _on_the_gpu(candidate: Candidate) -> dict[str, float]:
    return {name: number for name, number in asdict(candidate.memory).items() if not name.startswith("host")}


def record(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON: settings, bytes and seconds."""
    return {
        "parallel": candidate.config.parallel.model_dump(mode="json"),
        "recompute": candidate.config.recompute.mode,
        "recomputed_layers": candidate.config.recompute.layers,
        "inputs": candidate.config.recompute.inputs,
        "optimizer_host": candidate.config.optimizer.host,
        "optimizer_forms": {name: getattr(candidate.config.optimizer, name) for name in FORMS},
        "fp8_weights": candidate.config.precision.fp8_weights,
        "data": candidate.layout.data,
        "layers": candidate.layers,
        "fits": candidate.over <= 0,
        "over_bytes": candidate.over,
        "memory_bytes": {**asdict(candidate.memory), "total": candidate.memory.total},
        "fullest_stage": candidate.fullest_stage,
        "step_seconds": {**asdict(candidate.time), "total": candidate.time.total},
        "tokens_per_second_per_gpu": candidate.tokens_per_second,
        "teraflops_per_gpu": candidate.teraflops,
        "doubts": [doubt.name.lower() for doubt in candidate.doubts],
        "gpu_hours": candidate.gpu_hours,
    }


def _show(found: Candidates, config: StageConfig, arguments: argparse.Namespace, gpu: Hardware, work: Workload) -> None:
    console = standard_output(WIDTH)
    fitting, missing = found.fitting(), found.missing()
    images = f"{work.image_tokens / config.sequence_length:.0%} image tokens"
    documents = f"documents of {work.document_tokens:,} tokens, {images}"
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
        f"{len(fitting)} layouts fit, {len(missing)} do not, {len(found.refused)} cannot run"
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
        cost = "" if config.tokens is None else f", {_hours(fitting[0])} GPU-hours for {config.steps:,} steps"
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
    names = ("stage", "sequence", "fp8", *LAYOUT_COLUMNS[:5], "recompute", "moments", "memory", "tokens/s/GPU")
    table, all_fit = figures(*names, "TFLOP/s/GPU", "sure", "GPU-hours", words=(0, 2, 8, 9, 10), title=title), True
    shown: list[list[Doubt]] = []
    for file in sorted(folder.glob("*.yaml"), key=lambda file: (*ORDER, file.stem).index(file.stem)):
        config = load_stage(file, arguments.overrides)
        _check_compute(config)
        work = Workload.of(config, arguments.document_tokens, arguments.images_share)
        found = candidates(config, architecture, arguments.gpus, gpu, work)
        fitting = found.fitting()
        all_fit = all_fit and bool(fitting)
        named = (file.stem, f"{config.sequence_length:,}", config.precision.fp8)
        if not found.accepted:
            table.add_row(*named, *["-"] * 8, "no layout can run", "", "", "")
            continue
        best = (fitting or found.missing())[0]
        layout = best.layout
        sizes = (layout.tensor, layout.context, layout.pipeline, layout.virtual, layout.data)
        speed = [three_digits(best.tokens_per_second), three_digits(best.teraflops), signs(best.doubts), _hours(best)]
        shown += [best.doubts] if fitting else []
        table.add_row(
            *named,
            *map(str, sizes),
            _recomputed(best),
            best.config.optimizer.moments,
            _memory(best),
            *(speed if fitting else [f"over by {size(best.over)}", "", "", ""]),
        )
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
        if name.partition(".")[0] in ("parallel", "recompute") and name != "parallel.overlap":
            raise ConfigError(
                f"{word} would be replaced.",
                "Layout and recomputation are what a plan chooses; of them only parallel.overlap is taken as given.",
                "Leave it out; python -m megatron_apriel.train STAGE.yaml --dry-run shows one layout's memory.",
            )
    of_one_stage = ("json", "show_refused", "compare_states")
    if arguments.stage is None and (given := [name for name in of_one_stage if getattr(arguments, name)]):
        option = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{option} is for one stage.", "The whole recipe is planned otherwise.", "Give --stage FILE.")
    if arguments.json is not None and arguments.json.exists():
        raise ConfigError(f"--json {arguments.json} exists.", "Nothing is overwritten.", "Name a new file.")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise ConfigError(
            f"--json {arguments.json}: there is no directory {arguments.json.parent}.", fix="Make it first."
        )


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
        best = {"as the stage says": next(iter(found.fitting()), None)}
        for name, stage in with_smaller_states(config):
            best[name] = next(iter(candidates(stage, architecture, arguments.gpus, gpu, work).fitting()), None)
        say("")
        standard_output(WIDTH).print(states_table(best))
    if arguments.json is not None:
        ordered = sorted(found.accepted, key=lambda candidate: candidate.time.total)
        replace_file(arguments.json, json.dumps([record(candidate) for candidate in ordered], indent=1) + "\n")
    if not found.fitting():
        raise nothing_fits(found, arguments.gpus, gpu)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
