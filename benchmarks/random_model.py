"""Writes a Hugging Face checkpoint of the full-width model with random weights, by the project's own model and export.

python -m benchmarks.random_model DIRECTORY LAYERS [tiny]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.spread import Spread
from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.model.builder import build_model
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout


def main(arguments: Sequence[str]) -> int:
    """Write the checkpoint."""
    directory, layers = Path(arguments[0]), int(arguments[1])
    spread = Spread("16384-mix", "bf16", layers, 1, 1, tiny="tiny" in arguments)
    with groups.initialized(Layout()), tempfile.TemporaryDirectory() as sidecars:
        architecture = spread.architecture()
        Path(sidecars, "config.json").write_text(json.dumps(architecture.to_hf_config("bfloat16")), encoding="utf-8")
        chunks = build_model(architecture, spread.config(), Layout())
        export_hf(chunks, architecture, sidecars=sidecars, destination=directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
