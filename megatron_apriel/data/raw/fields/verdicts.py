"""Fields that say of an answer that it is bad, by the words that their names are made of.

``deepseek_grade``, ``r1_correctness``, ``solution_is_valid`` and ``all_tests_passed`` are a verdict and what it is on.
On whose answer is found out from the other fields: a record of two teachers has a grade for each, and learns from one.
The names that stand alone, as ``is_correct``, are rows of ``refused``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_apriel.data.raw.fields.taken import Fields, Leftover, leaves
from megatron_apriel.data.raw.problems import BadRecord, way_out
from megatron_apriel.data.raw.reading import plain_name


def _words(spelled: str) -> frozenset[str]:
    return frozenset(spelled.split())


_TRUTHS = _words("correct correctness passed pass")
"""Of an answer: false says that it is bad."""
_STATES = _words(
    "valid validity verified success successful succeeded solved resolved accepted approved achieved completed"
)
"""Of anything: false says that it is bad where it is one of an answer."""
_JUDGED = _words("grade graded verdict judgement judgment")
_CHECKS = _words("judge verify verification")
_OUTCOMES = _words("result outcome status")
"""Of anything, and its values may be answers themselves, as yes and no."""
_ANSWER = _words(
    "answer answers solution response output completion final generation generated prediction predicted model "
    "assistant extracted code"
)
_WORK = _words(
    "test tests unit all hidden public private execution exec compile compilation build overall reasoning trace cot "
    "llm verifier math task goal rule eval evaluation run exit"
)
"""What is done with an answer to judge it."""
_ADJECTIVES = _words("correct valid verified accepted approved successful")
"""Before a noun they say which one is meant, as in ``correct_answer``."""
_ASKED = _words("problem question prompt instruction query")
_LITTLE = _words("is was are has been the")
_OTHER = _words(
    "rate percentage percent ratio count num number sequence threshold score scores reason reasons explanation type at "
    "time method id original previous first initial old seed format language trial trials"
)
"""Words of names that say something about a verdict, or of something else than the answer."""
_ABOUT = ("reason", "reasons", "explanation", "type", "id", "model", "name")
"""Last words of the names of texts that are no answers themselves."""
_BAD = _words(
    "false no incorrect wrong fail failed failure invalid reject rejected incomplete bad unsolved not_solved "
    "problem_not_solved unresolved not_correct"
)
_NO_OUTCOME = _words("false no bad incomplete")


def check_verdicts(record: Fields, said: Sequence[str]) -> None:
    """Raise BadRecord for a field that says that the answer which is read is bad.

    Args:
        record: after it was read.
        said: texts of its turns.
    """
    left = [one for one in record.leftovers() if one.level == "record" and not one.counted]
    unread = [plain_name(one.name) for one in left if _is_unread(one, said)]
    names = {one.name for one in left}
    read = {name for name in record.names() if name not in names}
    for leftover in left:
        for path, name, value in leaves(leftover, record.reading.ignored):
            inside = path != leftover.path
            if _is_bad(name.rpartition(".")[2], value, read, unread if not inside else [], alone=not inside):
                raise BadRecord(f"field {path!r} says that the answer is bad, and it would be imitated{way_out(path)}")


def _is_unread(leftover: Leftover, said: Sequence[str]) -> bool:
    """Whether a field holds a text that may be another answer."""
    text = leftover.value
    if not isinstance(text, str) or leftover.name.rpartition("_")[2] in (*_ABOUT, *_JUDGED, *_TRUTHS, *_STATES):
        return False
    return bool(text.strip()) and not any(text.strip() in turn for turn in said)


def _is_bad(name: str, value: Any, read: set[str], unread: Sequence[str], *, alone: bool) -> bool:
    words = [word for word in plain_name(name).split("_") if word not in _LITTLE]
    kinds = [word for word in words if word in _TRUTHS | _STATES | _JUDGED | _CHECKS | _OUTCOMES]
    subject = [word for word in words if word not in kinds]
    if not kinds or not _OTHER.isdisjoint(words) or not _denies(value, set(kinds)):
        return False
    if not subject:  # a rating of 0 is a number of a scale there
        return len(kinds) > 1 or (kinds[0] in _TRUTHS and (value is False or isinstance(value, str)))
    states = set(kinds) <= _STATES
    if name.startswith(words[0]) and words[0] in _ADJECTIVES:
        return False
    if states and set(subject) <= _ASKED:
        return alone and "_".join(subject) in read
    if set(subject) <= _ANSWER | _WORK:
        return not (states and "_".join(subject) in unread)
    by_one = len(subject) == 1 and subject[0].isalnum() and alone and not _TRUTHS.union(_JUDGED).isdisjoint(kinds)
    return by_one and not any(text.startswith(f"{subject[0]}_") for text in unread)


def _denies(value: Any, kinds: set[str]) -> bool:
    only_outcome = kinds <= _OUTCOMES
    if isinstance(value, str):
        word = plain_name(value.strip().lower())
        return word in _BAD and not (only_outcome and word in _NO_OUTCOME)
    if value is False:
        return not only_outcome
    return isinstance(value, int | float) and value == 0 and not kinds.isdisjoint(_TRUTHS | _STATES)
