"""Verdicts on answers, by whatever name: one on the answer that is learned refuses its record, others are counted."""

from __future__ import annotations

from typing import Any

import pytest
from small_chats import chat, check_refused

from megatron_apriel.data.raw.records.conversion import parse_record, recognise

S1K = {
    "question": "Which colour?",
    "deepseek_thinking_trajectory": "It looks red.",
    "deepseek_attempt": "Red.",
    "gemini_thinking_trajectory": "It may be green.",
    "gemini_attempt": "Green.",
    "deepseek_grade_reason": "The answer is the right one.",
}
NUMINA = {"problem": "Which colour?", "solution": "It is red.", "answer": "red", "question_type": "MCQ"}
KODCODE = chat(question="Another one?", gpt_pass_percentage=0.0, r1_pass_sequence=[True])

BAD = {
    # on the answer, by its name
    **{
        name: chat(**{name: False})
        for name in (
            "tests_passed", "all_tests_passed", "is_passed", "execution_success", "compile_success", "math_verify",
            "extracted_answer_correct", "prediction_is_correct", "answer_verified", "is_valid_response",
            "task_completed", "passed_verification", "llm_judge",
        )
    },
    "response_correctness": chat(response_correctness=0),
    "answer_correctness": chat(answer_correctness="incorrect"),
    "judge_verdict": chat(judge_verdict="Incorrect"),
    "verification_status": chat(verification_status="failed"),
    "eval_result": chat(eval_result="wrong"),
    "tests_passed inside": chat(metadata={"checks": {"tests_passed": False}}),
    # on one of several answers, which is the one that is read
    "deepseek_grade": {**S1K, "deepseek_grade": "No", "gemini_grade": "Yes"},
    "r1_correctness": {**KODCODE, "r1_correctness": "False", "r1_solution": "Red."},
    "solution_is_valid": {**NUMINA, "problem_is_valid": "Yes", "solution_is_valid": "No"},
    "problem_is_valid": {**NUMINA, "problem_is_valid": "Incomplete", "solution_is_valid": "Yes"},
    "a solution without an end": {**NUMINA, "solution_is_valid": "Problem not solved"},
    # rewards and other flags
    "reward": chat(reward=0.0),
    "rewards": chat(rewards=[0, 0.0]),
    "binary_reward": chat(info={"binary_reward": False}),
    "failed": chat(failed=True),
    "liked": chat(liked=False),
    "quality": chat(quality="bad"),
    "do_not_train": chat(do_not_train=True),
    "to_train": chat(to_train=False),
    "advantage": chat(advantage=-0.5),
    "has_error": chat(has_error=True),
    "revision": {"instruction": "Which colour?", "answer": "Red.", "revision": "It is a deep red."},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_is_known_to_be_bad_is_refused(name: str) -> None:
    field = name.removesuffix(" inside").replace("a solution without an end", "solution_is_valid")
    check_refused(BAD[name], rf"field '[\w.]*{field}' ")


READ: dict[str, Any] = {
    "the grade of the other teacher": {**S1K, "deepseek_grade": "Yes", "gemini_grade": "No"},
    "a share of attempts": KODCODE,
    "a solution that is not the answer": chat(solution="It is green.", solution_is_valid="No", answer_seed="x"),
    "a question that is not the one of the record": chat(problem_is_valid="Incomplete"),
    "what is not an answer": chat(email_verified=False, format_correct=False, http_status="failed", url_valid=False),
    "an outcome that is an answer": chat(final_result="no", output_status="incomplete", answer_outcome=False),
    "good ones": chat(tests_passed=True, judge_verdict="correct", r1_correctness="True", reward=1.0, rewards=[0, 1]),
    "a reward of a model": chat(reward=-3.5),
    "a model of several sizes": chat(qwen_7b_correct=False),
    "a revision of the data": chat(revision="main", quality="good"),
    "which answer is right": chat(correct_answer=0, valid_answers=False, correct_response="no"),
    "a scale from 0": chat(correctness=0),
    "no verdict": chat(tests_passed=None, judge_verdict="", deepseek_grade=None),
}


@pytest.mark.parametrize("name", READ)
def test_other_verdicts_are_counted(name: str) -> None:
    shape = recognise(READ[name])
    assert shape is not None
    assert "ed" in parse_record(READ[name], shape).messages[-1]["content"]
