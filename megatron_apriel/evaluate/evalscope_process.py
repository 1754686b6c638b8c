"""The process that lets evalscope load a benchmark and form its prompts: samples out, one line of JSON each.

It runs in an environment of its own that ``make scorers`` makes, and imports nothing of this project::

    python evalscope_process.py '{"name": "hle", "folder": "data/hle", "params": {"include_multi_modal": false}}' FILE

Nothing is fetched: the data are a folder, in the form in which their authors publish them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def samples(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every sample of a benchmark, once."""
    from evalscope import TaskConfig
    from evalscope.api.registry import get_benchmark

    given = {"dataset_id": request["folder"], "extra_params": request.get("params", {}), "few_shot_num": 0}
    if request.get("subsets"):
        given["subset_list"] = request["subsets"]
    config = TaskConfig(model="none", datasets=[request["name"]], dataset_args={request["name"]: given}, repeats=1)
    for subset, found in get_benchmark(request["name"], config).load_dataset().items():
        for number, sample in enumerate(found):
            yield {
                "id": f"{subset}/{number}", "subset": subset, "choices": sample.choices, "target": sample.target,
                "turns": [_turn(message) for message in sample.input],
                "metadata": {name: value for name, value in sample.metadata.items() if _is_plain(value)},
            }  # fmt: skip


def _turn(message: Any) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "parts": [{"text": message.content}]}
    parts = []
    for part in message.content:
        if part.type == "text":
            parts.append({"text": part.text})
        elif part.type == "image":
            parts.append({"image": part.image})
        else:
            raise ValueError(f"a part of the kind {part.type}")
    return {"role": message.role, "parts": parts}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def main() -> None:
    """Write the samples that are asked for."""
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    request, path = json.loads(sys.argv[1]), sys.argv[2]
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        for sample in samples(request):
            file.write(json.dumps(sample) + "\n")


if __name__ == "__main__":
    main()
