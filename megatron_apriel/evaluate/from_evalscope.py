"""Items that evalscope loads and forms the prompts of, in an environment of its own, and what scores each of them here.

Its scoring is not used: 30 answers that are right scored half there, because reasoning reaches its extraction and two
boxes are joined. Its prompts ask for a last line ``ANSWER: X`` or a box, which our scorers read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_apriel.errors import DataError, brief
from megatron_apriel.evaluate import evalscope_process
from megatron_apriel.evaluate.items import Item, Part, Source, file_digest
from megatron_apriel.evaluate.loaders import Given, Loaded
from megatron_apriel.grading.option_texts import LETTERS
from megatron_apriel.grading.scorer_environments import plain_environment, scorer_python

VERSION = "evalscope 1.14.1"
Sample = Mapping[str, Any]
Grading = tuple[str, dict[str, Any]]
_RULE = "labelled"
_OPTIONS = re.compile(r"(?:Choices?|Options?):")
_OPTION = re.compile(r"(?:^|[,;\n])\s*([A-J])\s?[:.)]")


def _letter(sample: Sample) -> Grading:
    """Of MMStar evalscope gives letters alone as options; their texts stand in the question."""
    choices = list(sample["choices"])
    texts = _listed_options(_text(sample)) if choices == list(LETTERS[: len(choices)]) else choices
    return "letter", {"gold": sample["target"], "options": len(choices), "rule": _RULE, "choices": texts}


def _text(sample: Sample) -> str:
    return "".join(part.get("text", "") for part in sample["turns"][-1]["parts"])


def _listed_options(question: str) -> list[str]:
    """The texts of options that stand in a question: ``Choices:``, a line each, or ``Options: A: one, B: two``."""
    _, *pieces = _OPTION.split(_OPTIONS.split(question)[-1]) if _OPTIONS.search(question) else [""]
    letters, texts = pieces[::2], [text.strip() for text in pieces[1::2]]
    return texts if letters == list(LETTERS[: len(letters)]) else []


def _value(choices: Sequence[str], letter: str) -> str:
    """The text of an option, which official rules take for its letter; nothing where it is not known."""
    return "".join(choices[LETTERS.index(letter) :][:1])


def _letters(sample: Sample) -> Grading:
    return "letters", {"gold": sample["target"]}


def _math_vision(sample: Sample) -> Grading:
    if not sample["choices"]:
        return "mathematics", {"gold": sample["target"]}
    scorer, grading = _letter(sample)
    return scorer, grading | {"value": _value(grading["choices"], sample["target"])}


def _math_verse(sample: Sample) -> Grading:
    """Of its multiple choice, some have two right letters, a letter in brackets, or an option's text."""
    gold = sample["target"]
    if sample["metadata"]["question_type"] != "multi-choice":
        return "mathematics", {"gold": gold}
    choices = _listed_options(_text(sample))
    letters = re.fullmatch(r"\s*\(?([A-F])\)?(?:\s+([A-F]))?\s*", gold)
    if letters is not None and letters[2]:
        return "letters", {"gold": "".join(sorted((letters[1], letters[2])))}
    if letters is None and gold.strip() not in choices:
        return "mathematics", {"gold": gold}
    letter = letters[1] if letters is not None else LETTERS[choices.index(gold.strip())]
    return "letter", {"gold": letter, "options": len(choices) or len(LETTERS), "rule": _RULE, "choices": choices,
                      "value": _value(choices, letter)}  # fmt: skip


def _mmmu(sample: Sample) -> Grading:
    if sample["choices"]:
        return _letter(sample)
    return "mmmu_open", {"gold": sample["target"]}


def _mathvista(sample: Sample) -> Grading:
    about = sample["metadata"]
    if sample["choices"]:
        gold = sample["choices"][LETTERS.index(sample["target"])]
        return "mathvista", {"gold": gold, "type": about["answer_type"], "choices": sample["choices"]}
    return "mathvista", {"gold": sample["target"], "type": about["answer_type"], "choices": [],
                         "precision": about["precision"]}  # fmt: skip


def _program(sample: Sample) -> Grading:
    tests = json.loads(sample["metadata"]["evaluation_sample"])
    return "program", {"inputs": tests["inputs"], "outputs": tests["outputs"], "function": tests["fn_name"] or ""}


def _judged(form: str) -> Callable[[Sample], Grading]:
    def grading(sample: Sample) -> Grading:
        return "judge", {"form": form, "question": _text(sample), "gold": sample["target"]}

    return grading


@dataclass(frozen=True)
class Adapter:
    """How a benchmark is loaded.

    Attributes:
        name: that evalscope has for it.
        grading: scorer and what it needs, from a sample.
        folder: of its data; by default its own name.
        params: settings of evalscope's adapter; those that give the published form.
        subsets: parts that are taken; by default all.
    """

    name: str
    grading: Callable[[Sample], Grading]
    folder: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    subsets: Sequence[str] = ()

    def load(self, given: Given) -> Loaded:
        """Its items. Raises DataError if there are no data, or evalscope cannot read them."""
        folder = given.data / (self.folder or self.name)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        if not files:
            raise DataError(
                f"there are no data of {self.name} in {folder}.",
                "They are the files of its repository, as its authors publish them.",
                "docs/evaluation.md says how to get them.",
            )
        samples = _samples({
            "name": self.name, "folder": str(folder.resolve()), "params": dict(self.params),
            "subsets": list(self.subsets),
        })  # fmt: skip
        items = [self._item(sample, given.folder) for sample in samples]
        return items, Source(self.name, file_digest(files), len(items), VERSION)

    def _item(self, sample: Sample, folder: Path) -> Item:
        *before, last = sample["turns"]
        if last["role"] != "user" or any(turn["role"] != "system" for turn in before):
            raise DataError(f"sample {sample['id']} of {self.name} is no single question.")
        system = "\n".join(part["text"] for turn in before for part in turn["parts"])
        parts: list[Part] = [
            part["text"] if "text" in part else {"picture": _kept_picture(part["image"], folder, sample["id"])}
            for part in last["parts"]
        ]
        scorer, grading = self.grading(sample)
        return Item(sample["id"], tuple(parts), scorer, grading, groups={"subset": sample["subset"]}, system=system)


def _samples(request: Mapping[str, Any]) -> list[Sample]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        command = [str(scorer_python("evalscope")), "-I", str(Path(evalscope_process.__file__)), json.dumps(request)]
        own = plain_environment() | {"HOME": folder, "HF_HOME": folder, "MODELSCOPE_CACHE": folder}
        done = subprocess.run(
            [*command, str(path)], capture_output=True, text=True, errors="replace", env=own, cwd=folder, check=False
        )
        if done.returncode or not path.is_file():
            lines = done.stderr.strip().splitlines()
            raise DataError(
                f"{VERSION} cannot load {request['name']} from {request['folder']}: "
                f"{brief(lines[-1] if lines else 'it says nothing', 300)}.",
                fix="Give the files in the form in which they are published.",
            )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _kept_picture(address: str, folder: Path, sample: str) -> str:
    """Write a picture beside the items; its path there."""
    head, comma, text = address.partition(",")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise DataError(f"a picture of sample {sample} is not in the data, but {brief(address)}.")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(f"a picture of sample {sample} cannot be read: {error}.") from None
    kind = head.removeprefix("data:image/").removesuffix(";base64")
    name = f"pictures/{hashlib.sha256(data).hexdigest()[:24]}.{kind if kind.isalnum() else 'image'}"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
    return name


ADAPTERS = {
    "hle": Adapter("hle", _judged("closed question"), params={"include_multi_modal": False}),
    "live_code_bench": Adapter(
        "live_code_bench",
        _program,
        subsets=("release_v5",),
        params={"start_date": "2024-07-01", "end_date": "2025-01-01"},
    ),
    "mmmu": Adapter("mmmu", _mmmu),
    "mmmu_pro": Adapter("mmmu_pro", _letter, params={"dataset_format": "standard (10 options)"}),
    "mmmu_pro_vision": Adapter("mmmu_pro", _letter, "mmmu_pro", {"dataset_format": "vision"}),
    "logic_vista": Adapter("logic_vista", _letters),
    "math_vision": Adapter("math_vision", _math_vision),
    "math_vista": Adapter("math_vista", _mathvista),
    "math_verse_vd": Adapter("math_verse", _math_verse, "math_verse", subsets=("Vision Dominant",)),
    "math_verse_td": Adapter("math_verse", _math_verse, "math_verse", subsets=("Text Dominant",)),
    "mm_star": Adapter("mm_star", _letter),
    "charxiv_d": Adapter("charxiv", _judged("figure"), "charxiv", subsets=("descriptive",)),
    "charxiv_r": Adapter("charxiv", _judged("figure"), "charxiv", subsets=("reasoning",)),
    "ai2d": Adapter("ai2d", _letter),
    "blink": Adapter("blink", _letter),
}
"""By the names of our table."""
