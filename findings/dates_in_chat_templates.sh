#!/usr/bin/env bash
# Library:   transformers 5.23.0 with datasets 5.2.0, Jinja2 3.1.6, tokenizers 0.23.3, pyarrow 26.0.1 and pandas 3.1.1
# Behaviour: A field of JSON lines whose texts all look like dates is loaded by datasets as timestamps. Where
#            apply_chat_template gets one for the content of a message, a field of a document or an argument of a call,
#            it writes the name of its type in place of the value: the text <datetime>. So it does with exact decimals
#            of Parquet (<Decimal>), without a warning. Versions before 5.23 wrote the value, or raised an error where
#            a template writes JSON.
# Output:    answers, all dates:           <datetime>, <datetime>
#            answers, one of them no date: 2026-11-30, never
#            exact prices of Parquet:      <Decimal>, <Decimal>
#            argument of a call:           {"at": "<datetime>"}
# Matters:   A model that is to read receipts learns to answer "<datetime>", for every receipt, and the loss falls
#            nicely. Here JSON lines are read as they are written, and timestamps, dates and decimals of tables are
#            refused in what is learned (megatron_apriel/data/raw/files/table_values.py, docs/data.md).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet transformers==5.23.0 datasets==5.2.0 jinja2==3.1.6 tokenizers==0.23.3 \
    pyarrow==26.0.1 pandas==3.1.1

cd "$folder"
export TRANSFORMERS_VERBOSITY=error HF_HOME="$folder/home" HF_HUB_OFFLINE=1
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import json
import sys
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

datasets.disable_progress_bars()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, "?")))
tokenizer.chat_template = (
    "{% for message in messages if message.role == 'assistant' %}{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
seen = []


def show(what: str, kind: str, file: str, *, call: bool = False) -> None:
    """Print and keep what a chat template makes of the answers in a file."""
    texts = []
    for row in datasets.load_dataset(kind, data_files=file, split="train"):
        answer = {"role": "assistant", "content": row["answer"]}
        if call:
            function = {"name": "remind", "arguments": {"at": row["answer"]}}
            answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        messages = [{"role": "user", "content": row["question"]}, answer]
        texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
    seen.append(texts)
    print(f"{what + ':':29} {', '.join(texts)}")


def lines(name: str, *answers: str) -> str:
    """A file of JSON lines with these answers."""
    rows = [{"question": "When was it paid?", "answer": answer} for answer in answers]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


show("answers, all dates", "json", lines("dates.jsonl", "2026-11-30", "2026-12-01"))
show("answers, one of them no date", "json", lines("mixed.jsonl", "2026-11-30", "never"))
prices = {"question": ["How much?"] * 2, "answer": [Decimal("12.50"), Decimal("3.99")]}
parquet.write_table(pa.table(prices), "prices.parquet")
show("exact prices of Parquet", "parquet", "prices.parquet")
show("argument of a call", "json", lines("calls.jsonl", "2026-11-30 10:00:00"), call=True)
dates, mixed, decimals, calls = ["<datetime>"] * 2, ["2026-11-30", "never"], ["<Decimal>"] * 2, ['{"at": "<datetime>"}']
sys.exit(seen != [dates, mixed, decimals, calls])
PYTHON
