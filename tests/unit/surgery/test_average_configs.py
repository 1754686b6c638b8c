"""Averages of models whose configs differ: in how the same is said, which is accepted, or in what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.surgery.average_inputs import AverageInput, check_agreement
from megatron_apriel.testing.plain_safetensors import write_model

NEMO = text_config(1, rope_theta=1e6, vocab_size=16, sliding_window=None)
SEVEN_B = text_config(1, rope_theta=1e6, vocab_size=16, sliding_window=4096)
"""Known here, and with a window, which is not."""
EXPERTS = {**text_config(1), "model_type": "mixtral"}
SAME_MODEL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *((plain, {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
      for plain in (NEMO, SEVEN_B)),
    *((plain, {"rope_parameters": {"rope_theta": 1e6, "factor": None}}) for plain in (NEMO, SEVEN_B)),
    *((plain, {"head_dim": None, "hidden_size": 8}) for plain in (NEMO, SEVEN_B)),
    *((plain, {"tie_word_embeddings": None, "attention_bias": False, "rope_scaling": None, "hidden_act": "silu"})
      for plain in (NEMO, SEVEN_B, EXPERTS)),
    (NEMO, {"sliding_window": 131072}),
    (SEVEN_B, {"torch_dtype": "bfloat16", "use_cache": False, "pad_token_id": 3, "max_position_embeddings": 32768}),
    (SEVEN_B, {"layer_types": ["full_attention"]}),
    *((plain, {"attention_dropout": 0.1}) for plain in (NEMO, SEVEN_B)),
    ({**EXPERTS, "router_aux_loss_coef": 0.02}, {"router_aux_loss_coef": 0.001, "attention_dropout": 0.1}),
    (EXPERTS, {"output_router_logits": True, "head_dim": 4}),
]  # fmt: skip
OTHER_MODEL: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    *((plain, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_") for plain in (NEMO, SEVEN_B, EXPERTS)),
    *((plain, {"attention_bias": True}, "attention_bias is ") for plain in (NEMO, SEVEN_B)),
    *((plain, {"final_logit_softcapping": 30.0}, "final_logit_softcapping is ") for plain in (NEMO, SEVEN_B)),
    *((plain, {"rope_theta": 1e4}, "rope_theta is ") for plain in (NEMO, SEVEN_B)),
    (NEMO, {"sliding_window": 4096}, "sliding_window is "),
    (SEVEN_B, {"sliding_window": None}, "sliding_window is "),
    (SEVEN_B, {"auto_map": {"AutoModel": "m.M"}}, "auto_map is "),
    (SEVEN_B, {"layer_types": ["sliding_attention"]}, "layer_types is "),
    ({**EXPERTS, "num_experts_per_tok": 2}, {"num_experts_per_tok": 1}, "num_experts_per_tok is "),
]


def written(folder: Path, *configs: dict[str, Any]) -> list[AverageInput]:
    """The same weights with each of some configs."""
    for number, config in enumerate(configs):
        write_model(folder / str(number), text_tensors(1), config)
    return [AverageInput.from_directory(folder / str(number)) for number in range(len(configs))]


@pytest.mark.parametrize(("plain", "changes"), SAME_MODEL)
def test_configs_that_say_the_same_in_other_words(
    tmp_path: Path, plain: dict[str, Any], changes: dict[str, Any]
) -> None:
    check_agreement(written(tmp_path, plain, {**plain, **changes}))


@pytest.mark.parametrize(("plain", "changes", "message"), OTHER_MODEL)
def test_a_setting_of_one_config_makes_another_model(
    tmp_path: Path, plain: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    for number, configs in enumerate(((plain, {**plain, **changes}), ({**plain, **changes}, plain))):
        with pytest.raises(CheckpointError, match=message):
            check_agreement(written(tmp_path / str(number), *configs))


def test_another_precision_has_a_way_out(tmp_path: Path) -> None:
    inputs = written(tmp_path, NEMO)
    write_model(tmp_path / "half", text_tensors(1, dtype="F16"), NEMO)
    with pytest.raises(CheckpointError, match=r"F16 .*(?s:.*)convert_checkpoint.py SRC DST --to hf --dtype"):
        check_agreement([*inputs, AverageInput.from_directory(tmp_path / "half")])
