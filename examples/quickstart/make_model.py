"""Make a small, untrained Pixtral-shaped checkpoint with transformers, with a real tokenizer and processor.

usage: make_model.py DST

It stands in for Pixtral-12B: same form, same tensor names, same special tokens (the tokenizer is Tekken's table cut to
its first entries), so every command of the recipe treats it like the real one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.outputs import whole_directory
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import say
from megatron_apriel.testing.tokenizers import write_processor


def main(argv: list[str] | None = None) -> int:
    parser = CommandLine(description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DST")
    parser.add_argument("--preset", default="mini", help="architecture preset (default: mini)")
    arguments = parser.parse_args(argv)
    architecture = Architecture.from_preset(arguments.preset)
    torch.manual_seed(0)
    config = architecture.to_hf_config(dtype="float32")
    model = LlavaForConditionalGeneration(AutoConfig.for_model(**config))
    with whole_directory(arguments.destination) as partial:
        model.save_pretrained(partial)
        write_processor(partial, architecture)
        # transformers writes its own, fuller form; published checkpoints carry this one.
        (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    layers = counted(architecture.decoder.num_layers, "layer")
    say(f"{arguments.destination}: {counted(architecture.parameters, 'parameter')}, {layers}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
