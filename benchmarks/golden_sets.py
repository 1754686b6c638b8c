"""What ``golden_scores.py`` proves: each kind of golden set, what our scorers make of it, and what they must."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_apriel.generate.answer import FinishReason
from megatron_apriel.grading.conversations import ConversationGrader
from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.instructions import InstructionGrader
from megatron_apriel.grading.letters import aa_letter, grade_letter, letters_named, mmlu_pro_letter
from megatron_apriel.grading.math_answers import MathGrader
from megatron_apriel.grading.mmmu_pro import mmmu_pro_letter
from megatron_apriel.grading.named_option import named_option
from megatron_apriel.grading.numbers import whole_number
from megatron_apriel.grading.responses import answer_of_text, final_response
from megatron_apriel.grading.verdict import Cause, Mark, Verdict

KNOWN = {"886d7d39f6193bb1": {"letters": 5317, "rule": 5244, "none": 694}}
"""Of MMLU-Pro's golden outputs by the beginning of their SHA-256, with the figures of their authors' scripts."""
LINEAR = 15.0
"""Times the time that ten times the text may take."""


@dataclass(frozen=True)
class Proof:
    """One figure.

    Attributes:
        what: was counted.
        found, wanted: the figure and what it must be, in words; nothing where it is only shown.
        holds: whether it is what it must be.
        remarks: items to show.
    """

    what: str
    found: str
    wanted: str = ""
    holds: bool = True
    remarks: Sequence[str] = field(default_factory=tuple)


def equal(what: str, found: object, wanted: object, remarks: Sequence[str] = ()) -> Proof:
    """A figure that must be exactly so."""
    return Proof(what, str(found), str(wanted), found == wanted, remarks)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, compressed or not."""
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def mmlu_pro(golden: Path) -> Iterator[Proof]:
    """Every file ``mmlu_pro_*``: our letters beside those that the official script stored."""
    for file in sorted(golden.glob("mmlu_pro_*.jsonl*")):
        rows = rows_of(file)
        known = KNOWN.get(hashlib.sha256(file.read_bytes()).hexdigest()[:16], {})
        verdicts = [grade_letter(row["model_output"], row["answer"], len(row["options"]), "mmlu_pro") for row in rows]
        stored = [row["pred"] == row["answer"] for row in rows]
        right = [verdict.is_right for verdict in verdicts]
        parsed = [(verdict, row) for verdict, row in zip(verdicts, rows, strict=True) if verdict.found]
        # Earlier versions of the official script had no third step, and stored nothing where the first two found none.
        earlier = [row for _, row in parsed if row["pred"] is None]
        parsed = [(verdict, row) for verdict, row in parsed if row["pred"] is not None]
        other = [f"question {row['question_id']}: {one.found}, stored {row['pred']}" for one, row in parsed
                 if one.found != row["pred"]]  # fmt: skip
        name = file.name.partition(".")[0]
        yield _share(f"{name}: right by the stored letters", stored, rows, known.get("letters"))
        yield _share(f"{name}: right by the official rule, nothing drawn", right, rows, known.get("rule"))
        without = sum(verdict.cause is Cause.NO_ANSWER for verdict in verdicts)
        yield Proof(f"{name}: without an answer", str(without), str(known.get("none", "")),
                    without == known.get("none", without))  # fmt: skip
        if earlier:
            yield Proof(
                f"{name}: with a letter by the third step where an earlier script stored none", str(len(earlier))
            )
        yield equal(f"{name}: same letter as stored, of those with an answer", len(parsed) - len(other), len(parsed),
                    other)  # fmt: skip


def _share(what: str, right: Sequence[bool], rows: Sequence[Mapping[str, Any]], wanted: int | None) -> Proof:
    groups: dict[str, list[bool]] = defaultdict(list)
    for is_right, row in zip(right, rows, strict=True):
        groups[row["category"]].append(is_right)
    macro = sum(sum(group) / len(group) for group in groups.values()) / len(groups)
    found = f"{sum(right):,} of {len(right):,} = {sum(right) / len(right):.2%}, mean of categories {macro:.2%}"
    return Proof(what, found, "" if wanted is None else f"{wanted:,}", wanted in (None, sum(right)))


def ifbench(golden: Path) -> Iterator[Proof]:
    """Stored verdicts beside ours; instructions that need a tagger that is not there are shown, and count as wrong."""
    items, stored = rows_of(golden / "ifbench_inputs.jsonl.gz"), rows_of(golden / "ifbench_verdicts.jsonl")
    with InstructionGrader() as grader:
        verdicts = [
            grader.grade(one["response"], one["prompt"], one["instruction_id_list"], one["kwargs"]) for one in items
        ]
    unknown = {number for number, one in enumerate(verdicts) if one.cause is Cause.CHECK}
    for rule in ("strict", "loose"):
        same = [one.parts.get(rule) == row[rule] for one, row in zip(verdicts, stored, strict=True)]
        checked = [number for number in range(len(items)) if number not in unknown]
        yield equal(f"{rule}: same verdict on every instruction, of the prompts that can be checked",
                    sum(same[number] for number in checked), len(checked))  # fmt: skip
        ours = [bool(one.parts) and all(one.parts[rule]) for one in verdicts]
        theirs = [all(row[rule]) for row in stored]
        differs = [number for number in range(len(items)) if ours[number] != theirs[number]]
        remarks = [f"key {items[number]['key']}: stored {theirs[number]}; {verdicts[number].reason}"
                   for number in sorted({*unknown, *differs})]  # fmt: skip
        yield Proof(f"{rule}: same verdict on the prompt", f"{len(items) - len(differs)} of {len(items)}",
                    "all that can be checked", set(differs) <= unknown, remarks)  # fmt: skip
        yield Proof(f"{rule}: right", f"{sum(ours)} of {len(items)}, stored {sum(theirs)}")


def tau2(golden: Path) -> Iterator[Proof]:
    """No stored outputs: the tasks' own actions, and nothing done at all."""
    with ConversationGrader() as grader:
        tasks = grader.tasks()
        replayed = [grader.grade_gold(task) for task in tasks]
        silent = [grader.grade(task, []) for task in tasks]
    yield equal("telecom, base: solved by the task's own actions", _right(replayed), len(tasks))
    yield equal("telecom, base: solved by doing nothing", _right(silent), 0)
    kept = [one for one in silent if one.parts.get("ENV_ASSERTION") == 1.0]
    yield equal("telecom, base: would be solved by doing nothing without the ACTION part", len(kept), 20)
    without_action = sum(one.parts.get("ACTION") == 0.0 for one in kept)
    yield equal("telecom, base: of these wrong for the ACTION part", without_action, len(kept))


def _right(verdicts: Sequence[Verdict]) -> int:
    return sum(verdict.mark is Mark.RIGHT for verdict in verdicts)


def _trained(reasoning: str, response: str) -> str:
    return f"Here are my reasoning steps: {reasoning} [BEGIN FINAL RESPONSE] {response} [END FINAL RESPONSE]"


def answer_forms(golden: Path) -> Iterator[Proof]:
    """Answers to AIME's kind of question whose verdict a person knows; evalscope 1.14.1 scores half of the first 30."""
    plain = [f"So it is \\boxed{{{value}}}." for value in range(15)]
    boxed_reasoning = [_trained(f"maybe \\boxed{{{value + 1}}}", f"\\boxed{{{value}}}") for value in range(7)]
    two_boxes = [f"I think \\boxed{{{value + 1}}}. Wait. \\boxed{{{value}}}" for value in range(8)]
    with MathGrader() as grader:

        def graded(text: str, gold: str, finish: FinishReason = FinishReason.STOP) -> Verdict:
            response = final_response(answer_of_text(text, finish))
            return response if isinstance(response, Verdict) else grader.grade(response, gold)

        for what, texts in (("plain", plain), ("boxes in the reasoning", boxed_reasoning), ("two boxes", two_boxes)):
            yield equal(f"right: {what}", _right([graded(text, str(value)) for value, text in enumerate(texts)]),
                        len(texts))  # fmt: skip
        pairs = (
            ("070", "70"), ("70.0", "70"), ("x = 70", "70"), ("\\dfrac{9}{7}", "\\frac97"), ("1{,}000", "1000"),
            ("1,000", "1000"), ("70\\text{ cm}", "70"), ("70~\\mathrm{cm}^2", "70"), ("70^{\\circ}", "70"),
            ("50\\%", "50"),
            ("\\$50", "50"), ("3 \\times 10^5", "300000"), ("\\left(1, 2\\right)", "(1,2)"), ("[1, 2)", "[1,2)"),
            ("\\{2, 1\\}", "\\{1,2\\}"), ("2\\sqrt3", "\\sqrt{12}"), ("(x+1)^2", "x^2+2x+1"), ("\\textbf{(B)}", "B"),
        )  # fmt: skip
        yield equal("right: the same value in another spelling",
                    _right([graded(f"\\boxed{{{said}}}", gold) for said, gold in pairs]), len(pairs))  # fmt: skip
        wrongs = (("(2, 1)", "(1, 2)"), ("(1, 2)", "[1, 2]"), ("12,34", "1234"), ("70 or 71", "70"), ("-70", "70"),
                  ("0.333", "\\frac13"))  # fmt: skip
        wrong = [graded(f"\\boxed{{{said}}}", gold).mark is Mark.WRONG for said, gold in wrongs]
        yield equal("wrong: another value in a similar spelling", sum(wrong), len(wrongs))
        cut = ["Here are my reasoning steps: \\boxed{7}", _trained("", "\\boxed{7}").partition(" [END")[0], "\\boxed{7"]
        yield equal("neither right nor wrong: cut off, whatever box it has",
                    sum(graded(text, "7", FinishReason.LENGTH).cause is Cause.TRUNCATED for text in cut),
                    len(cut))  # fmt: skip
        bad = graded("\\boxed{3}", "\\frac{9}{")
        yield equal("an error of the data: gold that cannot be read", bad.cause.value, Cause.DATA.value)
    words = (("Answer: Because it is.\nAnswer: C", "C"), ("**Answer:** d", "D"), ("Answers vary.\nAnswer: (B)", "B"))
    yield equal("letters beside letters in words", [aa_letter(text) for text, _ in words], [one for _, one in words])
    marked = (("ANSWER: **B**\nAs in the USA.", "B"), ("ANSWER: $\\boxed{\\text{C}}$", "C"), ("**ANSWER: (D)**", "D"))
    yield equal("letters with marks around them", [named_option(text) for text, _ in marked],
                [one for _, one in marked])  # fmt: skip
    several = (("ANSWER: A, C", "AC"), ("ANSWER: C AND A", "AC"), ("**ANSWER:**\nAC.", "AC"), ("\\boxed{A, C}", "AC"))
    yield equal("several letters", [letters_named(text) for text, _ in several], [one for _, one in several])


_PIECES = (
    "A ", "{", "\\boxed{", "answer: ", "answer is (", "answer:" + " " * 50, "\\text{", "(A) ", "Answer:", "0",
    "<tool_calls>[]</tool_calls>", "[END ",
)  # fmt: skip


def linear_time(golden: Path) -> Iterator[Proof]:
    """Every extraction on texts that are made to be slow, and on ones ten times as long."""
    functions: dict[str, Callable[[str], object]] = {
        "MMLU-Pro's letters": mmlu_pro_letter, "Artificial Analysis' letters": aa_letter,
        "named options": lambda text: named_option(text, 3, ("red cars", "two red cars", "blue")),
        "several letters": letters_named,
        "MMMU-Pro's letters": lambda text: mmmu_pro_letter(text, ("red cars", "two red cars", "blue")),
        "boxes": final_answer, "whole numbers": whole_number,
        "final response": lambda text: final_response(answer_of_text(_trained("", text))),
    }  # fmt: skip
    for what, find in functions.items():
        ratios = {piece: _seconds(find, piece, 10**6) / _seconds(find, piece, 10**5) for piece in _PIECES}
        worst = max(ratios, key=lambda piece: ratios[piece])
        found = f"{ratios[worst]:.1f} ({worst.strip()!r} again and again)"
        yield Proof(f"{what}: times as long for 1,000,000 letters as for 100,000, the most of {len(_PIECES)} texts",
                    found, f"at most {LINEAR:g}", ratios[worst] <= LINEAR)  # fmt: skip


def _seconds(find: Callable[[str], object], piece: str, letters: int) -> float:
    text = piece * (letters // len(piece)) + "x"  # texts of two lengths end alike, and are read the same way
    best = float("inf")
    gc.disable()  # as timeit does: how long it takes depends on all else that the process holds
    try:
        for _ in range(3):
            begun = time.process_time()
            find(text)
            best = min(best, time.process_time() - begun)
    finally:
        gc.enable()
    return best + 1e-3  # what a clock and a busy machine add weighs more in short times


SETS: Mapping[str, Callable[[Path], Iterator[Proof]]] = {
    "mmlu_pro": mmlu_pro, "ifbench": ifbench, "tau2": tau2, "answer_forms": answer_forms, "linear_time": linear_time,
}  # fmt: skip
