"""Make a deeper model from a trained one by repeating decoder layers. Bytes in, bytes out: no GPU, no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from megatron_apriel.command_line import CommandLine, bytes_above_zero
from megatron_apriel.errors import ExitCode, run_command
from megatron_apriel.formats.word_pattern import name_word_fault
from megatron_apriel.outputs import check_destination
from megatron_apriel.quantities import counted
from megatron_apriel.surgery.layer_maps import MAP_NAMES, layer_map
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.upscale import UpscalePlan, plan_upscale, upscale
from megatron_apriel.terminal import say

EXAMPLES = """\
examples:
  # what would be done: the layer map, sizes and files; nothing is written
  python tools/upscale_layers.py models/pixtral-12b models/pixtral-15b --num-layers 48 --dry-run

  # 40 layers become 48, copies spread over the middle half (the default); read the result again and compare
  python tools/upscale_layers.py models/pixtral-12b models/pixtral-15b --num-layers 48 --verify

  # the deeper model computes exactly what the given one does, until it is trained
  python tools/upscale_layers.py models/pixtral-12b models/pixtral-15b --num-layers 48 --init identity

  # a map of one's own, for a model of four layers
  python tools/upscale_layers.py MODEL DST --num-layers 6 --map 0,1,1,2,2,3

maps:
  spread-middle  each copy right after its original, evenly over the middle half; first and last quarter untouched
  block          one contiguous run in the middle is repeated (SOLAR)
  interval       a copy after every k-th layer (LLaMA-Pro)
  top-half       copies in the upper half only (OpT-DeUS)
  0,1,2,2,...    which layer each is made of; all of the model's layers, for the first time in their own order

MODEL is a Hugging Face directory (LLaVA with a Pixtral tower, or Mistral; sharded or not) or Mistral's own form
(consolidated.safetensors, params.json). Only decoder layers are renumbered. DST is whole or as it was.
"""


_DIGITS = 6
"""Of a number of layers."""


class LayerCount(NamedTuple):
    """``number`` decoder layers, or so many ``more`` than the model has."""

    number: int
    more: bool

    def beside(self, given_layers: int) -> int:
        """Layers of the result for a model of ``given_layers``."""
        return self.number + given_layers * self.more


def _layer_count(text: str) -> LayerCount:
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of layers; write 48, or +8 for eight more")
    return LayerCount(int(digits), text.startswith("+"))


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="directory of the model to repeat layers of")
    parser.add_argument("destination", metavar="DST", help="directory to be made")
    layers = parser.add_argument_group("layers")
    layers.add_argument(
        "--num-layers",
        type=_layer_count,
        required=True,
        metavar="N",
        help="decoder layers of the result; +2: two more than the model has",
    )
    layers.add_argument(
        "--map",
        default="spread-middle",
        metavar="MAP",
        help=f"{', '.join(MAP_NAMES)}, or a list (default: %(default)s)",
    )
    layers.add_argument(
        "--init",
        choices=("copy", "identity"),
        default="copy",
        help="copies start with their original's weights, or so that they add exactly nothing (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--max-shard-size",
        type=bytes_above_zero,
        metavar="SIZE",
        help="largest weight file (default: 5GB; a single file for Mistral's form, as its readers expect)",
    )
    output.add_argument(
        "--correct-word-pattern",
        action="store_true",
        help="write tokenizer.json with Tekken's word pattern where it has the faulty one of older conversions",
    )
    output.add_argument("--dry-run", action="store_true", help="print the map, sizes and files, and write nothing")
    output.add_argument("--verify", action="store_true", help="read the result again and compare every byte")
    output.add_argument("--overwrite", action="store_true", help="replace an earlier result at DST")
    return parser


def _say_plan(plan: UpscalePlan) -> None:
    layers = plan.layers
    say(
        f"{plan.model.num_layers} -> {counted(len(layers.originals), 'layer')}, map {layers.name}, "
        f"init {plan.initialisation}"
    )
    copied = [original for original, is_copy in zip(layers.originals, layers.copies, strict=True) if is_copy]
    if copied:
        say(f"copies of layer {', '.join(map(str, copied))}")
    say(f"{counted(len(plan.origins), 'tensor')}, {counted(plan.size, 'byte')}, in {counted(len(plan.shards), 'file')}")


def _print_tables(plan: UpscalePlan) -> None:
    """Every layer and every file of the result."""
    # Here, since rich takes as long to import as all the rest, and a run that writes prints no table.
    from megatron_apriel.tables import figures, standard_output

    layers, console = plan.layers, standard_output()
    table = figures("layer", "made of", "", words=(2,))
    start = "zero output" if plan.initialisation == "identity" else "copy"
    for layer, (original, is_copy) in enumerate(zip(layers.originals, layers.copies, strict=True)):
        table.add_row(str(layer), str(original), start if is_copy else "", style="bold" if is_copy else None)
    console.print(table)
    files = figures("file", "tensors", "bytes")
    for shard in plan.shards:
        files.add_row(shard.file_name, str(len(shard.tensors)), f"{shard.size:,}")
    console.print(files)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 only when the result is whole."""
    arguments = _parser().parse_args(argv)
    model = GivenModel.open(arguments.model)
    layers = layer_map(arguments.map, model.num_layers, arguments.num_layers.beside(model.num_layers))
    default_size = None if model.tensors.base == "consolidated" else 5 * 10**9
    plan = plan_upscale(model, layers, arguments.init, arguments.max_shard_size or default_size)
    _say_plan(plan)
    if arguments.dry_run:
        _print_tables(plan)
    check_destination(arguments.destination, arguments.overwrite, model.config_file.name, [arguments.model])
    if not arguments.correct_word_pattern:
        name_word_fault(Path(arguments.model))
    if arguments.dry_run:
        return ExitCode.OK
    upscale(
        plan,
        arguments.destination,
        overwrite=arguments.overwrite,
        verify=arguments.verify,
        correct_words=arguments.correct_word_pattern,
    )
    checked = "; read again: every byte is the given model's, or a zero of a new layer" if arguments.verify else ""
    say(f"{arguments.destination} is whole{checked}.")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
