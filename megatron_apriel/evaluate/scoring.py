"""Verdicts on the answers of a benchmark, by the scorers of ``grading``; what was scored before stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from megatron_apriel.errors import AprielError, ConfigError, brief, words_of
from megatron_apriel.evaluate.benchmarks import model_missing
from megatron_apriel.evaluate.chains import filled
from megatron_apriel.evaluate.items import Item, digest, file_digest
from megatron_apriel.evaluate.records import Record, RecordFile, answer_of, read_answers, read_verdicts
from megatron_apriel.evaluate.scicode_items import scicode_targets
from megatron_apriel.generate.answer import Model
from megatron_apriel.generate.asking import Asked, ask_models
from megatron_apriel.generate.conversation import Question
from megatron_apriel.grading import judge
from megatron_apriel.grading.conversations import ConversationGrader
from megatron_apriel.grading.instructions import InstructionGrader
from megatron_apriel.grading.letters import grade_letter, grade_letters
from megatron_apriel.grading.math_answers import MathGrader
from megatron_apriel.grading.mathvista import grade_mathvista, taken_answer
from megatron_apriel.grading.mmmu_open import grade_mmmu_open
from megatron_apriel.grading.programs import grade_program
from megatron_apriel.grading.responses import final_response
from megatron_apriel.grading.sandbox import VERSION as SANDBOX_VERSION
from megatron_apriel.grading.sandbox import find_sandbox
from megatron_apriel.grading.scicode import TARGETS, StepGrader
from megatron_apriel.grading.verdict import Cause, Mark, Verdict, bad_item, without_answer
from megatron_apriel.grading.visual_answers import grade_visual_answer
from megatron_apriel.progress import progress

FORMS = {form.name: form for form in (judge.LONG_CONTEXT, judge.CLOSED_QUESTION, judge.FIGURE)}
JUDGE = "judge"
"""The scorer that is a model: what it is asked is asked of it for many answers at once."""
_SHOWN = 200
"""Letters of an error."""
Grade = Callable[[str, Mapping[str, Any]], Verdict]
"""Takes the final response, and what the item gives to its scorer together with the rest of the answer's line."""


class Scorers(AbstractContextManager["Scorers"]):
    """The scorers by their names, each begun when it is first used; a context manager, because some keep processes.

    Args:
        judge: the model that judges, if there is one.
        data: folder with a folder for each benchmark, for what is not in the items.
    """

    def __init__(self, judge: Model | None = None, data: Path | None = None) -> None:
        self._judge, self._data = judge, data
        self._open = ExitStack()
        self._begun: dict[str, tuple[str, Grade]] = {}

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def version(self, item: Item, record: Record) -> str:
        """What the verdict depends on beside the item, for the table. Raises ConfigError if there is no such scorer."""
        if item.scorer != JUDGE:
            return self._scorer(item.scorer)[0] + (f", user {record['user']}" if "user" in record else "")
        name = item.grading.get("form", "")
        if (form := FORMS.get(name)) is None:
            raise ConfigError(f"there is no form {name!r} of a judge.", fix="Load the items again with this version.")
        return f"judge {self.judge.name}, {form.name} {form.version}"

    @property
    def judge(self) -> Model:
        """The model that judges. Raises ConfigError if there is none."""
        if self._judge is None:
            raise model_missing("--judge", ["what is scored here"])
        return self._judge

    def grade(self, item: Item, record: Record) -> Verdict | Question:
        """The verdict on an answer's line, or what the judge is to be asked for it.

        What an item holds that its scorer cannot take is a fault of that item, and the others are scored. What this
        machine lacks for a moment, such as room on its disk, is a fault of none.
        """
        try:
            return self._grade(item, record)
        except AprielError:
            raise
        except (OSError, MemoryError) as error:
            return Verdict(Mark.NONE, f"it could not be scored here: {brief(words_of(error), _SHOWN)}", Cause.CHECK)
        except Exception as error:
            return bad_item(f"it cannot be scored: {type(error).__name__}: {brief(str(error), _SHOWN)}")

    def _grade(self, item: Item, record: Record) -> Verdict | Question:
        answer = answer_of(record)
        if answer is None:
            return Verdict(Mark.NONE, record["failed"], Cause.FAILED)
        response = final_response(answer)
        if isinstance(response, Verdict):
            return response
        how = item.grading
        if item.scorer == JUDGE:
            return FORMS[how["form"]].question(how["question"], how["gold"], response)
        return self._scorer(item.scorer)[1](response, {**record, **how})

    def _scorer(self, name: str) -> tuple[str, Grade]:
        if name not in self._begun:
            self._begun[name] = self._begin(name)
        return self._begun[name]

    def _begin(self, name: str) -> tuple[str, Grade]:
        match name:
            case "letter":
                return "letter 6", self._grade_letter
            case "letters":
                return "letters 6", lambda text, how: grade_letters(text, how["gold"])
            case "mathvista":
                return "mathvista 6", _grade_mathvista
            case "mmmu_open":
                return "mmmu open 4", lambda text, how: grade_mmmu_open(text, how["gold"])
            case "visual_task":
                return "visual task 6", lambda text, how: grade_visual_answer(text, how["answer"])
            case "mathematics":
                mathematics = self._open.enter_context(MathGrader())
                return f"mathematics 6, {mathematics.version}", lambda text, how: mathematics.grade(text, how["gold"])
            case "instructions":
                checker = self._open.enter_context(InstructionGrader())
                return checker.version, lambda text, how: checker.grade(
                    text, how["prompt"], how["instructions"], how["arguments"]
                )
            case "conversation":
                tau2 = self._open.enter_context(ConversationGrader())
                return tau2.version, lambda text, how: (
                    without_answer(how["problem"]) if how["problem"]
                    else tau2.grade(how["task"], how["messages"], how["end"])
                )  # fmt: skip
            case "program":
                sandbox = find_sandbox()
                return f"program 2, sandbox {SANDBOX_VERSION}", lambda text, how: grade_program(
                    text, how["inputs"], how["outputs"], how["function"], sandbox
                )
            case "scicode":
                return self._scicode()
        raise ConfigError(f"there is no scorer {name!r}.", fix="Load the items again with this version.")

    def _grade_letter(self, text: str, how: Mapping[str, Any]) -> Verdict:
        """By the letter; where none is named and the right option's value is given, by that."""
        graded = grade_letter(text, how["gold"], how["options"], how["rule"], how.get("choices", ()))
        if graded.cause is not Cause.NO_ANSWER or not how.get("value"):
            return graded
        by_value = self._scorer("mathematics")[1](text, {"gold": how["value"]})
        return by_value if by_value.is_right else graded

    def _scicode(self) -> tuple[str, Grade]:
        targets = scicode_targets(self._data) if self._data is not None else None
        if targets is None:
            reason = f"there is no {TARGETS} in the folder scicode of the data"
            return f"scicode 1 without {TARGETS}", lambda text, how: Verdict(Mark.NONE, reason, Cause.CHECK)
        steps = StepGrader(targets, find_sandbox())
        name = f"scicode 1, {steps.version}, sandbox {SANDBOX_VERSION}, {TARGETS} {file_digest([targets])[:16]}"
        return name, lambda text, how: steps.grade(text, how["step"], how["dependencies"], _earlier(how), how["tests"])


def _earlier(how: Mapping[str, Any]) -> list[str]:
    """The code of the steps before one, those that the data give among them."""
    codes = {**how["given"], **how.get("earlier", {})}
    return [codes[step] for step in how["before"]]


def _grade_mathvista(text: str, how: Mapping[str, Any]) -> Verdict:
    found = taken_answer(text, how["type"], how["choices"])
    return grade_mathvista(found, how["gold"], how["type"], how["choices"], how.get("precision"))


def _shortened(record: Record) -> list[str]:
    """The final response, where that is not the whole content of the answer."""
    answer = answer_of(record)
    response = None if answer is None else final_response(answer)
    return [response] if isinstance(response, str) and response != record["content"] else []


def score(items: Sequence[Item], answers: Path, verdicts: Path, scorers: Scorers) -> int:
    """Score what has no verdict yet, or one on another answer, by another scorer or for another item.

    A verdict that gave none because a check was slow or not to be had is tried again.

    Returns:
        How many were scored.
    """
    records, known = read_answers(answers).records, read_verdicts(verdicts).records
    waiting: list[tuple[Item, Record, str]] = []
    for item in filled(items, records):
        record = records.get(item.key)
        if record is None or record["question"] != item.question_mark:
            continue
        mark = digest([record, item.grading_mark, scorers.version(item, record), *_shortened(record)])
        earlier = known.get(item.key)
        if earlier is None or earlier["mark_of"] != mark or earlier["cause"] in (Cause.SLOW, Cause.CHECK):
            waiting.append((item, record, mark))
    if not waiting:
        return 0
    with RecordFile(verdicts) as file, progress("scoring", len(waiting), "answer") as step:

        def keep(item: Item, record: Record, mark: str, verdict: Verdict) -> None:
            file.add({
                "key": item.key, "mark": verdict.mark.value, "cause": verdict.cause.value, "reason": verdict.reason,
                "found": verdict.found, "parts": dict(verdict.parts), "scorer": scorers.version(item, record),
                "mark_of": mark,
            })  # fmt: skip
            step()

        judged: dict[str, tuple[Item, Record, str, Question]] = {}
        for item, record, mark in waiting:
            graded = scorers.grade(item, record)
            if isinstance(graded, Verdict):
                keep(item, record, mark, graded)
            else:
                judged[item.key] = item, record, mark, graded
        if judged:

            def done(asked: Asked) -> None:
                item, record, mark, _ = judged[asked.key]
                keep(item, record, mark, FORMS[item.grading["form"]].verdict_of(asked.answer, asked.problem))

            jobs = ((key, lambda question=question: question) for key, (*_, question) in judged.items())
            ask_models([scorers.judge], jobs, done)  # type: ignore[arg-type]
    return len(waiting)
