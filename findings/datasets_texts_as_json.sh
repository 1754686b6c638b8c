#!/usr/bin/env bash
# Library:   datasets 5.2.0, with pyarrow 26.0.1 and pandas 3.1.1
# Behaviour: A field of JSON lines that is a text in one row and a list in another is loaded as datasets' own type Json,
#            by default and without a word. Texts of it that could be JSON come back as its values: 3, true, nothing. A
#            field of texts alone keeps them. Beside that, numbers of a file that is one list keep ten decimals.
# Output:    "3": '3' alone, 3 beside a list
#            "007": '007' alone, 7 beside a list
#            "1.50": '1.50' alone, 1.5 beside a list
#            "true": 'true' alone, True beside a list
#            "null": 'null' alone, None beside a list
#            "\"No.\"": '"No."' alone, 'No.' beside a list
#            "No.": 'No.' alone, 'No.' beside a list
#            -2.5e-11: -2.5e-11 of lines, -0.0 of a list
# Matters:   Conversations about images have both: the question is a list of parts, the answer a text, and the answers
#            to "how many" become numbers, which chat templates print in another way or fail at.
#            megatron_apriel/data/raw reads the files themselves, and in what datasets saved of them
#            table_values.py gives such texts back as they were written.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1

cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import json
import sys
from pathlib import Path

import datasets

datasets.disable_progress_bars()
texts = ["3", "007", "1.50", "true", "null", '"No."', "No."]


def loaded(name: str, text: str) -> datasets.Dataset:
    """What datasets makes of a file with this text."""
    Path(name).write_text(text)
    return datasets.load_dataset("json", data_files=name, split="train")


def answers(name: str, question: object) -> list[object]:
    """The answers, as loaded beside this content of a question."""
    turns = [[{"role": "user", "content": question}, {"role": "assistant", "content": text}] for text in texts]
    rows = loaded(name, "".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return [row["messages"][1]["content"] for row in rows]


alone = answers("texts.jsonl", "How many?")
beside = answers("parts.jsonl", [{"type": "text", "text": "How many?"}])
for text, one, two in zip(texts, alone, beside):
    print(f"{json.dumps(text)}: {one!r} alone, {two!r} beside a list")
number = {"reward": -2.5e-11}
of_lines = loaded("a.jsonl", json.dumps(number))[0]["reward"]
of_list = loaded("b.json", json.dumps([number]))[0]["reward"]
print(f"{number['reward']}: {of_lines} of lines, {of_list} of a list")
expected = (texts, [3, 7, 1.5, True, None, "No.", "No."], -2.5e-11, 0)
sys.exit((alone, beside, of_lines, of_list) != expected)
PYTHON
