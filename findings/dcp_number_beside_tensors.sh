#!/usr/bin/env bash
# Library:   torch 2.13.0 with safetensors 0.8.0
# Behaviour: torch.distributed.checkpoint saves what is no tensor beside the tensors (a step, a name), and its writer of
#            the Hugging Face form takes that too. The file that is called .safetensors then begins with a pickle. There
#            is no error when it is saved, the index names every weight, and nothing reads it, not even its own reader.
# Output:    tensors: saved; safetensors: b, w; loaded
#            tensors and a step: saved; safetensors: SafetensorError; CheckpointException; begins with b'PK'
# Matters:   It comes out at the next load, when the run is over and the weights are gone. Where such a directory is
#            given to this project, megatron_apriel/formats/tensor_files.py says what its file is.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.3.5

cd "$folder"
environment/bin/python - <<'PYTHON' 2>errors || { cat errors >&2; echo "the behaviour has changed" >&2; exit 1; }
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as checkpoint
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.api import CheckpointException


def outcome(name: str, state: dict[str, object]) -> list[str]:
    """What becomes of a state: saved, read as safetensors, loaded by torch's own reader."""
    checkpoint.save(state, storage_writer=checkpoint.HuggingFaceStorageWriter(name))
    file = Path(name) / "model-00001-of-00001.safetensors"
    found = []
    try:
        with safe_open(file, "pt") as read:
            found.append(", ".join(sorted(read.keys())))
    except SafetensorError as error:
        found.append(type(error).__name__)
    try:
        wanted = {"w": torch.zeros(2)}
        checkpoint.load(wanted, storage_reader=checkpoint.HuggingFaceStorageReader(name))
        found.append("loaded" if wanted["w"].equal(state["w"]) else "loaded wrongly")
    except CheckpointException as error:
        found.append(type(error).__name__)
    if file.read_bytes()[:2] == b"PK":
        found.append("begins with b'PK'")
    print(f"{name}: saved; safetensors: {'; '.join(found)}")
    return found


tensors = {"w": torch.ones(2), "b": torch.ones(2)}
alone = outcome("tensors", tensors)
mixed = outcome("tensors and a step", {**tensors, "step": 7})
sys.exit((alone, mixed) != (["b, w", "loaded"], ["SafetensorError", "CheckpointException", "begins with b'PK'"]))
PYTHON
