"""Samples that evalscope forms become items: pictures kept beside them, and a scorer for each kind of question."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.evaluate.from_evalscope import ADAPTERS
from megatron_apriel.evaluate.items import Item
from megatron_apriel.evaluate.loaders import Given
from megatron_apriel.evaluate.scoring import Scorers
from megatron_apriel.generate.conversation import Sampling
from megatron_apriel.grading.verdict import Verdict


@pytest.fixture
def picture() -> str:
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(data, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def sample(target: Any, choices: list[str] | None = None, parts: list[dict[str, str]] | None = None,
           **metadata: Any) -> dict[str, Any]:  # fmt: skip
    return {"id": "all/0", "subset": "all", "choices": choices, "target": target, "metadata": metadata,
            "turns": [{"role": "user", "parts": parts or [{"text": "Why?"}]}]}  # fmt: skip


def loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *samples: dict[str, Any]) -> list[Item]:
    """Items of samples that a stand-in for evalscope's environment gives."""
    (tmp_path / "samples.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in samples))
    python = tmp_path / "scorers" / "evalscope" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$3" > {tmp_path}/request\n'
                      f'cp {tmp_path}/samples.jsonl "$last"\n')  # fmt: skip
    python.chmod(0o755)
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path / "scorers"))
    adapter = ADAPTERS[name]
    folder = tmp_path / "data" / (adapter.folder or adapter.name)
    folder.mkdir(parents=True)
    (folder / "rows.parquet").write_bytes(b"rows")
    items, source = adapter.load(Given(tmp_path / "data", tmp_path / "items"))
    assert source.items == len(items) and source.loader == "evalscope 1.14.1"
    return items


def verdict(item: Item, content: str) -> str:
    with Scorers() as scorers:
        record = {"reasoning": "", "content": content, "calls": [], "finish": "stop", "prompt_tokens": 1, "tokens": 1,
                  "problem": ""}  # fmt: skip
        graded = scorers.grade(item, record)
        assert isinstance(graded, Verdict)
        return str(graded.mark)


def test_pictures_stand_where_they_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: str) -> None:
    parts = [{"text": "Look: "}, {"image": picture}, {"text": " Why?"}, {"image": picture}]
    (item,) = loaded("mm_star", tmp_path, monkeypatch, sample("B", ["A", "B"], parts))
    assert [type(part) for part in item.parts] == [str, dict, str, dict]
    assert len(set(item.pictures)) == 1
    (turn,) = item.question(tmp_path / "items", Sampling()).turns
    assert [(one.width, one.height) for one in turn.pictures] == [(40, 30)] * 2
    assert json.loads((tmp_path / "request").read_text())["name"] == "mm_star"


@pytest.mark.parametrize(
    ("name", "given", "right", "wrong"),
    [
        ("mm_star", sample("B", ["A", "B"]), "ANSWER: B", "ANSWER: A"),
        ("logic_vista", sample("AC", list("ABCD")), "ANSWER: A, C", "ANSWER: A"),
        ("math_vision", sample("7", question_type="free_form"), "\\boxed{7.0}", "\\boxed{8}"),
        ("math_vision", sample("B", list("ABCDE"), question_type="multi_choice"), "ANSWER: B", "ANSWER: C"),
        ("math_verse_vd", sample("2\\sqrt{3}", question_type="free-form"), "\\boxed{\\sqrt{12}}", "\\boxed{3}"),
        ("math_verse_td", sample("C", question_type="multi-choice"), "ANSWER: C", "ANSWER: D"),
        ("math_vision", sample("B", ["$3$", "$2\\pi$"], question_type="multi_choice"), "\\boxed{2 \\pi}", "ANSWER: A"),
        (
            "math_vision",
            sample("B", ["3", "$\\sqrt{12}$"], question_type="multi_choice"),
            "\\boxed{2\\sqrt3}",
            "\\boxed{A}",
        ),
        ("math_verse_td", sample("(C)", question_type="multi-choice"), "ANSWER: C", "ANSWER: D"),
        ("math_verse_td", sample("A\nC", question_type="multi-choice"), "ANSWER: A, C", "ANSWER: A"),
        ("math_verse_td", sample("False", question_type="multi-choice"), "ANSWER: False", "ANSWER: True"),
        (
            "math_verse_vd",
            sample("B", parts=[{"text": "Find it\nChoices:\nA:40\xb0\nB:60\xb0"}], question_type="multi-choice"),
            "ANSWER: 60\xb0",
            "ANSWER: 40\xb0",
        ),
        (
            "math_verse_vd",
            sample("C", parts=[{"text": "Choices:\nA:4\nB:5\nC:2\u221a{3}\nD:8"}], question_type="multi-choice"),
            "\\boxed{\\sqrt{12}}",
            "\\boxed{4}",
        ),
        (
            "math_verse_td",
            sample("90^\\circ", parts=[{"text": "Choice:\nA. 9\nB. 90^\\circ"}], question_type="multi-choice"),
            "ANSWER: B",
            "ANSWER: A",
        ),
        ("logic_vista", sample("3", list("ABCDEFGHI")), "ANSWER: 3", "ANSWER: 2"),
        (
            "mm_star",
            sample("B", list("ABCD"), [{"text": "Which?\nOptions: A: one, B: two, or so, C: three, D: four"}]),
            "ANSWER: two, or so",
            "ANSWER: three",
        ),
        ("blink", sample("A", ["left", "right"]), "It moves left.", "ANSWER: right"),
        ("ai2d", sample("C", ["a", "b", "c"]), "ANSWER: (C) c", "ANSWER: (B) c"),
        ("math_vista", sample("1.2", answer_type="float", precision=1.0), "\\boxed{1.23}", "\\boxed{1.3}"),
        ("math_vista", sample("B", ["one", "two"], answer_type="text"), "ANSWER: B", "ANSWER: A"),
        ("mmmu", sample("['1/8', '0.125']"), "It is 0.125", "It is 0.5"),
        (
            "live_code_bench",
            sample("", evaluation_sample=json.dumps({"inputs": ["1"], "outputs": ["1"], "fn_name": None})),
            "```\nprint(input())\n```",
            "```\nprint(2)\n```",
        ),
        ("mmmu_pro", sample("J", list("abcdefghij")), "ANSWER: J", "ANSWER: I"),
    ],
)
def test_each_kind_of_question_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, Any], right: str, wrong: str
) -> None:
    (item,) = loaded(name, tmp_path, monkeypatch, given)
    assert (verdict(item, right), verdict(item, wrong)) == ("right", "wrong")


def test_judged_questions_say_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = sample("4")
    one["turns"].insert(0, {"role": "system", "parts": [{"text": "Explain."}]})
    (item,) = loaded("hle", tmp_path, monkeypatch, one)
    assert item.system == "Explain."
    assert item.grading == {"form": "closed question", "question": "Why?", "gold": "4"}
    assert json.loads((tmp_path / "request").read_text())["params"] == {"include_multi_modal": False}


def test_what_cannot_be_loaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path))
    given = Given(tmp_path / "data", tmp_path / "items")
    with pytest.raises(DataError, match="there are no data of ai2d"):
        ADAPTERS["ai2d"].load(given)
    (tmp_path / "data" / "ai2d").mkdir(parents=True)
    (tmp_path / "data" / "ai2d" / "rows.parquet").write_bytes(b"rows")
    with pytest.raises(ConfigError, match="make scorers"):
        ADAPTERS["ai2d"].load(given)
    python = tmp_path / "evalscope" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'KeyError: options' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(DataError, match=r"cannot load ai2d from .*KeyError: options"):
        ADAPTERS["ai2d"].load(given)


@pytest.mark.parametrize("image", ["http://127.0.0.1/x.png", "/etc/passwd", "data:image/png;base64,%%%"])
def test_a_picture_that_is_not_in_the_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    with pytest.raises(DataError, match="a picture of sample all/0"):
        loaded("ai2d", tmp_path, monkeypatch, sample("A", ["a"], [{"image": image}]))


def test_a_conversation_is_no_single_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = sample("A", ["a"])
    several["turns"].append({"role": "assistant", "parts": [{"text": "x"}]})
    with pytest.raises(DataError, match="is no single question"):
        loaded("ai2d", tmp_path, monkeypatch, several)
