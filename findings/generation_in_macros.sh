#!/usr/bin/env bash
# Library:   transformers 5.23.0, with Jinja2 3.1.6 and tokenizers 0.23.3
# Behaviour: apply_chat_template(return_assistant_tokens_mask=True) marks what stands between {% generation %} and
#            {% endgeneration %}, as long as these stand at the top level of the chat template. Inside a macro, a block
#            {% set %} or a block {% filter %} as many characters are marked, but from the beginning of that macro or
#            block on. The text is the same, and there is neither error nor warning.
# Output:    plain:  marked "It is 4.<|end|>", "It is 5.<|end|>"
#            macro:  marked "<|assistant|>\nI", "<|assistant|>\nI"
#            set:    marked "<|assistant|>\nI", "<|assistant|>\nI"
#            filter: marked "<|assistant|>\nI", "<|assistant|>\nI"
# Matters:   Trainers learn what is marked (assistant_only_loss of TRL): here the header of a turn, and neither the
#            answer nor the end of the turn, so that the model never stops. This project's own template has macros; the
#            tags stand outside of them, and a test counts that every answer is learned up to its end
#            (megatron_apriel/data/corpus/chat_template.jinja, tests/unit/data/corpus/test_chat_format.py).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet transformers==5.23.0 jinja2==3.1.6 tokenizers==0.23.3

cd "$folder"
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import json
import string
import sys
from itertools import groupby

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TURN = (
    "<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}"
    "{{ '\\n' }}"
)
TEMPLATES = {
    "plain": "{% for m in messages %}" + TURN + "{% endfor %}",
    "macro": "{% macro turn(m) %}" + TURN + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "set": "{% for m in messages %}{% set turn %}" + TURN + "{% endset %}{{ turn }}{% endfor %}",
    "filter": "{% for m in messages %}{% filter string %}" + TURN + "{% endfilter %}{% endfor %}",
}
MESSAGES = [
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And one more?"},
    {"role": "assistant", "content": "It is 5."},
]

characters = Tokenizer(models.WordLevel({letter: place for place, letter in enumerate(string.printable)}, "?"))
characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters)
texts, seen = set(), {}
for name, template in TEMPLATES.items():
    encoded = tokenizer.apply_chat_template(
        MESSAGES, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    texts.add("".join(tokens))
    runs = groupby(zip(tokens, encoded["assistant_masks"]), key=lambda pair: pair[1])
    seen[name] = ["".join(token for token, _ in run) for marked, run in runs if marked]
    print(f"{name + ':':7} marked {', '.join(json.dumps(run) for run in seen[name])}")
wrong = ["<|assistant|>\nI"] * 2
expected = {"plain": ["It is 4.<|end|>", "It is 5.<|end|>"], "macro": wrong, "set": wrong, "filter": wrong}
sys.exit((len(texts), seen) != (1, expected))
PYTHON
