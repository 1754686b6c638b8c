"""What the names of tensors tell about the tool that wrote them, where they are no model that is read here.

Safetensors of an unfinished adapter, of quantised weights or of a wrapped module look like a model's until a tensor is
looked for. Such a file is refused when it is opened, by the name that shows what it is, whatever is to be done with it:
the average of two adapters' factors, for one, is not the average of the models. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.errors import CheckpointError, brief, printable
from megatron_apriel.formats.other_tools import NOT_QUANTISED


@dataclass(frozen=True)
class _Names:
    """Names that show what wrote them.

    Attributes:
        pattern: found in such names, and in no model's that is read here.
        what: what they are.
        why: why they are not read.
        fix: what makes a model of them.
    """

    pattern: re.Pattern[str]
    what: str
    why: str
    fix: str


def _quantised(pattern: str, tool: str) -> _Names:
    return _Names(
        re.compile(pattern),
        f"weights that were quantised ({tool})",
        "Weights with scales beside them mean other numbers than they hold.",
        NOT_QUANTISED,
    )


_ADAPTERS = "lora ia3 hada lokr oft boft hra miss vera vblora fourierft randlora road shira c3a delora gralora waveft"

_TABLE = (
    _Names(
        re.compile(
            r"(^|\.)(base_layer|modules_to_save|original_module|prompt_encoder|"
            rf"({'|'.join(_ADAPTERS.split())})_\w+)(\.|$)|^base_model\."
        ),
        "a model with PEFT's adapters in it, not merged",
        "An adapter's numbers are changes to those of its base layer.",
        "Merge before saving, in the program that trained it: model.merge_and_unload().save_pretrained(OUT).",
    ),
    _quantised(r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    _quantised(r"\.(SCB|absmax|quant_map|nested_absmax|quant_state\.\w+)$", "bitsandbytes"),
    _quantised(r"\.weight_(packed|shape|zero_point|g_idx|global_scale)$", "compressed-tensors"),
    _quantised(r"\.(weight_scale(_inv)?|input_scale|qscale_\w+|[kv]_scale|\w+_proj_(blocks|scales))$", "FP8 or FP4"),
    _quantised(r"\.(scales|biases)$", "MLX"),
    _quantised(r"\.(W_q|weight\._data|weight_qdata)$", "HQQ, quanto or torchao"),
    _Names(
        re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.|^module\."),
        "a module with its wrapper's name in front (torch.compile, FSDP, DDP)",
        "save_pretrained() of the model inside the wrapper writes the names that loaders know.",
        "Save the inner model: accelerator.unwrap_model(model).save_pretrained(OUT), or model._orig_mod.",
    ),
    _Names(
        re.compile(r"^layers\.\d+\.attention\.qkv_linear\."),
        "torchtitan's own names",
        "Its rows of q and k lie in another order too.",
        "Train with checkpoint.last_save_in_hf, or run torchtitan's scripts/checkpoint_conversion/convert_to_hf.py.",
    ),
    _Names(
        re.compile(r"^(module\.|model\.)?(decoder\.layers\.\d+\.self_attention\.|embedding\.word_embeddings\.)"),
        "Megatron Core's names",
        "q, k and v lie in one tensor there, and a part of it where ranks saved their own.",
        "Export it with Megatron Bridge: AutoBridge.from_hf_pretrained(BASE).export_ckpt(DIRECTORY, OUT).",
    ),
    _Names(
        re.compile(r"^(layers\.\d+\.self_attn\.|embed_tokens\.|language_model\.layers\.)"),
        "a model without its head (AutoModel, or the model inside another)",
        "The head's matrix is a weight of its own.",
        "Save the whole model: save_pretrained() of MistralForCausalLM or LlavaForConditionalGeneration.",
    ),
)  # fmt: skip
_DECODER = re.compile(r"layers\.\d+\.(self_attn|attention)\.[qw]")
_TOWER = re.compile(r"vision")


def refuse_foreign(shapes: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Raise CheckpointError if tensors are not those of a plain model, and their names or shapes tell whose they are.

    Args:
        shapes: of all tensors in the directory, by name.
        directory: where they lie.
    """
    for names in _TABLE:
        for name in shapes:
            if names.pattern.search(name):
                raise CheckpointError(
                    f"{printable(directory)} holds {names.what}: {brief(name, 200)}.", names.why, names.fix
                )
    if len(shapes) > 1 and all(0 in shape for shape in shapes.values()):
        raise CheckpointError(
            f"{printable(directory)} holds {len(shapes):,} tensors without a number in them.",
            "DeepSpeed (ZeRO 3) writes them so where weights are not gathered before they are saved.",
            "Set stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32 on the checkpoint beside them:"
            " python -m deepspeed.utils.zero_to_fp32 CHECKPOINT OUT --safe_serialization",
        )
    decoder = any(_DECODER.search(name) and not _TOWER.search(name) for name in shapes)
    if not decoder and (directory / "mergekit_config.yml").is_file():
        raise CheckpointError(
            f"{printable(directory)} holds no decoder layer: mergekit left the decoder out.",
            "Of vision-language models, mergekit 0.1 finds the decoder only under transformers 5's names, and leaves it"
            " out in silence under those of published checkpoints.",
            "Write the inputs with those names, merge again: LlavaForConditionalGeneration.from_pretrained(MODEL,"
            " dtype='auto').save_pretrained(OUT, save_original_format=False)",
        )
