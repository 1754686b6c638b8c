"""Writes a Hugging Face checkpoint of random weights, by the project's own model and export.

python -m benchmarks.random_model DIRECTORY LAYERS MODEL
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout

SMALL = Architecture(
    DecoderArchitecture(256, 4, 8, 4, 128, 512, 4096, rope_theta=1e6),
    TowerArchitecture(128, 2, 2, 64, 256, "silu", patch_size=16, image_size=256),
    ProjectorArchitecture(128, 256),
)
"""Of sizes that all kernels of a GPU take."""
NARROW = Architecture(
    DecoderArchitecture(64, 1, 2, 1, 32, 128, 131072, max_positions=1024000),
    TowerArchitecture(64, 1, 2, 32, 128, "silu", patch_size=16, image_size=256),
    ProjectorArchitecture(64, 64),
)
"""Reads what the 15B model reads, with its vocabulary and positions, and answers on a CPU."""
SIZES = {"small": SMALL, "narrow": NARROW}


def architecture_of(model: str) -> Architecture:
    """One of :data:`SIZES`, or a preset."""
    return SIZES.get(model) or Architecture.from_preset(model)


def main(arguments: Sequence[str]) -> int:
    """Write the checkpoint."""
    directory, layers, model = Path(arguments[0]), int(arguments[1]), arguments[2]
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    with groups.initialized(Layout()), tempfile.TemporaryDirectory() as sidecars:
        architecture = architecture_of(model).with_layers(layers)
        Path(sidecars, "config.json").write_text(json.dumps(architecture.to_hf_config("bfloat16")), encoding="utf-8")
        chunks = build_model(architecture, ModelOptions(dtype=dtype), Layout())
        export_hf(chunks, architecture, sidecars=sidecars, destination=directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
