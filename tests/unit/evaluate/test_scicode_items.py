"""SciCode's steps are asked one behind the other: with the model's own code before, and again where that changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.errors import DataError
from megatron_apriel.evaluate.items import Item, chosen_items
from megatron_apriel.testing.chat_servers import Reply, whole
from tests.unit.evaluate.conftest import Answering, lines, row, write_lines
from tools import evaluate

TEMPLATE = "BEFORE\n{problem_steps_str}\nNEXT\n{next_step_str}\nUSE\n{dependencies}\n```python```"


def step(name: str) -> dict[str, Any]:
    function = f"f{name.replace('.', '_')}"
    return {"step_number": name, "step_description_prompt": f"Do {name}.", "step_background": f"Why {name}.",
            "function_header": f"def {function}(x):\n    '''{{braces}}'''", "return_line": "    return x",
            "test_cases": [f"assert {function}(1) == target"]}  # fmt: skip


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two problems of three steps in the published form, of which one is given."""
    folder = tmp_path / "data" / "scicode" / "data"
    folder.mkdir(parents=True)
    given = [step("62.1"), step("62.2"), step("62.3")]
    given[0]["test_cases"] = []
    for name, problem, steps in (("all", "62", given), ("dev", "5", [step(f"5.{number}") for number in (1, 2, 3)])):
        rows = [{"problem_id": problem, "required_dependencies": f"import numpy  # {problem}", "sub_steps": steps}]
        write_lines(folder / f"problems_{name}.jsonl", rows)
    (folder / "background_comment_template.txt").write_text(TEMPLATE)
    for name in ("13.6", "62.1", "76.3"):
        (folder / f"{name}.txt").write_text(f"import os\ndef f{name.replace('.', '_')}(x):\n    return (x  +  1)\n")
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path / "none"))
    return tmp_path / "data"


def run(out: Path, data: Path, *arguments: str) -> int:
    return evaluate.main([str(out), "--benchmarks", "scicode", "--data", str(data), "--runs", "1", *arguments])


def next_step(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"]).partition("NEXT\nDo ")[2].partition(".\n")[0]


def code_of(name: str, number: int = 0) -> str:
    return f"# my {name}, {number}"


def answered(name: str, number: int = 0) -> str:
    return f"I think.\n[BEGIN FINAL RESPONSE]\n```python\nimport os\n{code_of(name, number)}\n```\n[END FINAL RESPONSE]"


def test_each_step_is_asked_behind_those_before_it(tmp_path: Path, problems: Path, answering: Answering,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    server = answering(lambda body: answered(next_step(body)))
    out = tmp_path / "out"
    assert run(out, problems, "--model", server.address) == 0
    prompts = {next_step(body): body["messages"][-1]["content"] for body in server.requests}
    assert sorted(prompts) == ["5.1", "5.2", "5.3", "62.2", "62.3"]
    before = [f"Do {name}.\nWhy {name}.\n\n\n{code_of(name)}" for name in ("5.1", "5.2")]
    assert prompts["5.3"] == TEMPLATE.format(
        problem_steps_str="\n\n------\n\n".join(before),
        next_step_str="Do 5.3.\nWhy 5.3.\n\ndef f5_3(x):\n    '''{braces}'''\n\n    return x",
        dependencies="import numpy  # 5",
    )
    assert "def f62_1(x):\n    return x + 1\n\n------\n\nDo 62.2." in prompts["62.3"]
    assert prompts["5.1"].startswith("BEFORE\n\nNEXT")
    # Without the numbers of its authors nothing can be scored, and that is said.
    assert "without it no answer to SciCode can be scored" in capsys.readouterr().err
    assert (row(out)["asked"], row(out)["uncheckable"]) == (5, 5)
    assert run(out, problems, "--model", server.address) == 0
    assert len(server.requests) == 5
    items = {line["key"]: line for line in lines(out / "scicode" / "items.jsonl")}
    assert items["62.3"]["after"] == ["62.2"] and items["5.3"]["cluster"] == "5"


def test_what_builds_on_a_failure_waits_for_it(tmp_path: Path, problems: Path, answering: Answering) -> None:
    broken = [True]

    def answer(body: dict[str, Any]) -> str | Reply:
        name = next_step(body)
        return whole({"message": "no"}, 400) if broken[0] and name == "5.2" else answered(name)

    server = answering(answer)
    out = tmp_path / "out"
    assert run(out, problems, "--model", server.address) == 1
    assert (row(out)["asked"], row(out)["failed"], row(out)["missing"]) == (4, 1, 1)
    broken[0] = False
    assert run(out, problems, "--model", server.address, "--only-failed") == 0
    assert [next_step(body) for body in server.requests[-2:]] == ["5.2", "5.3"]
    assert (row(out)["asked"], row(out)["failed"], row(out)["missing"]) == (5, 0, 0)


def test_another_answer_before_asks_again(tmp_path: Path, problems: Path, answering: Answering) -> None:
    server = answering(lambda body: answered(next_step(body), len(server.requests)))
    out = tmp_path / "out"
    assert run(out, problems, "--model", server.address) == 0
    answers = out / "scicode" / "answers-1.jsonl"
    changed = [
        json.dumps(line | {"failed": "gone"} if line["key"] == "5.1" else line)
        for line in lines(answers)
    ]  # fmt: skip
    answers.write_text("\n".join([*changed, ""]))
    assert run(out, problems, "--model", server.address, "--only-failed") == 0
    assert [next_step(body) for body in server.requests[5:]] == ["5.1", "5.2", "5.3"]
    assert code_of("5.1", 6) in server.requests[-1]["messages"][-1]["content"]


def test_an_answer_without_code_gives_an_empty_one(tmp_path: Path, problems: Path, answering: Answering) -> None:
    def answer(body: dict[str, Any]) -> str | Reply:
        if next_step(body) == "5.1":
            return whole({"choices": [{"index": 0, "message": {"content": "```python\nx"}, "finish_reason": "length"}]})
        return "No code." if next_step(body) == "5.2" else answered(next_step(body))

    server = answering(answer)
    assert run(tmp_path / "out", problems, "--model", server.address) == 0
    last = next(body for body in server.requests if next_step(body) == "5.3")["messages"][-1]["content"]
    assert "Why 5.1.\n\n\n\n------\n\nDo 5.2.\nWhy 5.2.\n\n\nNEXT" in last


def test_a_limit_leaves_no_gap() -> None:
    items = [
        Item(f"{problem}.{number}", ("q",), "scicode", {}, after=tuple(f"{problem}.{one}" for one in range(number)))
        for problem in "abc" for number in range(4)
    ]  # fmt: skip
    chosen = [{item.key for item in chosen_items(items, limit)} for limit in range(1, 13)]
    for limit, keys in enumerate(chosen, 1):
        assert len(keys) == limit
        assert all(set(item.after) <= keys for item in items if item.key in keys)
        assert all(keys <= more for more in chosen[limit:])


@pytest.mark.parametrize(("name", "said"), [("problems_all.jsonl", "are no data"), ("62.1.txt", "not whole")])
def test_data_that_are_missing_are_named(tmp_path: Path, problems: Path, name: str, said: str) -> None:
    (problems / "scicode" / "data" / name).unlink()
    with pytest.raises(DataError, match=said):
        run(tmp_path / "out", problems, "--model", "http://localhost:1", "--steps", "load")
