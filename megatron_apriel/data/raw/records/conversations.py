"""Turns put together into a conversation: system and tools, images, calls and results, what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from megatron_apriel.data.raw.documents import Conversation, ImageValue, Remarks
from megatron_apriel.data.raw.fields.envelopes import CALLING, REASONED
from megatron_apriel.data.raw.fields.meanings import (
    ANSWERS,
    CALLS,
    RECORD_REASONING,
    TURN_ID,
)
from megatron_apriel.data.raw.fields.taken import Fields, is_nothing
from megatron_apriel.data.raw.pictures.markers import LOOSELY_NUMBERED, check_markers, has_marker
from megatron_apriel.data.raw.pictures.places import (
    Pictures,
    Place,
    find_places,
    in_front,
    pictures_of,
    split_loose,
    split_named,
)
from megatron_apriel.data.raw.pictures.shown import place_shown
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.accounts import account
from megatron_apriel.data.raw.records.beside_turns import beside_turns, offered
from megatron_apriel.data.raw.turns.calls import (
    named_in_result,
    order_of_results,
    refuse_call_in_words,
    settle_calls,
)
from megatron_apriel.data.raw.turns.chat_markers import RESPONSE_CLOSING, RESPONSE_OPENING
from megatron_apriel.data.raw.turns.marks import check_mask, check_weights
from megatron_apriel.data.raw.turns.reasoning import taken_reasoning
from megatron_apriel.data.raw.turns.turn import Turn
from megatron_apriel.quantities import counted

_WITH_IMAGES = ("user", "tool_result")


def conversation(
    record: Fields, turns: list[Turn], most_values: int, *, markers: bool = False, whole: Fields | None = None
) -> Conversation:
    """The conversation of a record whose turns were read.

    Args:
        record: everything that is not a turn is taken out of it here.
        turns: in order.
        most_values: of JSON texts.
        markers: whether ``<image>`` is a marker even where there is no image.
        whole: the record that ``record`` is a part of, as a request is of a log.

    Raises:
        BadRecord: something does not fit, or would be left out.
    """
    check_weights(record)
    check_mask(record)
    beside = beside_turns(record, most_values)
    for turn in turns:
        if turn.tools:
            beside.tools[f"{turn.where}: tools"] = turn.tools
    turns = _with_system(_merged(turns), beside.systems)
    _add_reasoning(record, turns)
    pictures = pictures_of(record, most_values)
    _place_images(turns, pictures, markers=markers)
    turns = _in_order(turns)
    seen = any(isinstance(piece, Place) for turn in turns for piece in turn.pieces)
    for turn in turns:
        check_markers(turn.text, turn.where, pictures=seen, said=turn.role == "assistant")
    tools = offered(beside.tools)
    for turn in turns:
        settle_calls(turn.calls, tools, turn.where, most_values)
    messages = tuple(map(_message, turns))
    said = [turn for turn in turns if turn.role == "assistant"]
    if not said:
        raise BadRecord("no turn is the assistant's: there is nothing to learn")
    _check_answered(record, turns[-1])
    for turn in said:
        if not turn.calls:
            refuse_call_in_words(turn.text, tools, turn.where, most_values)
    learned = tuple(turn.learned is not False for turn in said)
    if not any(learned):
        raise BadRecord("no turn of the assistant is to be learned: its marks leave nothing")
    if beside.without_reasoning and any(turn.reasoning for turn in said):
        raise BadRecord(f"field {beside.without_reasoning!r} is false, and the assistant reasons")
    images: tuple[ImageValue, ...] = tuple(
        piece.image for turn in turns for piece in turn.pieces if isinstance(piece, Place) and piece.image is not None
    )
    shown = bool(turns[-1].role == "assistant" and turns[-1].reasoning)
    return Conversation(
        messages,
        tools,
        images,
        learned,
        Remarks(
            account(
                whole or record,
                [turn.text for turn in turns],
                images,
                unreasoned=turns[-1].role == "assistant" and not shown,
                offered=bool(tools),
            ),
            reasoning=shown,
            hidden_reasoning=sum(bool(turn.reasoning) for turn in said) - shown,
            unrecognised=any(turn.unrecognised for turn in said),
            marked=any(turn.learned is not None for turn in said),
        ),
    )


def _with_system(turns: list[Turn], systems: dict[str, str]) -> list[Turn]:
    """The turns behind the system turn that stands beside them, unless they begin with the same."""
    texts = list(dict.fromkeys(systems.values()))
    if not texts:
        return turns
    if len(texts) > 1:
        raise BadRecord(f"fields {' and '.join(systems)} hold different system turns")
    if turns and turns[0].role == "system" and turns[0].text.strip():
        if texts[0] not in turns[0].text:
            raise BadRecord(f"field {next(iter(systems))!r} holds another system turn than the first of the turns")
        return turns
    first = turns[1:] if turns and turns[0].role == "system" else turns
    return [Turn("system", "the system turn", [texts[0]]), *first]


def _merged(turns: list[Turn]) -> list[Turn]:
    """The turns with those of calls put into the turn of the assistant that makes them, and reasoning into the next."""
    result: list[Turn] = []
    thoughts: list[str] = []
    for turn in turns:
        if turn.role == REASONED:
            thoughts.append(turn.reasoning)
            continue
        if thoughts and turn.role not in ("assistant", CALLING):
            raise BadRecord(f"{turn.where}: a turn of the {turn.role} behind one of reasoning, the assistant's")
        if thoughts and turn.role == CALLING:
            result.append(Turn("assistant", turn.where, learned=turn.learned))
        if turn.role != CALLING:
            result.append(turn)
        if thoughts:
            result[-1].reasoning = "\n\n".join(filter(None, (*thoughts, result[-1].reasoning)))
            thoughts = []
        if turn.role != CALLING:
            continue
        if not result or result[-1].role != "assistant":
            result.append(Turn("assistant", turn.where, calls=turn.calls, learned=turn.learned))
        elif (result[-1].learned is not False) != (turn.learned is not False):
            raise BadRecord(f"{turn.where}: its calls and the words before them are marked differently")
        else:
            result[-1].calls += turn.calls
    if thoughts:
        raise BadRecord("the last turn only thinks, and says nothing")
    return result


def _add_reasoning(record: Fields, turns: list[Turn]) -> None:
    """Reasoning that stands beside the turns goes to the last of them; where an answer holds it already it is left."""
    held = [text for turn in turns for text in (turn.text, turn.reasoning)]
    names = [
        name
        for name in RECORD_REASONING.names
        if not isinstance(text := record.peek(name), str) or not any(text.strip() in one for one in held)
    ]
    reasoning = taken_reasoning(record, tuple(names), "field ")
    if not reasoning:
        return
    last = turns[-1]
    if last.role != "assistant" or last.reasoning:
        raise BadRecord("reasoning stands in a field of the record, and the last turn has another or is not an answer")
    last.reasoning, last.unrecognised = reasoning, False


def _check_answered(record: Fields, last: Turn) -> None:
    """Raise BadRecord for turns that end with a question whose answer stands beside them."""
    if last.role == "assistant":
        return
    for name in (*ANSWERS.names, *CALLS.names):
        if not is_nothing(record.peek(name)) and not isinstance(record.peek(name), bool):
            raise BadRecord(
                f"field {record.path(name)!r} may hold the answer to the last turn, which is one of the {last.role}: "
                f"give it a turn of its own, or --ignore {record.path(name)}"
            )


def _place_images(turns: list[Turn], pictures: Pictures, *, markers: bool) -> None:
    for turn in turns:
        if turn.role in _WITH_IMAGES:
            split_named(turn.pieces)
            turn.pictures = place_shown([turn.pieces], turn.pictures)
            split_loose([turn.pieces], turn.pictures)
        if turn.pictures.present and _placed([turn]) != turn.pictures.present:
            if not _has_place([turn]):
                turn.pieces[:0] = in_front(len(turn.pictures.present))
            find_places([turn.pieces], turn.pictures, markers=False)
    own = [turn for turn in turns if turn.role != "assistant" and not turn.pictures.present]
    if _placed(own) == pictures.present:
        pictures = Pictures()  # all of them stand in parts as well
    shown = [turn.pieces for turn in own if turn.role in _WITH_IMAGES]
    pictures = place_shown(shown, pictures)
    split_loose(shown, pictures)
    if pictures.present and not _has_place(own):
        if wrong := next((turn for turn in turns if turn.role == "assistant" and has_marker(turn.text)), None):
            raise BadRecord(
                f"{wrong.where}: an image in a turn of the assistant; images stand in turns of user or tool"
            )
        first = next((turn for turn in own if turn.role == "user"), None)
        if first is None:
            raise BadRecord(f"no place for {counted(len(pictures.present), 'image')}: there is no turn of the user")
        first.pieces[:0] = in_front(len(pictures.present))
    find_places([turn.pieces for turn in own], pictures, markers=markers)


def _has_place(turns: Sequence[Turn]) -> bool:
    """Whether anything says where images stand: a marker or a part."""
    pieces = [piece for turn in turns for piece in turn.pieces]
    return any(isinstance(one, Place) or has_marker(one) or LOOSELY_NUMBERED.search(one) for one in pieces)


def _placed(turns: Sequence[Turn]) -> list[ImageValue | None]:
    """The images that the parts of the turns bring themselves."""
    return [piece.image for turn in turns for piece in turn.pieces if isinstance(piece, Place)]


def _in_order(turns: list[Turn]) -> list[Turn]:
    """The turns with the results of parallel calls in the order of the calls."""
    result: list[Turn] = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        together = list(group)
        if role == "tool_result":
            before = result[-1].calls if result and result[-1].role == "assistant" else []
            _take_own_ids(together, {call.get("id") for call in before})
            _take_names_inside(together, before)
            if before:
                order = order_of_results(
                    before,
                    [turn.result_id for turn in together],
                    [turn.result_name for turn in together],
                    together[0].where,
                )
                together = [together[number] for number in order]
        result += together
    return result


def _take_names_inside(results: Sequence[Turn], calls: Sequence[Mapping[str, Any]]) -> None:
    """Results that say inside of their texts which of several calls they answer, all of them."""
    if len(calls) < 2 or not all(is_nothing(turn.result_id) and is_nothing(turn.result_name) for turn in results):
        return
    inside = [named_in_result(turn.text) for turn in results]
    known = [call.get("id") for call in calls], [call["function"]["name"] for call in calls]
    if all(one is not None and one in known[0] for one, _ in inside):
        for turn, (identity, _) in zip(results, inside, strict=True):
            turn.result_id = identity
    elif all(one in known[1] for _, one in inside):
        for turn, (_, name) in zip(results, inside, strict=True):
            turn.result_name = name


def _take_own_ids(results: Sequence[Turn], known: set[Any]) -> None:
    """Results that name their calls by their own ``id``, all of them."""
    own = [(turn, turn.fields, turn.fields.peek(TURN_ID.names[0])) for turn in results if turn.fields is not None]
    alone = len(own) == len(results) and all(is_nothing(turn.result_id) for turn in results)
    if alone and all(isinstance(identity, str) and identity in known for _, _, identity in own):
        for turn, fields, _ in own:
            turn.result_id = fields.take(*TURN_ID.names)


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": _content(turn)}
    if turn.role != "assistant":
        return message
    said: str = message["content"]
    if not said and not turn.calls:
        thought = "only thinks, and " if turn.reasoning else ""
        raise BadRecord(f"{turn.where}: the assistant {thought}says nothing")
    cut = RESPONSE_OPENING in said or RESPONSE_CLOSING in said or RESPONSE_CLOSING in turn.reasoning
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    elif said.startswith("<think>") or "</think>" in said.partition("<think>")[0]:
        cut = True
    if cut:
        raise BadRecord(f"{turn.where}: the answer holds tags of reasoning that servers would cut it at")
    if turn.calls:
        message["tool_calls"] = [{"function": call["function"]} for call in turn.calls]
    return message


def _content(turn: Turn) -> Any:
    """The content as the template reads it; a list of parts only where images stand in it."""
    if all(isinstance(piece, str) for piece in turn.pieces):
        return turn.text
    if turn.role not in _WITH_IMAGES:
        raise BadRecord(
            f"{turn.where}: an image in a turn of the {turn.role}; images stand in turns of user or tool_result"
        )
    # Neighbouring texts become one: the template joins them, and only whole control tokens are found and disarmed.
    parts: list[dict[str, str]] = []
    for text, group in groupby(turn.pieces, lambda piece: isinstance(piece, str)):
        if text:
            parts.append({"type": "text", "text": "".join(piece for piece in group if isinstance(piece, str))})
        else:
            parts += [{"type": "image"} for _ in group]
    return parts
