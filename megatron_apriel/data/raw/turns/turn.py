"""A turn of a conversation, whatever its makers called its fields and its speaker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.raw.fields.envelopes import CALLING, OURS, REASONED, is_turn, opened
from megatron_apriel.data.raw.fields.meanings import (
    ASKED,
    CALL_NAME,
    CONTENT,
    MORE,
    PAIR_SYSTEM,
    PART_THINKING,
    REASONING,
    RESULT_CONTENT,
    RESULT_ID,
    RESULT_NAME,
    ROLE,
    SAID,
    SPEAKERS,
    TOOL_CALLS,
    TURN_IMAGES,
    TURN_TOOLS,
    TURN_TYPE,
)
from megatron_apriel.data.raw.fields.ordering import check_order
from megatron_apriel.data.raw.fields.taken import Fields, is_hollow, is_nothing, is_null, kind_of, text_of
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.pictures.places import Pictures, Pieces, pictures_of, rows_of
from megatron_apriel.data.raw.problems import BadRecord, names_shown
from megatron_apriel.data.raw.turns.calls import (
    Call,
    call_of,
    calls_in_text,
    calls_in_turn,
    calls_of,
    results_in_text,
    same_calls,
    tools_of,
)
from megatron_apriel.data.raw.turns.marks import is_learned
from megatron_apriel.data.raw.turns.parts import Content, as_text, content_of
from megatron_apriel.data.raw.turns.reasoning import (
    joined,
    looks_unrecognised,
    reasoning_text,
    split_reasoning,
    taken_reasoning,
)
from megatron_apriel.data.raw.turns.rendered import check_not_rendered, without_end
from megatron_apriel.data.raw.turns.transcripts import is_transcript, transcribed


@dataclass
class Turn:
    """A turn on its way to a message.

    Attributes:
        role: one of ``envelopes.ROLES``.
        where: names it in messages.
        pieces: its text, and the places of images in it.
        reasoning: of an assistant.
        calls: of an assistant.
        result_id, result_name: of a result, which call it answers.
        fields: of a result, whose own id may be that of its call.
        learned: what its marks say, or None.
        pictures: listed in the turn itself.
        tools: listed in a system turn.
        unrecognised: the answer looks as if it held more reasoning.
    """

    role: str
    where: str
    pieces: Pieces = field(default_factory=list)
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    result_id: Any = None
    result_name: Any = None
    fields: Fields | None = None
    learned: bool | None = None
    pictures: Pictures = field(default_factory=Pictures)
    tools: tuple[dict[str, Any], ...] = ()
    unrecognised: bool = False

    @property
    def text(self) -> str:
        return "".join(piece for piece in self.pieces if isinstance(piece, str))


def turns_of(value: Any, record: Fields, path: str, most_values: int) -> list[Turn]:
    """The turns that a field of a record lists.

    Args:
        value: a list of objects, of pairs of texts, or of texts in turn; its JSON text; a transcript; one object; an
            object of lists.
        record: it stands in.
        path: of the field.
        most_values: of a JSON text.

    Raises:
        BadRecord: it is none of these, or a turn is not understood.
    """
    if isinstance(value, str):
        value = transcribed(value) if is_transcript(value) else parsed_json(value, most_values, f"field {path!r}")
    if isinstance(value, Mapping):
        value = rows_of(value) or [value]
    if not isinstance(value, list) or not value:
        raise BadRecord(f"field {path!r} is not a list of turns")
    if all(isinstance(one, list) and one and all(map(is_turn, one)) for one in value):
        if len(value) > 1:
            raise BadRecord(f"field {path!r} lists {len(value)} conversations: give each a record of its own")
        value = value[0]
    if all(isinstance(one, str) for one in value) and len(value) > 1:
        return [
            _finished(Turn(role, f"turn {number}"), content_of(text, record, path, path, most_values), record,
                      most_values)
            for number, (role, text) in enumerate(zip(_speakers(record, len(value)), value, strict=True), 1)
        ]  # fmt: skip
    check_order(record.kept(value, path), path)
    turns: list[Turn] = []
    for number, one in enumerate(value, 1):
        where = f"turn {number}"
        if _is_pair(one) and one[0].strip().lower() in OURS:
            turns += read_turn(record.inner({"role": one[0], "content": one[1]}, "turn", path), where, most_values)
        elif _is_pair(one):
            turns += pair_turns(one[0], one[1], record, path, where, most_values)
        elif isinstance(one, Mapping):
            turns += read_turn(record.inner(one, "turn", path), where, most_values)
        else:
            raise BadRecord(f"{where} of field {path!r} is not an object, but {kind_of(one)}")
    return turns


def _speakers(record: Fields, count: int) -> list[str]:
    """Whose the texts of a list are: the user's and the assistant's in turn, or as a list beside them says."""
    in_turn = [("user", "assistant")[number % 2] for number in range(count)]
    name = next((name for name in SPEAKERS.names if isinstance(record.peek(name), list) and name in record), "")
    if not name:
        return in_turn
    given = record.peek(name)
    roles = [_ours(record, one) for one in given]
    if len(given) == count and None not in roles:
        record.take(name)
        return [role for role in roles if role is not None]
    if len(given) != count or given != [given[number % 2] for number in range(count)] or len(set(map(str, given))) != 2:
        raise BadRecord(f"field {record.path(name)!r} does not say that two speak in turn; give each turn its role")
    return in_turn


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def pair_turns(asked: Any, said: Any, owner: Fields, path: str, where: str, most_values: int) -> list[Turn]:
    """A question and its answer as two turns; nothing asked makes no turn."""
    turns = []
    if not is_nothing(asked):
        turns.append(
            _finished(Turn("user", where), content_of(asked, owner, path, where, most_values), owner, most_values)
        )
    answer = content_of(said, owner, path, where, most_values)
    return [*turns, _finished(Turn("assistant", where), answer, owner, most_values)]


def read_turn(turn: Fields, where: str, most_values: int, role: str | None = None) -> list[Turn]:
    """The turns of one object: itself, the halves of a pair, or the results that it holds.

    Args:
        turn: the object, or an envelope of it.
        where: names it in messages.
        most_values: of a JSON text.
        role: that it has if it does not say so.

    Raises:
        BadRecord: it is not understood.
    """
    turn, hint = opened(turn)
    speaks = hint is not None or any(name in turn for name in ROLE.names)
    if not speaks and any(name in turn for name in (*ASKED.names, *SAID.names)):
        return _read_pair(turn, where, most_values)
    role = _role_of(turn, where, hint or role)
    learned = is_learned(turn, "assistant" if role in (CALLING, REASONED) else role, where)
    if role == REASONED:
        return _thought(turn, where)
    name = _content_name(turn, role)
    path, given = turn.path(name), turn.peek(name)
    value = turn.take(*CONTENT.names, *(RESULT_CONTENT.names if role == "tool_result" else ()))
    result = Turn(role, where, learned=learned)
    if role == "assistant":
        result.reasoning = taken_reasoning(turn, REASONING.names, f"{where}: ")
    if role in ("assistant", CALLING):
        result.calls = _calls(turn, where, most_values)
        _add_more(turn, result, most_values)
    if role == CALLING and value is None and not result.calls and any(name in turn for name in CALL_NAME.names):
        result.calls = [call_of(turn, where, most_values)]
    if role == "tool_result":
        identity, result.result_name = turn.take(*RESULT_ID.names), turn.take(*RESULT_NAME.names)
        result.result_id = identity[0] if isinstance(identity, list) and len(identity) == 1 else identity
        result.fields, value = turn, as_text(value)
    if role == "system" and any(name in turn for name in TURN_TOOLS.names):
        offered = turn.taken_name(*TURN_TOOLS.names)
        result.tools = tools_of(turn.take(*TURN_TOOLS.names), f"{where}: {offered}", most_values)
    if role in ("user", "tool_result"):
        result.pictures = _pictures(turn, most_values)
    for empty in (*TOOL_CALLS.names, *TURN_TOOLS.names, *TURN_IMAGES.names, *REASONING.names):
        if _is_lacking(turn.peek(empty)):
            turn.take(empty)  # as a table has it
    if is_null(given) and not result.calls and (name == "value" or name not in turn.names()):
        raise BadRecord(f"{where}: {name} is missing; the turn's fields: {names_shown(turn.names())}")
    if role == CALLING and isinstance(value, list | Mapping):
        result.calls += calls_of(value, turn, path, where, most_values)
        return [result]
    content = content_of(value, turn, path, where, most_values)
    results = [
        Turn("tool_result", where, pieces=inner.pieces, result_id=identity, result_name=function)
        for inner, identity, function in content.results
    ]
    if results:
        content.results = []
        own = [result] if any(content.pieces) or content.calls or result.pictures.present else []
        return [*results, *(_finished(one, content, turn, most_values) for one in own)]
    texts = results_in_text(_plain_text(content)) if role in ("tool_result", "user") else []
    if texts and not result.pictures.present:
        return [
            Turn("tool_result", where, [text], "", [], result.result_id, result.result_name, result.fields)
            for text in texts
        ]
    return [_finished(result, content, turn, most_values)]


def _thought(turn: Fields, where: str) -> list[Turn]:
    """A turn of reasoning; none where nothing of it was given, as of a model that keeps its own."""
    value = turn.take(*CONTENT.names, *PART_THINKING.names)
    text = "" if value is None else reasoning_text(value, f"{where}: reasoning")
    return [Turn(REASONED, where, reasoning=text.strip())] if text.strip() else []


def _add_more(turn: Fields, result: Turn, most_values: int) -> None:
    """Reasoning and calls that LangChain keeps beside the turn, where the turn itself has none."""
    path, value = turn.path(MORE.names[0]), turn.peek(MORE.names[0])
    if not isinstance(value, Mapping):
        return
    turn.take(*MORE.names)
    more = turn.inner(value, "turn", path)
    reasoning = taken_reasoning(more, REASONING.names, f"{result.where}: ")
    result.reasoning = joined(result.reasoning, reasoning, result.where)
    calls = _calls(more, result.where, most_values)
    if calls and result.calls and not same_calls(calls, result.calls):
        raise BadRecord(f"{result.where}: other calls in {path} than in the turn itself")
    result.calls = result.calls or calls
    for empty in (*TOOL_CALLS.names, *REASONING.names):
        if _is_lacking(more.peek(empty)):
            more.take(empty)


def _plain_text(content: Content) -> str:
    """The text of a content without images; nothing where it has one."""
    return "".join(content.pieces) if all(isinstance(one, str) for one in content.pieces) else ""  # type: ignore[arg-type]


def _read_pair(turn: Fields, where: str, most_values: int) -> list[Turn]:
    turns = []
    system = turn.take(*PAIR_SYSTEM.names)
    if system is not None:
        turns.append(Turn("system", where, [text_of(system, f"{where}: system")]))
    asked_path, said_path = turn.taken_name(*ASKED.names), turn.taken_name(*SAID.names)
    learned = is_learned(turn, "assistant", where)
    pictures = _pictures(turn, most_values)
    asked, said = turn.take(*ASKED.names), turn.take(*SAID.names)
    reasoning = taken_reasoning(turn, REASONING.names, f"{where}: ")
    if (asked is None) != (said is None):
        _check_whole(turn, where)
    if asked is not None:
        content = content_of(asked, turn, asked_path, where, most_values)
        turns.append(_finished(Turn("user", where, pictures=pictures), content, turn, most_values))
    if said is not None:
        content = content_of(said, turn, said_path, where, most_values)
        answer = Turn("assistant", where, reasoning=reasoning, learned=learned)
        turns.append(_finished(answer, content, turn, most_values))
    return turns


def _check_whole(turn: Fields, where: str) -> None:
    """Raise BadRecord for half a pair beside words that nobody reads: they may be its other half."""
    for name in turn.untaken():
        value = turn.peek(name)
        if isinstance(value, str) and " " in value.strip():
            raise BadRecord(
                f"{where} has one half of a pair, and field {turn.path(name)!r} may be the other: --map "
                f"{turn.path(name)}=user or =assistant reads it; --ignore {turn.path(name)} reads on without it"
            )


def _content_name(turn: Fields, role: str) -> str:
    """The field that the content stands in; of a turn without one, that which it should have."""
    usual = "value" if "from" in turn.names() else "content"
    names = (*CONTENT.names, *(RESULT_CONTENT.names if role == "tool_result" else ()))
    there = [name for name in names if name in turn.names()]
    return next((name for name in there if name in turn), next(iter(there), usual))


def _role_of(turn: Fields, where: str, hint: str | None) -> str:
    name = turn.taken_name(*ROLE.names).rpartition(".")[2]
    role = turn.take(*ROLE.names)
    if isinstance(role, str):
        if (ours := _ours(turn, role)) is not None:
            return ours
    elif role is None and hint is not None:
        return hint
    elif role is None and isinstance(kind := turn.peek(TURN_TYPE.names[0]), str):
        raise BadRecord(f"{where}: a turn of type {kind!r} without a role; known: {', '.join(OURS)}")
    kind = "speaker" if name == "from" else "role"
    raise BadRecord(f"{where}: unknown {kind} {role!r}; known: {', '.join(OURS)}; --map role:THEIRS=OURS names others")


def _ours(turn: Fields, speaker: Any) -> str | None:
    """Our role for somebody's name of a speaker, or None."""
    plain = speaker.strip().lower() if isinstance(speaker, str) else ""
    return turn.reading.roles.get(plain) or OURS.get(plain.replace("-", "_").replace(" ", "_"))


def _calls(turn: Fields, where: str, most_values: int) -> list[Call]:
    given = [name for name in TOOL_CALLS.names if not _is_lacking(turn.peek(name))]
    if len(given) > 1:
        raise BadRecord(f"{where}: {' and '.join(given)} in one turn")
    if not given:
        return []
    path = turn.path(given[0])
    return calls_of(turn.take(given[0]), turn, path, where, most_values)


def _is_lacking(value: Any) -> bool:
    """Whether a field says nothing, be it by nulls in the objects that a table gives to every turn."""
    return is_nothing(value) or is_hollow(value, is_null)


def _pictures(turn: Fields, most_values: int) -> Pictures:
    return pictures_of(turn, most_values) if any(name in turn for name in TURN_IMAGES.names) else Pictures()


def _finished(turn: Turn, content: Content, owner: Fields, most_values: int) -> Turn:
    """The turn with its content: an assistant's is separated into reasoning, answer and calls."""
    if content.results:
        raise BadRecord(f"{turn.where}: a part with a result in a turn of the {turn.role}")
    turn.pieces = content.pieces
    check_not_rendered(turn.text, turn.where)
    if turn.role not in ("assistant", CALLING):
        if content.thoughts or content.calls:
            raise BadRecord(f"{turn.where}: reasoning or a call in a turn of the {turn.role}")
        return turn
    if not all(isinstance(piece, str) for piece in turn.pieces):
        return turn  # refused with the images of others
    if content.calls and turn.calls and not same_calls(content.calls, turn.calls):
        raise BadRecord(f"{turn.where}: other calls in its parts than in its field")
    turn.calls = turn.calls or content.calls
    text = turn.text
    if turn.role == CALLING:
        turn.calls += calls_in_turn(text, owner, turn.where, most_values) if text.strip() else []
        turn.pieces = []
        if not turn.calls:
            raise BadRecord(f"{turn.where}: a turn of calls holds none")
        return turn
    reasoning, answer = split_reasoning(without_end(text), turn.where)
    if f"{answer}\n".startswith(f"{turn.reasoning}\n"):  # as SWE-agent keeps what it says before a call once more
        turn.reasoning = ""
    apart = joined(turn.reasoning, "\n\n".join(content.thoughts).strip(), turn.where)
    turn.reasoning = joined(apart, reasoning, turn.where)
    answer, calls = calls_in_text(answer, owner, turn.where, most_values)
    if calls and turn.calls:
        raise BadRecord(f"{turn.where}: tool calls in a field and in the text as well")
    turn.calls += calls
    turn.pieces = [answer] if answer else []
    turn.unrecognised = not turn.reasoning and looks_unrecognised(answer)
    return turn
