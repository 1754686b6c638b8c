"""Random checkpoints of any shape, written by transformers: the independent reference that tests compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.tokenizers import write_processor


def hf_model(architecture: Architecture, *, seed: int = 0, attention: str = "eager") -> Any:
    """The transformers model of ``architecture`` in float32 with random weights of a useful size.

    Norms are 1 + 0.1 N(0, 1) and all else 0.08 N(0, 1): large enough that every parameter moves the output of a small
    model by far more than rounding, so that a parameter read at the wrong place cannot hide.
    """
    from transformers import AutoConfig, LlavaForConditionalGeneration, MistralForCausalLM

    fields = architecture.to_hf_config(dtype="float32")
    config = AutoConfig.for_model(**fields)
    config._attn_implementation = attention
    model_class = MistralForCausalLM if architecture.tower is None else LlavaForConditionalGeneration
    model = model_class(config).eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name or "ln_pre" in name else 0.08 * noise)
    return model


def write_hf_checkpoint(
    directory: str | Path,
    architecture: Architecture,
    *,
    seed: int = 0,
    dtype: str = "float32",
    names: Literal["legacy", "v5"] = "legacy",
    max_shard_size: str = "5GB",
    processor: bool = False,
) -> Path:
    """Write a random Hugging Face checkpoint of ``architecture`` and return its directory.

    Args:
        directory: made if absent.
        architecture: LLaVA with a Pixtral tower, or text-only Mistral where it has no tower.
        seed: of the weights; the same seed gives the same numbers in every dtype and layout of names.
        dtype: name of a torch dtype.
        names: tensor names as published checkpoints have them, or as transformers 5 holds them in memory.
        max_shard_size: small values give several files with an index.
        processor: also write tokenizer, processor, chat template and generation config; the vocabulary must then hold
            Tekken's special tokens and bytes (1256 entries).
    """
    directory = Path(directory)
    model = hf_model(architecture, seed=seed).to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size=max_shard_size, save_original_format=names == "legacy")
    if processor:
        write_processor(directory, architecture)
    # transformers writes its own full form; the project's form is what published checkpoints carry.
    (directory / "config.json").write_text(json.dumps(architecture.to_hf_config(dtype), indent=2), encoding="utf-8")
    return directory


def assert_same_tensors(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """The same names, types and bits."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name
