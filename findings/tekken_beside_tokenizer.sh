#!/usr/bin/env bash
# Library:   transformers 5.23.0 with mistral-common 1.13.1
# Behaviour: AutoTokenizer reads tokenizer.json, as long as no tekken.json lies beside it. With one there, the same call
#            returns MistralCommonBackend of the other file: other ids, another vocabulary, and no character offsets.
# Output:    tokenizer.json alone: TokenizersBackend 3 [(0, 2)]
#            with a tekken.json:   MistralCommonBackend 131072 ValueError
# Matters:   Directories of Pixtral often have both files. Which tokens belong to a response is known here from character
#            offsets, so megatron_apriel/data/corpus/tokens.py passes mistral_format=False where both are there.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet transformers==5.23.0 mistral-common==1.13.1 tokenizers==0.23.3

cd "$folder"
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import json
import shutil
import sys
from pathlib import Path

import mistral_common
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

model = Path("model")
model.mkdir()
Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(model / "tokenizer.json"))
(model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
(model / "config.json").write_text(json.dumps({"model_type": "mistral"}))


def seen() -> tuple[str, int, object]:
    """Class, entries and offsets of the tokenizer that the directory gives."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    try:
        offsets = tokenizer("ab", return_offsets_mapping=True)["offset_mapping"]
    except ValueError as error:
        offsets = type(error).__name__
    return type(tokenizer).__name__, len(tokenizer), offsets


alone = seen()
print("tokenizer.json alone:", *alone)
shutil.copy(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json", model / "tekken.json")
both = seen()
print("with a tekken.json:  ", *both)
sys.exit((alone, both) != (("TokenizersBackend", 3, [(0, 2)]), ("MistralCommonBackend", 131072, "ValueError")))
PYTHON
