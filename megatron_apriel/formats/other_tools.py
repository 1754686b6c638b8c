"""Weights that other tools wrote in forms that are not read here: recognised by their files, refused with a way out.

Trainers save state to resume from, quantisers integers with scales beside them, adapters changes to a base model. Each
becomes a model that is read here by a command of the tool that wrote it, and the refusal names tool and command. What
the names of single tensors tell is in ``other_tensors.py``. No torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable, shown

_CLASS = "getattr(t, t.AutoConfig.from_pretrained(d).architectures[0]).from_pretrained(d, dtype='auto')"
"""In a command: the model in directory ``d`` by the class that its config names."""
_THEN_COPY = (
    "Then copy config.json and the files of tokenizer and processor beside them, from the model that training began"
    " from."
)


def _python(code: str, *arguments: object) -> str:
    """A command line that runs ``code`` with transformers as ``t``; a word in capitals is for a person to replace."""
    return f'python -c "import sys, transformers as t; {code}" {shlex.join(map(str, arguments))}'


def saved_again(directory: Path) -> str:
    """The command that has transformers read a directory and write it as safetensors."""
    return _python(f"d, out = sys.argv[1:]; {_CLASS}.save_pretrained(out)", directory, "OUT")


def merged(adapter: Path) -> str:
    """The command that has PEFT merge an adapter into its base model."""
    return _python(
        "from peft import PeftModel as P; d, adapter, out = sys.argv[1:];"
        f" P.from_pretrained({_CLASS}, adapter).merge_and_unload().save_pretrained(out)",
        *("BASE", adapter, "OUT"),
    )


def untied(directory: str) -> str:
    """The command that gives a model a head of its own, with the numbers of the embedding that it shared."""
    return _python(
        f"import torch; d, out = sys.argv[1:]; m = {_CLASS};"
        " m.lm_head.weight = torch.nn.Parameter(m.lm_head.weight.detach().clone());"
        " m.config.tie_word_embeddings = m.config.get_text_config().tie_word_embeddings = False;"
        " m.save_pretrained(out)",
        *(directory, "OUT"),
    )


BESIDE = ("tokenizer", "tokenizer_config", "processor_config", "generation_config")
"""JSON files that transformers' models do not save with themselves."""


def copied(directory: Path, names: Sequence[str] = BESIDE) -> str:
    """What to do where files beside the weights are missing."""
    return (
        "Copy them from the model that training began from:"
        f" cp BASE/{{{','.join(names)}}}.json BASE/chat_template.jinja {shlex.quote(str(directory))}"
    )


def refuse_adapter(directory: Path) -> None:
    """Raise CheckpointError if a directory holds an adapter (PEFT's, mistral-finetune's), alone or beside a model.

    transformers puts one that lies beside a model on top of it, so that the weights alone would be another model.
    """
    for pattern in ("adapter_config.json", "adapter_model.*", "adapter_model-*", "lora.safetensors"):
        for file in directory.glob(pattern):
            raise CheckpointError(
                f"{printable(directory)} holds a PEFT adapter ({printable(file.name)}), not a whole model.",
                "Its numbers are changes to those of a base model, and mean nothing without them.",
                f"Merge it first, and copy the base model's tokenizer into OUT: {merged(directory)}",
            )


def refuse_quantised(config: Mapping[str, Any], origin: str) -> None:
    """Raise CheckpointError if a config says that the weights are quantised, in any of its parts.

    Args:
        config: of ``config.json`` or ``params.json``.
        origin: its name, for the message.
    """
    parts = {"": config, **{f"{name}: ": config.get(name) for name in ("text_config", "vision_config")}}
    for place, part in parts.items():
        for key in ("quantization_config", "quantization", "compression_config"):
            said = part.get(key) if isinstance(part, Mapping) else None
            if said:
                tool = said.get("quant_method") if isinstance(said, Mapping) else None
                raise CheckpointError(
                    f"{origin}: {place}{key}={shown(said)} is not supported"
                    + (f": {shown(tool)} quantised the weights." if tool else "."),
                    "Weights with scales beside them mean other numbers than they hold.",
                    NOT_QUANTISED,
                )


NOT_QUANTISED = (
    "Give the weights that they were made from, in bfloat16 or float32; quantise what training makes of them."
)


@dataclass(frozen=True)
class _Leftover:
    """What a tool leaves behind.

    Attributes:
        signs: patterns of files and folders; one of them is enough.
        what: whose it is.
        why: why it is not read.
        fix: what makes a model of it; ``{at}`` is the directory as a shell takes it.
    """

    signs: tuple[str, ...]
    what: str
    why: str
    fix: str


_RESUMING = "That is state for resuming in the program that wrote it, cut as its processes were."
_PICKLED = "Pickled weights are not read here: a pickle may run code when it is read."
_BIN = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")

_LEFTOVERS = (
    _Leftover(
        ("corpus.json",),
        "a prepared corpus",
        "It holds tokens to be learned and no weights.",
        "Give the directory of a model; a corpus is named in the mixture of a stage.",
    ),
    _Leftover(
        ("*.gguf",),
        "weights for llama.cpp (GGUF)",
        "Nothing is trained in that form, and most such files are quantised.",
        "Give the Hugging Face directory that it was made from.",
    ),
    _Leftover(
        ("zero_to_fp32.py", "global_step*", "mp_rank_*_model_states.pt", "zero_pp_rank_*", "*zero_pp_rank_*"),
        "a checkpoint of DeepSpeed",
        _RESUMING,
        f"Run, above its global_step folder: python -m deepspeed.utils.zero_to_fp32 . OUT --safe_serialization\n"
        f"  {_THEN_COPY}",
    ),
    _Leftover(
        (
            *("latest_checkpointed_iteration.txt", "iter_[0-9]*", "mp_rank_[0-9][0-9]*", "model_optim_rng.pt"),
            *("common.pt", "model_weights.ckpt", "*.nemo"),
        ),
        "a checkpoint of Megatron-LM or NeMo",
        "Only a run of this project names its parameters as they are read here.",
        "Export it with Megatron Bridge: AutoBridge.from_hf_pretrained(BASE).export_ckpt({at!r}, OUT); OUT is read.",
    ),
    _Leftover(
        ("pytorch_model_fsdp_[0-9]*", "pytorch_model_fsdp*.bin"),
        "a checkpoint of FSDP, saved by accelerate",
        _RESUMING,
        f"Run: accelerate merge-weights {{at}}/pytorch_model_fsdp_0 OUT\n  {_THEN_COPY}",
    ),
    _Leftover(
        ("*.distcp", "step-*/*.distcp", "checkpoint/step-*/*.distcp", "*/*.distcp"),
        "a distributed checkpoint of torch (DCP), as torchtitan and FSDP save it",
        _RESUMING,
        "torchtitan: train with checkpoint.last_save_in_hf, or run its scripts/checkpoint_conversion/convert_to_hf.py;"
        " accelerate: accelerate merge-weights {at} OUT.\n"
        f"  {_THEN_COPY}",
    ),
    _Leftover(
        ("shard-*.safetensors",),
        "shards of a Hugging Face export by torch (DCP)",
        "Each holds a part of every tensor; the whole ones lie in the directory above.",
        "Give the directory above.",
    ),
    _Leftover(
        _BIN,
        "weights that were pickled by torch",
        _PICKLED,
        "Have transformers write them as safetensors, and copy the tokenizer into OUT: {again}",
    ),
    _Leftover(
        ("consolidated*.pth",),
        "weights of Mistral that were pickled by torch",
        _PICKLED,
        "Write them as safetensors: python -c \"import sys, torch, safetensors.torch as s; d = sys.argv[1] +"
        " '/consolidated.'; s.save_file(torch.load(d + '00.pth', weights_only=True), d + 'safetensors')\" {at}",
    ),
    _Leftover(
        ("*.bin", "*.pt", "*.pth", "*.ckpt"),
        "tensors that were pickled by torch",
        _PICKLED,
        "Save the model with save_pretrained() of transformers in the program that made them.",
    ),
    _Leftover(
        ("tf_model*.h5", "flax_model*.msgpack", "*.onnx", "*.npz", "*.keras", "openvino_model.xml", "rank*.engine"),
        "weights for another framework",
        "They are no safetensors of a Hugging Face model.",
        "Give the Hugging Face directory that they were made from.",
    ),
)  # fmt: skip
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
"""How a trainer's pickles of other things begin."""
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def refuse_leftovers(path: Path) -> None:
    """Raise CheckpointError if a path, at which no checkpoint was found, holds what another tool wrote.

    Args:
        path: a directory, or a file that was given in place of one.
    """
    if path.is_file():
        _refuse_file(path)
        return
    for leftover in _LEFTOVERS:
        for pattern in leftover.signs:
            for file in path.glob(pattern):
                if file.name.startswith(_NO_WEIGHTS):
                    continue
                raise _refusal(leftover, path, f"{printable(path)} holds {leftover.what} ({printable(file.name)}).")
    refuse_without_config(path)


def refuse_without_config(directory: Path) -> None:
    """Raise CheckpointError if a directory holds weights in the Hugging Face form and no config.json."""
    if any(next(directory.glob(pattern), None) for pattern in _WEIGHTS) and not (directory / "config.json").exists():
        raise CheckpointError(
            f"{printable(directory)} holds weights, and config.json does not exist.",
            "torchtitan's export, accelerate merge-weights and DeepSpeed's zero_to_fp32 write weights alone.",
            copied(directory, ("config", *BESIDE)),
        )


def _refuse_file(file: Path) -> None:
    for leftover in _LEFTOVERS:
        if any(file.match(pattern) for pattern in leftover.signs):
            raise _refusal(leftover, file.parent, f"{printable(file)} is a file of {leftover.what}.")
    raise CheckpointError(
        f"{printable(file)} is a file.",
        "A checkpoint is a directory with weights, their config, tokenizer and processor.",
        f"Give {printable(file.parent)}.",
    )


def _refusal(leftover: _Leftover, directory: Path, what: str) -> CheckpointError:
    at = shlex.quote(str(directory))
    fix = leftover.fix.replace("{at!r}", repr(str(directory))).replace("{at}", at)
    return CheckpointError(what, leftover.why, fix.replace("{again}", saved_again(directory)))
