"""Recognises what kind of checkpoint a directory holds, and reads the model's shapes and sidecar files from it.

Three kinds, of which any can be trained from and converted to any other:

* ``hf``: ``config.json`` and ``model*.safetensors``;
* ``mistral``: ``params.json`` and ``consolidated*.safetensors``;
* ``megatron``: a run's distributed checkpoint, ``OUTPUT/checkpoints/step_00000500``, with ``run.json`` and ``hf/``.

Releases of Mistral carry the first two in one directory; the Hugging Face files are then used. No torch.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.mistral_params import architecture_from_params
from megatron_apriel.formats.other_tools import refuse_adapter, refuse_leftovers
from megatron_apriel.formats.run_directory import SIDECAR_DIRECTORY, RunDirectory, checkpoints_in, is_checkpoint
from megatron_apriel.formats.sidecars import CONFIG, PARAMS
from megatron_apriel.inputs import what_was_meant

INDEX = "model.safetensors.index.json"


class Kind(StrEnum):
    """What a directory holds."""

    HF = "hf"
    MISTRAL = "mistral"
    MEGATRON = "megatron"


def recognise(path: str | Path) -> Kind:
    """The kind of checkpoint in directory ``path``. Raises CheckpointError if it is none, with what was looked for."""
    path = Path(path)
    if path.is_file():
        refuse_leftovers(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a directory." if path.exists() else f"{path} does not exist.",
            what_was_meant(path, "model"),
            "Give a directory with a checkpoint; weights are never downloaded.",
        )
    refuse_adapter(path)
    if is_checkpoint(path):
        return Kind.MEGATRON
    mistral = (path / PARAMS).exists() and any(path.glob("consolidated*.safetensors"))
    hf = (path / CONFIG).exists() and ((path / INDEX).exists() or any(path.glob("model*.safetensors")))
    if mistral and not hf:
        return Kind.MISTRAL
    if (path / CONFIG).exists():
        return Kind.HF
    hint = _hint(path)
    if not hint:
        refuse_leftovers(path)
    raise CheckpointError(f"{path} holds no checkpoint.", _LOOKED_FOR, hint)


_LOOKED_FOR = (
    "Looked for config.json with model*.safetensors (Hugging Face), params.json with consolidated*.safetensors "
    "(Mistral), run.json with .metadata (a run's distributed checkpoint)."
)


def _hint(path: Path) -> str:
    run = RunDirectory(path)
    if (run.final / CONFIG).exists():
        return f"Did you mean {run.final}?"
    whole = list(checkpoints_in(run.checkpoints if run.checkpoints.is_dir() else path).values())
    # Folders of transformers' Trainer, and of a download cache.
    models = [file.parent for pattern in ("checkpoint-*", "snapshots/*") for file in path.glob(f"{pattern}/{CONFIG}")]
    whole = whole or sorted(models, key=lambda model: (len(model.name), model.name))
    return f"Did you mean {printable(whole[-1])}?" if whole else ""


def sidecar_directory(path: str | Path) -> Path:
    """Where the config, tokenizer and processor files of the checkpoint at ``path`` lie.

    Raises:
        CheckpointError: it is not there, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}, whose config, tokenizer and processor files are needed, does not exist.",
            fix="Give a checkpoint of the same model.",
        )
    return path / SIDECAR_DIRECTORY if recognise(path) is Kind.MEGATRON else path


def architecture_of(path: str | Path) -> Architecture:
    """The shapes of the checkpoint at ``path``, of whatever kind it is; no weight is read."""
    path = Path(path)
    if recognise(path) is Kind.MISTRAL:
        return architecture_from_params(path / PARAMS)
    return Architecture.from_directory(sidecar_directory(path))


def config_for(architecture: Architecture, given: Path, dtype: str) -> dict[str, object]:
    """The ``config.json`` to write: the one in ``given`` where it is, with what training may change set anew.

    What changes is the number of decoder layers and the dtype; every other entry stays, known to this
    project or not. Raises CheckpointError if that config is of a model with other shapes.
    """
    file = given / CONFIG
    if not file.is_file():
        return dict(architecture.to_hf_config(dtype))
    config: dict[str, object] = read_json(file)
    # A text-only model may be taken out of a LLaVA checkpoint; its config is then the text part's.
    if architecture.tower is None and config.get("model_type") != "mistral":
        return dict(architecture.to_hf_config(dtype))
    text = config.get("text_config")
    decoder: dict[str, Any] = text if isinstance(text, dict) else config
    decoder["num_hidden_layers"] = architecture.decoder.num_layers
    if isinstance(kinds := decoder.get("layer_types"), list):
        decoder["layer_types"] = kinds[:1] * architecture.decoder.num_layers
    for section in (config, text, config.get("vision_config")):
        if isinstance(section, dict):
            for key in ("dtype", "torch_dtype"):
                if key in section or (section is config and key == "dtype" and "torch_dtype" not in section):
                    section[key] = dtype
    if Architecture.from_hf_config(config, str(file)) != architecture:
        raise CheckpointError(
            f"{file} describes another model than the weights that are being written.",
            f"It says {Architecture.from_hf_config(config, str(file))}; the model is {architecture}.",
            "Give the directory of the checkpoint that the model was made from.",
        )
    return config
