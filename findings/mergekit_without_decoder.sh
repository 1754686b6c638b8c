#!/usr/bin/env bash
# Library:   mergekit 0.1.5 with transformers 5.23.0
# Behaviour: A mean of two LLaVA checkpoints as transformers writes them, with the published tensor names
#            (language_model.model.layers...), ends with exit code 0 and no warning. The result has tower and projector
#            only: mergekit takes names from the model in memory (model.language_model.layers...), finds none of the
#            decoder's, and holds these weights for optional. transformers then fills the decoder with random numbers.
# Output:    exit code 0; given: 36 tensors, 21 of them of the decoder; mean: 15 tensors, 0 of the decoder
# Matters:   Who merges vision-language models by mergekit gets a directory that looks whole.
#            megatron_apriel/formats/tensor_accounts.py says what such a directory lacks;
#            tools/average_checkpoints.py averages these checkpoints whatever their names.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet mergekit==0.1.5 transformers==5.23.0 torch==2.13.0

cd "$folder"
HF_HUB_OFFLINE=1 environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PixtralVisionConfig

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
text = MistralConfig(**sizes, num_hidden_layers=2, num_key_value_heads=1, vocab_size=64)
tower = PixtralVisionConfig(**sizes, num_hidden_layers=1, image_size=32, patch_size=16)
given = ["first", "second"]
for seed, name in enumerate(given):
    torch.manual_seed(seed)
    config = LlavaConfig(text_config=text, vision_config=tower, image_token_index=10)
    LlavaForConditionalGeneration(config).save_pretrained(name)
models = [{"model": name, "parameters": {"weight": 0.5}} for name in given]
Path("mean.yaml").write_text(json.dumps({"merge_method": "linear", "dtype": "float32", "models": models}))
command = [str(Path(sys.executable).with_name("mergekit-yaml")), "mean.yaml", "mean", "--no-write-model-card"]
code = subprocess.run(command, capture_output=True).returncode


def tensors(directory: str) -> tuple[int, int]:
    """How many tensors a directory has, and how many of them are the decoder's."""
    names = [name for file in Path(directory).glob("*.safetensors") for name in safe_open(file, "pt").keys()]
    return len(names), sum("language_model" in name or "lm_head" in name for name in names)


(all_given, decoder_given), (all_made, decoder_made) = tensors("first"), tensors("mean")
print(
    f"exit code {code}; given: {all_given} tensors, {decoder_given} of them of the decoder;"
    f" mean: {all_made} tensors, {decoder_made} of the decoder"
)
sys.exit((code, all_given, decoder_given, all_made, decoder_made) != (0, 36, 21, 15, 0))
PYTHON
