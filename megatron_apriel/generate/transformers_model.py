"""Answers from a Hugging Face directory by transformers: the reference for every server, on a GPU or a CPU.

Pictures go through the model's own processor, control tokens in what people write stay text, and sampling is that of
the directory's generation config. The only file of this room that imports torch.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

from megatron_apriel.data.raw.turns.chat_markers import REASONING_OPENING
from megatron_apriel.errors import CheckpointError, DataError, brief, listed, printable
from megatron_apriel.formats.kinds import Kind, recognise
from megatron_apriel.formats.other_tools import copied, refuse_leftovers
from megatron_apriel.formats.sidecars import missing_readers
from megatron_apriel.formats.tensor_files import TensorDirectory
from megatron_apriel.generate.answer import Answer, AnswerStream, FinishReason, Model, Part, Piece, finished
from megatron_apriel.generate.conversation import Picture, Question, Sampling, Turn
from megatron_apriel.generate.parsing import AnswerParser
from megatron_apriel.quantities import counted

_ENDING_TOKENS = 32
"""Of a prompt, which hold the words that open the reasoning."""


class TransformersModel(Model):
    """A model in a directory.

    Args:
        directory: in Hugging Face's form.
        device: ``cuda``, ``cuda:1``, ``cpu``; by default a GPU where there is one.
        dtype: name of a torch dtype; by default the weights' own on a GPU, and float32 on a CPU, which is faster there.

    Raises:
        CheckpointError: it is no such directory, or lacks its tokenizer or processor.
    """

    def __init__(self, directory: str | Path, *, device: str = "", dtype: str = "") -> None:
        self.directory = Path(directory)
        self.name = str(directory)
        _check_form(self.directory)
        import transformers

        if not sys.stderr.isatty():
            transformers.utils.logging.disable_progress_bar()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            config = transformers.AutoConfig.from_pretrained(self.directory)
            self.has_tower = hasattr(config, "vision_config")
            _check_readers(self.directory, self.has_tower)
            kind = transformers.AutoModelForImageTextToText if self.has_tower else transformers.AutoModelForCausalLM
            reader = transformers.AutoProcessor if self.has_tower else transformers.AutoTokenizer
            self._processor = reader.from_pretrained(self.directory)
            self._model, loaded = kind.from_pretrained(
                self.directory,
                dtype=getattr(torch, dtype) if dtype else ("auto" if self.device != "cpu" else torch.float32),
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(f"{self.name} cannot be loaded by transformers: {error}.") from None
        _check_whole(self.directory, loaded["missing_keys"])
        self._model = self._model.to(self.device).eval()
        self._tokenizer = self._processor.tokenizer if self.has_tower else self._processor
        if not (self._processor.chat_template or self._tokenizer.chat_template):
            raise CheckpointError(
                f"{self.name} has no chat template.",
                "Without it, nobody knows how the model expects a conversation.",
                "Copy the chat_template.jinja that belongs to the model into it.",
            )

    def close(self) -> None:
        """Let go of the weights."""
        self._model = None

    def stream(self, question: Question) -> AnswerStream:
        """Begin an answer; the model starts when its first piece is read."""
        return AnswerStream(self._read(question))

    def prompt(self, question: Question) -> Any:
        """What the model is given: ``input_ids`` [1, N], and the pixels of pictures.

        Raises:
            DataError: there are pictures, and the model reads none; or the chat template refuses the conversation.
        """
        return self._rendered(
            question, tokenize=True, sanitize_control_tokens=True, return_dict=True, return_tensors="pt"
        )

    def _rendered(self, question: Question, **options: Any) -> Any:
        import jinja2

        if not self.has_tower and any(turn.pictures for turn in question.turns):
            raise DataError(
                f"{self.name} reads text alone, and there is an image.", fix="Ask a model that has a vision tower."
            )
        try:
            return self._processor.apply_chat_template(
                [_message(turn, in_parts=self.has_tower) for turn in question.turns],
                tools=list(question.tools) or None,
                add_generation_prompt=True,
                **options,
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template of {self.name} refuses the conversation: {error}.") from None

    def _inputs(self, question: Question) -> Any:
        """The prompt where the model is, pixels in its dtype."""
        inputs = self.prompt(question).to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return inputs

    def greedy(self, question: Question) -> tuple[list[int], list[int], Any]:
        """Continue a prompt greedily, for comparisons.

        Returns:
            Tokens of the prompt; tokens of the answer, the one that ended it included; and a float32 array of
            log-probabilities [answer's tokens, vocabulary]. Raises DataError as :meth:`prompt` does.
        """
        inputs = self._inputs(question)
        prompt = inputs["input_ids"].shape[1]
        options = self._options(replace(question.sampling, greedy=True), self._room(prompt))
        options |= {"output_logits": True, "return_dict_in_generate": True}
        written = self._model.generate(**inputs, **options)
        scores = torch.stack([step[0].float().log_softmax(-1) for step in written.logits])
        ids = written.sequences[0].tolist()
        return ids[:prompt], ids[prompt:], scores.cpu().numpy()

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def prompt_text(self, question: Question) -> str:
        """The prompt as the chat template renders it, in which an image is one word."""
        return self._rendered(question, tokenize=False)

    def _read(self, question: Question) -> Generator[Piece, None, Answer]:
        inputs = self._inputs(question)
        ids = inputs["input_ids"]
        room = self._room(ids.shape[1])
        options = self._options(question.sampling, room)
        ending = self._tokenizer.decode(ids[0, -_ENDING_TOKENS:]).rstrip()
        parser = AnswerParser(Part.REASONING if ending.endswith(REASONING_OPENING) else Part.CONTENT)
        writing = _Writing(self._model, self._tokenizer, {**inputs, **options})
        try:
            for text in writing:
                yield from parser.feed(text)
                if parser.part is None:
                    break
        except torch.OutOfMemoryError as error:
            # A fault of this question, and shorter ones can be answered.
            raise DataError(
                f"{self.name} on {self.device} has no memory for a conversation of {ids.shape[1]:,} tokens and its"
                f" answer: {brief(str(error))}.",
                fix="Ask for fewer tokens, or serve the model by another engine.",
            ) from None
        finally:
            tokens = writing.stop()
        yield from parser.finish()
        ended = parser.part is None or (tokens and tokens[-1] in self._ends())
        answer = replace(parser.answer(), prompt_tokens=ids.shape[1], tokens=len(tokens))
        return finished(answer, FinishReason.STOP if ended else FinishReason.LENGTH)

    def _room(self, prompt_tokens: int) -> int:
        """Tokens that an answer may have. Raises DataError if there is none."""
        most = self._model.config.get_text_config().max_position_embeddings
        if prompt_tokens >= most:
            raise DataError(
                f"the conversation has {prompt_tokens:,} tokens, and {self.name} reads {most:,}.",
                fix="Begin another one, or give smaller images.",
            )
        return most - prompt_tokens

    def _options(self, sampling: Sampling, room: int) -> dict[str, Any]:
        options: dict[str, Any] = {"max_new_tokens": min(sampling.max_tokens or room, room)}
        if sampling.greedy:
            return options | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        return options | (chosen | {"do_sample": True} if chosen else {})

    def _ends(self) -> list[int]:
        ids = self._model.generation_config.eos_token_id
        return ids if isinstance(ids, list) else [ids]


class _Writing:
    """A model that writes in a thread of its own; iterate over its text, then :meth:`stop` it."""

    def __init__(self, model: Any, tokenizer: Any, inputs: dict[str, Any]) -> None:
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        self._text = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop, self._failure = Event(), None
        self._tokens: list[int] = []
        prompt_tokens = inputs["input_ids"].shape[1]

        def is_stopped(ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((ids.shape[0],), self._stop.is_set(), device=ids.device)

        def write() -> None:
            try:
                written = model.generate(
                    **inputs, streamer=self._text, stopping_criteria=StoppingCriteriaList([is_stopped])
                )
                self._tokens = written[0, prompt_tokens:].tolist()
            except BaseException as error:
                self._failure = error
            finally:
                self._text.end()

        self._thread = Thread(target=write, daemon=True)
        self._thread.start()

    def __iter__(self) -> Generator[str, None, None]:
        yield from self._text
        if self._failure is not None:
            raise self._failure

    def stop(self) -> list[int]:
        """Have it stop behind the token that it is at, and give the tokens that it wrote."""
        self._stop.set()
        self._thread.join()
        return self._tokens


def _message(turn: Turn, *, in_parts: bool) -> dict[str, Any]:
    """A turn as transformers takes it; processors want parts, and templates of text models know texts alone."""
    content: Any = turn.text
    if in_parts:
        content = [_pixels(part) if isinstance(part, Picture) else _words(part) for part in turn.content]
    message = {"role": turn.role, "content": content}
    if turn.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.values()}} for call in turn.calls
        ]
    return message


def _words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _pixels(picture: Picture) -> dict[str, Any]:
    from PIL import Image

    return {"type": "image", "image": Image.open(io.BytesIO(picture.data)).convert("RGB")}


def _check_form(directory: Path) -> None:
    """Raise CheckpointError if transformers does not read this form of checkpoint."""
    kind = recognise(directory)
    if kind is not Kind.HF:
        what = "Mistral's form" if kind is Kind.MISTRAL else "the form of a run's checkpoints"
        raise CheckpointError(
            f"{printable(directory)} is in {what}, which transformers does not read.",
            fix=f"Convert it: python tools/convert_checkpoint.py {printable(directory)} DIRECTORY --to hf",
        )
    if not any(directory.glob("*.safetensors")):
        refuse_leftovers(directory)


def _check_readers(directory: Path, tower: bool) -> None:
    """Raise CheckpointError where tokenizer or processor are missing: save_pretrained of a model writes none."""
    if lacking := missing_readers(directory, tower):
        raise CheckpointError(f"{printable(directory)} has no {lacking}.", fix=copied(directory))


def _check_whole(directory: Path, missing: Collection[str]) -> None:
    """Raise CheckpointError if weights were not in the files: transformers makes up random ones and goes on."""
    if missing:
        TensorDirectory.open(directory, "model")  # which names the tool, where the tensors' names tell it
        raise CheckpointError(
            f"{printable(directory)} lacks {counted(len(missing), 'weight')} ({listed(sorted(missing))}).",
            "transformers would fill them with random numbers.",
            "Give a whole set of files, with the names that transformers writes.",
        )
