"""Answers of transformers: what is asked is what was trained, and what is generated is divided as it comes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from megatron_apriel.data.corpus.chat import encode_chat
from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.errors import CheckpointError, DataError
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.answer import Answer, FinishReason, Part
from megatron_apriel.generate.conversation import Picture, Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.transformers_model import TransformersModel
from megatron_apriel.testing.rigged_models import TOOLS, red_image, write_rigged_model

GREEDY = Sampling(greedy=True, max_tokens=300)
CALL = ToolCall("weather", '{"city": "Oslo"}')


def picture() -> Picture:
    buffer = io.BytesIO()
    red_image().save(buffer, "PNG")
    return Picture.from_bytes(buffer.getvalue())


CONVERSATIONS = {
    "an answer": ([Turn("user", ("Two and two?",))], Answer("I add them.", "It is 4.", (), FinishReason.STOP)),
    "one more turn": (
        [Turn("user", ("Two and two?",)), Turn("assistant", ("It is 4.",)), Turn("user", ("And one?",))],
        Answer("One more.", "Then 5.", (), FinishReason.STOP),
    ),
    "an image": (
        [Turn("user", (picture(), "What is it?"))], Answer("I look.", "A red image.", (), FinishReason.STOP),
    ),
    "a call": ([Turn("user", ("Weather?",))], Answer("I ask.", "", (CALL,), FinishReason.CALLS)),
    "its result": (
        [Turn("user", ("Weather?",)), Turn("assistant", (), (CALL,)), Turn("tool", ("rain",))],
        Answer("I read it.", "It rains.", (), FinishReason.STOP),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(rigged: Path) -> TransformersModel:
    return TransformersModel(rigged, device="cpu")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_was_learned_is_answered(name: str, model: TransformersModel) -> None:
    turns, expected = CONVERSATIONS[name]
    tools = TOOLS if turns[0].text == "Weather?" else ()
    with model.stream(Question(turns, tools, GREEDY)) as stream:
        pieces = list(stream)
    answer = stream.answer
    assert (answer.reasoning, answer.content, answer.calls) == (expected.reasoning, expected.content, expected.calls)
    assert (answer.finish, answer.problem) == (expected.finish, "")
    for part, text in ((Part.REASONING, answer.reasoning), (Part.CONTENT, answer.content)):
        assert "".join(piece.text for piece in pieces if piece.part is part) == text
    assert len(pieces) > 3
    prompt = model.prompt(Question(turns, tools))["input_ids"]
    assert answer.prompt_tokens == prompt.shape[1] and answer.tokens is not None and answer.tokens > 20


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_is_asked_is_what_was_trained(name: str, model: TransformersModel, rigged: Path) -> None:
    """Control tokens that a person writes stay text, as they do in a corpus."""
    turns, _ = CONVERSATIONS[name]
    turns = [Turn("system", ("Be </s> [IMG] brief.",)), *turns]
    messages = [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                        for part in turn.content],
            "tool_calls": [{"function": {"name": call.name, "arguments": call.values()}} for call in turn.calls],
        }
        for turn in turns
    ]  # fmt: skip
    table = TokenTable.from_directory(rigged)
    assert table.images is not None
    grids = [
        patch_grid(one.height, one.width, table.images.image_size, table.images.patch_size)
        for turn in turns
        for one in turn.pictures
    ]
    trained = encode_chat(table, [*messages, {"role": "assistant", "content": "x"}], TOOLS, grids)
    asked = model.prompt(Question(turns, TOOLS))["input_ids"][0].tolist()
    assert trained.tokens.tolist()[: len(asked)] == asked
    assert trained.responses[len(asked) :].all() and not trained.responses[len(asked) - 1]


def test_greedy_tokens_are_the_likeliest(model: TransformersModel) -> None:
    question = Question([Turn("user", (picture(), "What is it?"))], (), GREEDY)
    prompt, ids, scores = model.greedy(question)
    assert prompt == model.prompt(question)["input_ids"][0].tolist()
    assert scores.argmax(-1).tolist() == ids and scores.shape[0] == len(ids)
    assert torch.allclose(torch.tensor(scores).exp().sum(-1), torch.ones(len(ids)))
    assert model.text_of(ids) == "I look.\n[BEGIN FINAL RESPONSE]\nA red image.\n[END FINAL RESPONSE]\n<|end|>\n</s>"
    assert model.prompt_text(question) == (
        "<s><|user|>\n[IMG]What is it?\n<|end|>\n<|assistant|>\nHere are my reasoning steps:\n"
    )


def test_the_most_tokens_end_an_answer(model: TransformersModel) -> None:
    answer = model.answer(Question([Turn("user", ("Two and two?",))], (), Sampling(greedy=True, max_tokens=3)))
    assert (answer.finish, answer.tokens, answer.content) == (FinishReason.LENGTH, 3, "")
    assert answer.problem == "there is no [BEGIN FINAL RESPONSE]: the answer ends in its reasoning"


def test_an_answer_can_be_stopped(model: TransformersModel) -> None:
    """The model is free for the next one."""
    with model.stream(Question([Turn("user", ("Two and two?",))], (), GREEDY)) as stream:
        first = next(iter(stream))
    assert stream.answer == Answer(first.text, finish=FinishReason.INTERRUPTED)
    assert model.answer(Question([Turn("user", ("Two and two?",))], (), GREEDY)).content == "It is 4."


def test_a_failure_while_writing_is_raised(model: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(model._model, "generate", fail)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        model.answer(Question([Turn("user", ("Two and two?",))]))


def test_sampling_is_that_of_the_directory_or_as_asked(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    ids = torch.ones(1, 3000, dtype=torch.long)
    monkeypatch.setattr(model._model, "generate", lambda **options: (given.append(options), ids)[1])
    for sampling in (Sampling(), Sampling(temperature=0.3, max_tokens=7), Sampling(greedy=True, temperature=0.3)):
        model.answer(Question([Turn("user", ("Hi",))], (), sampling))
    names = ("do_sample", "temperature", "max_new_tokens")
    prompt = model.prompt(Question([Turn("user", ("Hi",))]))["input_ids"].shape[1]
    assert [[options.get(name, "-") for name in names] for options in given] == [
        ["-", "-", 4096 - prompt], [True, 0.3, 7], [False, None, 4096 - prompt],
    ]  # fmt: skip


def test_a_conversation_that_is_too_long(model: TransformersModel) -> None:
    with pytest.raises(DataError, match=r"the conversation has \d,\d+ tokens, and .* reads 4,096"):
        model.answer(Question([Turn("user", ("a b " * 3000,))]))


def test_text_models(tmp_path: Path) -> None:
    conversations = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}]
    ]
    directory = write_rigged_model(tmp_path / "text", conversations, (), tower=False)
    model = TransformersModel(directory, device="cpu")
    answer = model.answer(Question([Turn("user", ("Hi",))], (), GREEDY))
    assert (answer.reasoning, answer.content, answer.finish) == ("Hm.", "So.", FinishReason.STOP)
    with pytest.raises(DataError, match="reads text alone, and there is an image"):
        model.answer(Question([Turn("user", (picture(), "What is it?"))]))
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"has no chat template(?s:.*)Copy the chat_template.jinja"):
        TransformersModel(directory, device="cpu")


def test_a_template_without_our_words_begins_with_the_content(rigged: Path, tmp_path: Path) -> None:
    shutil.copytree(rigged, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").write_text("{{ messages[0]['content'][0]['text'] }}")
    model = TransformersModel(tmp_path / "plain", device="cpu")
    answer = model.answer(Question([Turn("user", ("Hi",))], (), Sampling(greedy=True, max_tokens=3)))
    assert answer.reasoning == answer.problem == ""


def test_refused_turns(model: TransformersModel) -> None:
    with pytest.raises(
        DataError, match=r"the chat template of .* refuses the conversation: an image in a turn of role"
    ):
        model.prompt(Question([Turn("system", (picture(),))]))


def test_directories_that_transformers_does_not_read(rigged: Path, tmp_path: Path) -> None:
    from megatron_apriel.checkpoint.convert import convert, plan_conversion

    convert(plan_conversion(rigged, Kind.MISTRAL), tmp_path / "mistral")
    convert(plan_conversion(rigged, Kind.MEGATRON), tmp_path / "step_00000001")
    for name in ("mistral", "step_00000001"):
        with pytest.raises(CheckpointError, match=r"transformers does not read(?s:.*)convert_checkpoint.py .* --to hf"):
            TransformersModel(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        TransformersModel(tmp_path / "none")
    damaged = tmp_path / "damaged"
    shutil.copytree(rigged, damaged)
    (damaged / "processor_config.json").write_text(json.dumps({"image_processor": {"image_processor_type": "Eye"}}))
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        TransformersModel(damaged)


def test_a_question_without_room_in_memory_ends_no_other(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(CONVERSATIONS["an answer"][0], (), GREEDY)

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30.00 GiB.")

    with monkeypatch.context() as small:
        small.setattr(model._model, "generate", full)
        with pytest.raises(DataError, match=r"no memory for a conversation of \d+ tokens.*30\.00 GiB"):
            model.answer(question)
    assert model.answer(question).content == "It is 4."
