#!/usr/bin/env python
"""Convert a checkpoint between Hugging Face's form, Mistral's own, and a run's distributed checkpoint, or to GGUF.

The form of SRC is recognised. DST appears when it is whole; if anything goes wrong it is left as it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_apriel.command_line import CommandLine, bytes_above_zero
from megatron_apriel.errors import ConfigError, run_command
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import quiet_libraries, say

EXAMPLES = """
examples:
  # What Mistral publishes (consolidated.safetensors, params.json, tekken.json), for transformers:
  %(prog)s downloads/pixtral-12b models/pixtral-12b --to hf

  # A step of a run, for serving or as the start of another stage, in files of 2 GB:
  %(prog)s runs/cpt_stage2/checkpoints/step_00000500 models/step_500 --to hf --max-shard-size 2GB

  # Back to Mistral's form, with every number read again and compared before the result is put in place:
  %(prog)s models/apriel models/apriel-mistral --to mistral --verify

  # For llama.cpp, by the converter in its source; images work, since it reads the tower in Mistral's form:
  %(prog)s models/apriel models/apriel-gguf --to gguf --llama-cpp ../llama.cpp

  # What would be done, without doing it:
  %(prog)s downloads/pixtral-12b models/pixtral-12b --to megatron --dry-run

forms:
  hf         config.json, model*.safetensors; tensor names as public Pixtral checkpoints have them
  mistral    params.json, consolidated.safetensors; q and k in Mistral's order of rows
  megatron   run.json, .metadata, *.distcp, hf/; readable on any parallel layout, and as init_from of a stage
  gguf       text.gguf and, of a model with a tower, mmproj.gguf; to serve only
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = CommandLine(description=__doc__, epilog=EXAMPLES)
    result.add_argument("checkpoint", metavar="SRC", type=Path, help="directory with a checkpoint of any form")
    result.add_argument("destination", metavar="DST", type=Path, help="directory to be made")
    result.add_argument("--to", required=True, choices=("hf", "mistral", "megatron", "gguf"), help="form of the result")
    what = result.add_argument_group("what is written")
    what.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="cast to (default: as stored)")
    what.add_argument(
        "--max-shard-size",
        type=bytes_above_zero,
        metavar="SIZE",
        help="bytes per safetensors file, such as 5GB (default: 5GB for hf, one file for mistral)",
    )
    what.add_argument(
        "--correct-word-pattern",
        action="store_true",
        help="write tokenizer.json with Tekken's word pattern where it has the faulty one of older conversions",
    )
    how = result.add_argument_group("how")
    how.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="llama.cpp's source, for --to gguf")
    how.add_argument("--dry-run", action="store_true", help="check SRC and say what would be written")
    how.add_argument("--verify", action="store_true", help="read the result again and compare every number")
    how.add_argument("--overwrite", action="store_true", help="replace an earlier result at DST")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the conversion; exit code 0 only when the result is whole."""
    arguments = parser().parse_args(argv)
    quiet_libraries()
    import torch

    from megatron_apriel.checkpoint.convert import MARKERS, convert, plan_conversion
    from megatron_apriel.formats.kinds import Kind
    from megatron_apriel.outputs import check_destination

    if arguments.to == "gguf":
        if arguments.llama_cpp is None:
            raise ConfigError(
                "--to gguf needs --llama-cpp.",
                "The converter in llama.cpp's source writes GGUF files.",
                "git clone https://github.com/ggml-org/llama.cpp, and give its folder: --llama-cpp llama.cpp",
            )
        return _to_gguf(arguments)
    if arguments.llama_cpp is not None:
        raise ConfigError(f"--llama-cpp is for --to gguf, and --to is {arguments.to}.", fix="Leave --llama-cpp out.")
    to = Kind(arguments.to)
    shard_size = _shard_size(arguments.max_shard_size, to)
    check_destination(arguments.destination, arguments.overwrite, MARKERS[to], [arguments.checkpoint])
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    conversion = plan_conversion(
        arguments.checkpoint,
        to,
        dtype=dtype,
        max_shard_size=shard_size,
        correct_words=arguments.correct_word_pattern,
    )
    tensors, parameters = len(conversion.weights.table), conversion.architecture.parameters
    held = f"{counted(tensors, 'tensor')}, {counted(parameters, 'parameter')}"
    say(f"{arguments.checkpoint}: {conversion.weights.description}, {held}")
    if conversion.weights.skipped:
        say(f"left out, because they follow from the config: {', '.join(conversion.weights.skipped)}")
    say(f"{arguments.destination}: {to}, {conversion.size:,} bytes of tensors")
    if arguments.dry_run:
        say("dry run: nothing was written")
        return 0
    convert(conversion, arguments.destination, overwrite=arguments.overwrite, verify=arguments.verify)
    say(f"wrote {arguments.destination}" + (", verified number by number" if arguments.verify else ""))
    return 0


def _to_gguf(arguments: argparse.Namespace) -> int:
    import torch

    from megatron_apriel.checkpoint.gguf import plan_gguf, write_gguf
    from megatron_apriel.generate.engines.llama import TEXT_FILE
    from megatron_apriel.outputs import check_destination

    if arguments.verify or arguments.max_shard_size is not None:
        raise ConfigError(
            "--verify and --max-shard-size have no meaning with --to gguf.",
            "llama.cpp's converter writes the files.",
            "Compare the answers: python tools/serve.py MODEL --engine llama --check.",
        )
    check_destination(arguments.destination, arguments.overwrite, TEXT_FILE, [arguments.checkpoint])
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    plan = plan_gguf(
        arguments.checkpoint, arguments.llama_cpp, dtype=dtype, correct_words=arguments.correct_word_pattern
    )
    say(f"{arguments.checkpoint}: {plan.text.weights.description}, {plan.text.architecture.parameters:,} parameters")
    if arguments.dry_run:
        say(f"{arguments.destination}: GGUF in {plan.precision}", "dry run: nothing was written")
        return 0
    files = write_gguf(plan, arguments.destination, overwrite=arguments.overwrite)
    say(f"wrote {arguments.destination}: {', '.join(files)}, in {plan.precision}")
    return 0


def _shard_size(given: int | None, to: str) -> int | None:
    if given is None:
        return 5 * 10**9 if to == "hf" else None
    if to == "megatron":
        raise ConfigError("--max-shard-size has no meaning with --to megatron.", fix="Leave it out.")
    return given


if __name__ == "__main__":
    sys.exit(run_command(main))
