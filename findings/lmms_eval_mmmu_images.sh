#!/usr/bin/env bash
# Library:   lmms-eval 0.7.3, with Pillow 13.0.0, PyYAML 6.0.3, numpy 2.3.5 and loguru 0.7.3
# Behaviour: MMMU's form lets a question name its images, <image 1> to <image 7>, in any order and more than once. For
#            chat models, mmmu_val puts each image once, in the order of the numbers, at the places from left to right.
#            So the first image stands where the question says <image 2> first. A question that names one twice, as
#            validation_Math_19 does (lm-evaluation-harness says so), loses all text between the places that are left
#            over, options included. There is no warning, and it is scored as if all had been asked.
# Output:    asked: Compare [red] with [green]. A. [green] B. [red] C. none
#            sent:  Compare [red] with [green] C. none
#            asked: Turn [green] into [red]. A. paint it B. keep it
#            sent:  Turn [red] into [green] . A. paint it B. keep it
# Matters:   The model is asked another question than the one that is scored, and the score is beside others in tables.
#            Here a sample's parts come from evalscope, whose reader takes each place by its number, and a test holds
#            that pictures stay where they stood, the same one twice too (megatron_apriel/evaluate/from_evalscope.py).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet pillow==13.0.0 pyyaml==6.0.3 numpy==2.3.5 loguru==0.7.3
"$folder/environment/bin/pip" install --quiet --no-deps lmms-eval==0.7.3 2>"$folder/pip.log" || {
    cat "$folder/pip.log" >&2
    exit 1
}

cd "$folder"
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import importlib.util
import re
import sys
import types
from pathlib import Path

import yaml
from PIL import Image

# The package of tasks without its __init__, which imports every engine, and torch with them.
package = Path(importlib.util.find_spec("lmms_eval").origin).parent
sys.modules["lmms_eval.tasks"] = tasks = types.ModuleType("lmms_eval.tasks")
tasks.__path__ = [str(package / "tasks")]
from lmms_eval.tasks.mmmu import utils  # noqa: E402

task = (package / "tasks" / "mmmu" / "mmmu_val.yaml").read_text()
settings = yaml.safe_load(re.sub(r"!function utils\.", "", task))
messages_of = getattr(utils, settings["doc_to_messages"])
COLOURS = ["red", "green"]
QUESTIONS = [
    ("Compare <image 1> with <image 2>.", ["<image 2>", "<image 1>", "none"]),
    ("Turn <image 2> into <image 1>.", ["paint it", "keep it"]),
]
EXPECTED = ["Compare [red] with [green] C. none", "Turn [red] into [green] . A. paint it B. keep it"]


def sent(row: dict[str, object]) -> str:
    """What a chat model gets of a row: texts, and the colours of the images between them."""
    (message,) = messages_of(row, settings["lmms_eval_specific_kwargs"]["default"])
    parts = []
    for part in message["content"]:
        if part["type"] == "image":
            red, green, _ = part["url"].getpixel((0, 0))
            parts.append("[red]" if red > green else "[green]")
        else:
            parts.append(part["text"].split("Answer with")[0])
    return " ".join(" ".join(parts).split())


seen = []
images = {f"image_{place}": Image.new("RGB", (16, 16), colour) for place, colour in enumerate(COLOURS, 1)}
for question, options in QUESTIONS:
    lettered = " ".join(f"{letter}. {option}" for letter, option in zip("ABC", options))
    asked = re.sub(r"<image (\d)>", lambda found: f"[{COLOURS[int(found[1]) - 1]}]", f"{question} {lettered}")
    row = {"id": "validation_Math_1", "question": question, "options": str(options), "question_type": "multiple-choice"}
    seen.append(sent({**row, **images}))
    print(f"asked: {asked}\nsent:  {seen[-1]}")
sys.exit(seen != EXPECTED)
PYTHON
