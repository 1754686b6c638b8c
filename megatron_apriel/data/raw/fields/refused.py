"""Fields that change the lesson and are not followed: what is refused by its name, and what by its text.

Names are written plain, as in ``meanings``. A field that a row of ``meanings`` reads is not looked for here.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from megatron_apriel.data.raw.fields.taken import Leftover, is_nothing
from megatron_apriel.data.raw.fields.value_kinds import is_meant
from megatron_apriel.data.raw.problems import BadRecord, way_out
from megatron_apriel.data.raw.reading import words_of


@dataclass(frozen=True)
class Refusal:
    """Fields that nothing here follows and that change what is learned.

    Attributes:
        levels: kinds of object, with spaces between; none for all.
        names: whole plain names.
        words: any of which in a name is enough.
        values: which are meant, a kind of ``value_kinds``.
        reason: ends the sentence "field 'x' ...".
        unless: words of names that mean something else, as ``box_office``.
    """

    levels: str
    names: str
    words: str
    values: str
    reason: str
    unless: str = ""

    def names_field(self, name: str, words: Set[str]) -> bool:
        """Whether a field of this plain name, made of these words, is one of them."""
        whole, parts, others = self._sets
        return (name in whole or not words.isdisjoint(parts)) and words.isdisjoint(others)

    @cached_property
    def _sets(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        return frozenset(self.names.split()), frozenset(self.words.split()), frozenset(self.unless.split())


REFUSED = (
    Refusal(
        "",
        "winner is_preferred",
        "chosen rejected preferred dispreferred preference kto better worse",
        "any",
        "is preference data: which answer is better is not learned from by imitation",
        "trial",
    ),
    Refusal(
        "record turn",
        "label labels",
        "",
        "marks",
        "is a label, as preference data has them: an answer that is known to be bad must not be imitated",
    ),
    Refusal(
        "record turn",
        "correct is_correct answer_correct is_good good is_accepted accepted approved desirable is_desirable thumbs_up "
        "passed success resolved solved is_solved successful is_successful is_success task_success liked is_liked "
        "upvoted",
        "",
        "no",
        "says that the answer is bad, and it would be imitated",
    ),
    Refusal(
        "record turn",
        "pass correctness verified is_verified validated is_validated answer_is_correct is_answer_correct "
        "final_answer_correct is_final_answer_correct response_correct response_is_correct is_response_correct "
        "solution_correct is_solution_correct prediction_correct is_prediction_correct model_correct output_correct",
        "",
        "denied",
        "says that the answer is bad, and it would be imitated",
    ),
    Refusal(
        "record turn",
        "incorrect is_incorrect wrong is_wrong is_bad failed is_failed has_failed thumbs_down deleted is_deleted "
        "discarded is_discarded was_cancelled is_spam spam hallucinated is_hallucinated is_hallucination "
        "has_hallucination",
        "",
        "yes",
        "says that the answer is bad, and it would be imitated",
    ),
    Refusal(
        "record turn",
        "feedback user_feedback rating user_rating thumbs thumb vote reaction quality response_quality answer_quality "
        "output_quality",
        "",
        "disliked",
        "says that the answer is bad, and it would be imitated",
    ),
    Refusal(
        "record",
        "reward rewards binary_reward outcome_reward task_reward total_reward final_reward episode_reward "
        "accuracy_reward correctness_reward",
        "",
        "nothing",
        "says that the answer earned nothing, and it would be imitated",
    ),
    Refusal(
        "record",
        "is_valid valid include included keep selected usable use_for_training use_in_training used_for_training "
        "for_training to_train is_train in_train_set in_training_set include_in_training train_on_record",
        "",
        "no",
        "says that the record is not to be learned",
    ),
    Refusal(
        "record",
        "ignore ignored skip skipped exclude excluded drop dropped filtered is_filtered duplicate is_duplicate hidden "
        "quarantined skip_training exclude_from_training excluded_from_training no_train no_training do_not_train "
        "not_for_training is_test is_validation holdout held_out",
        "",
        "yes",
        "says that the record is not to be learned",
    ),
    Refusal(
        "record",
        "status verdict decision review review_status annotation_status judgement judgment verification outcome grade",
        "",
        "thrown",
        "says that the record was thrown out",
    ),
    Refusal(
        "record",
        "answer",
        "",
        "not taken",
        "says that the record was thrown out",
    ),
    Refusal(
        "record",
        "error errors error_message error_code is_error has_error exception",
        "",
        "error",
        "says that the request failed: the answer may be a part of one, or none",
    ),
    Refusal(
        "record",
        "status_code http_status http_status_code response_status",
        "",
        "no success",
        "says that the request failed: the answer may be a part of one, or none",
    ),
    Refusal(
        "record turn",
        "finish_reason stop_reason done_reason incomplete_details",
        "",
        "cut",
        "says that the answer was cut off or held back, and its end would be learned as one",
    ),
    Refusal(
        "record turn",
        "truncated is_truncated was_truncated cut_off cutoff is_cutoff partial is_partial interrupted was_interrupted "
        "aborted",
        "",
        "cut off",
        "says that the answer was cut off or held back, and its end would be learned as one",
    ),
    Refusal(
        "record turn",
        "revised_response revised_answer revised_output revised_text edited_response edited_answer edited_output "
        "edited_text improved_response improved_answer improved_output correction corrections",
        "corrected",
        "media",
        "holds a better answer than the one that would be learned",
    ),
    Refusal(
        "record turn",
        "revision revisions",
        "",
        "words",
        "holds a better answer than the one that would be learned",
    ),
    Refusal(
        "turn part",
        "learnable is_learnable supervised is_supervised supervise target is_target need_eos_token",
        "",
        "no",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "turn part",
        "ignore ignored skip skipped exclude excluded is_context context_only frozen is_frozen",
        "",
        "yes",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "record",
        "train_on_inputs train_on_input train_on_prompt train_on_prompts train_on_user",
        "",
        "yes",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "record",
        "roles_to_train target_turn target_turns target_turn_index turns_to_train train_turns supervised_turns",
        "",
        "any",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "record",
        "",
        "train training trainable trained learn learned",
        "flags",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "record",
        "split data_split dataset_split partition",
        "",
        "split",
        "says that the record is held out of training",
    ),
    Refusal(
        "",
        "input_ids segments advantage advantages",
        "loss mask masks masked masking weight weights spans",
        "any",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "turn part",
        "",
        "train training trainable trained learn",
        "any",
        "says which words are learned, in a way that is not followed here",
    ),
    Refusal(
        "",
        "",
        "video videos audio audios sound sounds speech movie film films wav mp3 mp4",
        "media",
        "names a film or a sound, which are not read: the words would be learned without it",
        "title genre act game games",
    ),
    Refusal(
        "",
        "",
        "pdf pdfs",
        "pages",
        "names a document whose pages are not read: the words would be learned without them",
    ),
    Refusal(
        "",
        "objects object regions refs gt_boxes grounding",
        "bbox bboxes boxes box",
        "media",
        "holds objects or boxes that placeholders stand for, which are not filled in",
        "face faces office",
    ),
    Refusal(
        "record",
        "tool_choice response_format json_schema guided_json guided_regex guided_choice guided_grammar grammar "
        "structured_outputs response_schema output_schema chat_template reasoning_effort parallel_tool_calls "
        "function_call web_search_options mcp_servers",
        "",
        "set",
        "is a setting that the answers obey, and the chat format has no place for it",
    ),
    Refusal(
        "record",
        "image_positions",
        "",
        "any",
        "says where images stand in a plain text, and is not followed beside turns",
    ),
    Refusal(
        "record",
        "previous_response_id cached_content",
        "",
        "any",
        "names earlier turns, which are not here",
    ),
    Refusal(
        "call",
        "result results output outputs response observation",
        "",
        "any",
        "is the result of a call, which is read in a turn of its own",
    ),
    Refusal(
        "turn",
        "tool_results tool_result tool_outputs tool_output tool_responses function_results observations observation",
        "",
        "any",
        "is the result of a call, which is read in a turn of its own",
    ),
    Refusal(
        "turn",
        "attachments files attached_files uploaded_files",
        "",
        "true",
        "names what the turn was sent with, which is not read",
    ),
    Refusal(
        "image part",
        "crop crop_box rotation rotate flip mirror",
        "",
        "true",
        "changes the picture, in a way that is not followed here",
    ),
    Refusal(
        "turn",
        "refusal prefix channel recipient tool_calls invalid_tool_calls function_call function_calls tools functions "
        "images image",
        "",
        "true",
        "stands in a turn where it is not followed",
    ),
    Refusal("setting", "", "", "switched", "is a setting of another chat template, and is not followed here"),
)
"""What is refused by its name, where no row of ``meanings`` has read it."""

ORIGIN = "id ids link links url urls title channel author date language"
"""Last words of names that say from which film or sound a plain text was written down (YouTube-Commons)."""
INSIDE = ("cut", "no", "denied", "yes", "thrown", "disliked", "split", "nothing")
"""Kinds of values that are looked for inside of objects of the record that nothing else reads, as ``metadata``."""


def refuse_known(leftover: Leftover, answered: bool = True, values: Sequence[str] = ()) -> None:
    """Raise BadRecord for a field that is known to change the lesson.

    Args:
        leftover: the field.
        answered: whether its record has turns.
        values: kinds of values of the rows that are meant; without any all.
    """
    if is_nothing(leftover.value) or leftover.counted:
        return
    words = words_of(leftover.name)
    for rule in REFUSED:
        if (rule.levels and leftover.level not in rule.levels.split()) or (values and rule.values not in values):
            continue
        named = rule.names_field(leftover.name, words)
        if rule.values == "media" and not answered and leftover.name.rpartition("_")[2] in ORIGIN.split():
            continue  # what a text was taken from
        if (named or not rule.names + rule.words) and is_meant(rule.values, leftover.value, answered):
            raise BadRecord(f"field {leftover.path!r} {rule.reason}{way_out(leftover.path)}")
