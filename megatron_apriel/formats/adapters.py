"""Tells a directory of an adapter (PEFT's LoRA and kin), which holds changes to a model, from a model. No torch."""

from __future__ import annotations

from pathlib import Path

from megatron_apriel.errors import CheckpointError, printable

_FILES = ("adapter_config.json", "adapter_model.*", "adapter_model-*", "lora.safetensors")
"""Of PEFT, and of mistral-finetune."""


def refuse_adapter(directory: Path) -> None:
    """Raise CheckpointError if a directory holds an adapter, alone or beside a model.

    transformers puts one that lies beside a model on top of it, so that the weights alone would be another model.
    """
    for pattern in _FILES:
        for file in directory.glob(pattern):
            raise CheckpointError(
                f"{printable(directory)} holds a PEFT adapter ({printable(file.name)}), not a whole model.",
                "Its numbers are changes to those of a base model, and mean nothing without them.",
                "Merge it first: peft's merge_and_unload(), then save_pretrained() into another directory.",
            )
