#!/usr/bin/env python
"""Chat with a model in a terminal: one of a directory, by transformers, or one behind a server's address."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_apriel.command_line import CommandLine, count_above_zero
from megatron_apriel.errors import AprielError, ConfigError, DataError, ExitCode, ServerError, printable, run_command
from megatron_apriel.generate.answer import Answer, FinishReason, Model, Part, Piece
from megatron_apriel.generate.conversation import Picture, Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.opening import is_address, open_model
from megatron_apriel.generate.tool_files import read_tools
from megatron_apriel.inputs import SMALL_FILE_BYTES
from megatron_apriel.terminal import note, say, say_on

EXAMPLES = """
examples:
  # The result of a run, on a GPU where there is one:
  python tools/chat.py runs/quickstart/sft/final

  # One question about an image, and its answer alone, for a script:
  python tools/chat.py runs/sft/final --image chart.png --prompt "What grows?" --greedy --hide-reasoning > answer.txt

  # The same through a pipe; all of standard input is one question:
  cat question.txt | python tools/chat.py runs/sft/final

  # A model behind a server (vLLM, SGLang, llama-server, any that speaks OpenAI's protocol):
  python tools/chat.py http://localhost:8000
  python tools/chat.py https://api.example.com/v1 --served-name large --key-variable EXAMPLE_KEY

  # Tools that the model may call; you type what a call gives:
  python tools/chat.py runs/sft/final --tools tools.json

  # Several turns without typing them; what follows a call is its result:
  python tools/chat.py runs/sft/final --tools tools.json --prompt "Is it raining in Oslo?" --prompt "yes, all day"

in the chat:
  /image FILE    show an image with the next message; several may be given
  /new           begin another conversation
  /reasoning     show or hide the reasoning
  /help          these lines
  /quit          end, as Ctrl-D does
  A line that ends in \\ goes on in the next one; one that begins with // is sent with a single slash.
  Ctrl-C stops an answer. What came of it stays in the conversation.

tools:
  FILE is a list as OpenAI's protocol has it:
  [{"type": "function", "function": {"name": "weather", "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]

On a terminal the reasoning is faint. Where output goes elsewhere, standard output has the answer (and the calls of
tools) alone, and standard error the reasoning. The exit code is 0 if every question was answered, 1 if not (an answer
was cut off before its final response, or the model or the server failed), 2 for a wrong command line.
"""
_HELP = EXAMPLES[EXAMPLES.index("in the chat:") : EXAMPLES.index("\ntools:")].rstrip().split("\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = CommandLine(description=__doc__, epilog=EXAMPLES)
    result.add_argument("model", metavar="MODEL", help="Hugging Face directory, or http://HOST:PORT of a server")
    what = result.add_argument_group("what is asked")
    what.add_argument(
        "--prompt", action="append", metavar="TEXT", help="ask this and end; several are turns of one conversation"
    )
    what.add_argument(
        "--image", action="extend", nargs="+", default=[], metavar="FILE", help="show with the first message"
    )
    what.add_argument("--system", metavar="TEXT", help="how the model should behave, ahead of the conversation")
    what.add_argument("--tools", metavar="FILE.json", help="tools that the model may call")
    how = result.add_argument_group("how it answers")
    how.add_argument("--greedy", action="store_true", help="always the likeliest token (default: sampled as the model's"
                     " generation_config.json or the server says)")  # fmt: skip
    how.add_argument("--temperature", type=float, metavar="X", help="sample with this one instead, such as 0.6")
    how.add_argument("--seed", type=int, metavar="N", help="sample the same answer again")
    how.add_argument(
        "--max-tokens", type=count_above_zero, metavar="N", help="of an answer (default: what the model can read)"
    )
    how.add_argument("--hide-reasoning", action="store_true", help="show the final answer alone")
    where = result.add_argument_group("where it runs")
    where.add_argument("--device", default="", help="of a directory's model: cuda, cuda:1, cpu (default: a GPU if any)")
    where.add_argument("--served-name", default="", metavar="NAME", help="which model of a server that has several")
    where.add_argument(
        "--key-variable", default="", metavar="NAME", help="environment variable that holds the server's key"
    )
    return result


@dataclass
class Chat:
    """A conversation, and how it is shown.

    Attributes:
        model: that answers.
        question: its tools and sampling, and the turns so far.
        shows_reasoning: whether the reasoning is printed.
        pictures: shown with the next message.
    """

    model: Model
    question: Question
    shows_reasoning: bool = True
    pictures: list[Picture] = field(default_factory=list)

    def ask(self, *turns: Turn) -> Answer:
        """Print the answer to further turns, and keep both; if it fails, or nothing came of it, neither is kept."""
        question = replace(self.question, turns=[*self.question.turns, *turns])
        with self.model.stream(question) as stream:
            printed = dict.fromkeys(Part, "")
            try:
                for piece in stream:
                    self._print(piece, printed)
            except KeyboardInterrupt:
                if not on_terminal():
                    raise
                stream.close()
            answer = stream.answer
        # A server's answer without our markers turns out to be content when it is whole.
        self._print(Piece(Part.CONTENT, answer.content.removeprefix(printed[Part.CONTENT])), printed)
        if printed[Part.CONTENT]:
            say_on("\n")
        elif printed[Part.REASONING]:
            self._end_reasoning()
        if answer.content or answer.calls:
            self.question = replace(question, turns=[*question.turns, answer.turn])
        return answer

    def message(self, text: str) -> Turn:
        """What a person says, with the pictures that wait."""
        pictures, self.pictures = self.pictures, []
        return Turn("user", (*pictures, text))

    def _print(self, piece: Piece, printed: dict[Part, str]) -> None:
        if piece.part is Part.CALLS or not piece.text or (piece.part is Part.REASONING and not self.shows_reasoning):
            return
        if piece.part is Part.CONTENT and printed[Part.REASONING] and not printed[Part.CONTENT]:
            self._end_reasoning()
        printed[piece.part] += piece.text
        reasoning = piece.part is Part.REASONING
        say_on(piece.text, dim=reasoning, remark=reasoning and not sys.stdout.isatty())

    def _end_reasoning(self) -> None:
        say_on("\n\n" if sys.stdout.isatty() else "\n", remark=not sys.stdout.isatty())


def on_terminal() -> bool:
    """Whether a person types and reads."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def remark_on(answer: Answer, most: int | None) -> None:
    """Say what a person should know about an answer that is not whole."""
    if answer.finish is FinishReason.INTERRUPTED:
        note("(stopped)")
    elif answer.finish is FinishReason.LENGTH:
        way = f"--max-tokens {most}" if most else "the length that the model or the server allows"
        note(f"note: the answer was cut off at {way}")
    elif answer.finish is FinishReason.FILTERED:
        note("note: the server withheld the rest of the answer")
    if answer.problem:
        note(f"note: {answer.problem}")


def results_of(calls: tuple[ToolCall, ...], result: Callable[[ToolCall], str | None]) -> list[Turn] | None:
    """The turns with the results of calls; None where one is not given."""
    turns = []
    for call in calls:
        text = result(call)
        if text is None:
            return None
        turns.append(Turn("tool", (text,), result_of=call.id))
    return turns


def answer_all(chat: Chat, texts: list[str]) -> int:
    """Ask one text after another; those behind calls are their results. Returns the exit code."""
    waiting, code = list(texts), ExitCode.OK
    while waiting:
        answer = chat.ask(chat.message(waiting.pop(0)))
        while answer.calls:
            say(*answer.calls)
            results = results_of(answer.calls, lambda _: waiting.pop(0) if waiting else None)
            if results is None:
                return code
            answer = chat.ask(*results)
        remark_on(answer, chat.question.sampling.max_tokens)
        if not answer.content:
            note("the model gave no final response")
            code = ExitCode.FAILED
    return code


def converse(chat: Chat) -> int:
    """Let a person type until the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited, and earlier ones come back
    note(f"{chat.model.name}: type a message. /help lists commands, Ctrl-D ends.")
    while True:
        try:
            text = typed("> ")
        except EOFError:
            say("")
            return ExitCode.OK
        except KeyboardInterrupt:
            note("", "Ctrl-D or /quit ends the chat.")
            continue
        if text is None or not text.strip():
            continue
        if text.startswith("/") and not text.startswith("//"):
            if obey(chat, text):
                return ExitCode.OK
            continue
        exchange(chat, text.removeprefix("/") if text.startswith("//") else text)


def typed(sign: str) -> str:
    """A message, whose lines go on where they end in a backslash."""
    lines = [input(sign)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
    return "\n".join(lines)


def obey(chat: Chat, text: str) -> bool:
    """Follow a command; True if it ends the chat."""
    command, _, rest = text.strip().partition(" ")
    match command:
        case "/quit" | "/exit":
            return True
        case "/help":
            say(*_HELP)
        case "/new":
            chat.question = replace(
                chat.question, turns=[turn for turn in chat.question.turns if turn.role == "system"]
            )
            chat.pictures.clear()
            note("a new conversation")
        case "/reasoning":
            chat.shows_reasoning = not chat.shows_reasoning
            note(f"the reasoning is {'shown' if chat.shows_reasoning else 'hidden'}")
        case "/image" if rest.strip():
            try:
                chat.pictures.append(Picture.from_file(Path(rest.strip().strip("'\"")).expanduser()))
            except DataError as error:
                complain(error)
            else:
                last = chat.pictures[-1]
                note(f"{last.width} x {last.height} pixels, shown with the next message")
        case "/image":
            note("/image FILE: which file?")
        case _:
            note(f"there is no command {command}; /help lists them, and // sends a line that begins with a slash")
    return False


def exchange(chat: Chat, text: str) -> None:
    """An answer on the terminal, with the results of the calls it makes; a failure does not end the chat."""
    before, pictures = chat.question, list(chat.pictures)
    try:
        answer = chat.ask(chat.message(text))
        while answer.calls:
            results = results_of(answer.calls, typed_result)
            if results is None:
                note("", "The question and its calls are dropped.")
                chat.question = before
                return
            answer = chat.ask(*results)
    except (ServerError, DataError) as error:
        complain(error)
        chat.question, chat.pictures = before, pictures
        note("The message was not kept" + (", its images wait for the next one." if pictures else "."))
        return
    remark_on(answer, chat.question.sampling.max_tokens)
    if not answer.content:
        chat.question, chat.pictures = before, pictures
        note("The message was not kept.")


def typed_result(call: ToolCall) -> str | None:
    """What a person says that a call gives; None if nothing is."""
    say(f"the model calls {call}")
    try:
        return typed(f"result of {printable(call.name)}> ")
    except (EOFError, KeyboardInterrupt):
        return None


def complain(error: AprielError) -> None:
    """An error that does not end the chat."""
    note(*f"{type(error).__name__}: {error}".split("\n"))


def standard_input() -> str:
    """All of standard input. Raises DataError if it is no text, or too long for a question."""
    data = sys.stdin.buffer.read(SMALL_FILE_BYTES + 1)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not text in UTF-8: {error}.", fix="Give images with --image.") from None
    if len(data) > SMALL_FILE_BYTES or not text:
        said = f"more than {SMALL_FILE_BYTES:,} bytes" if text else "no text"
        raise DataError(f"standard input has {said}.", "It is one question.", "Give it there, or with --prompt.")
    return text


def main(argv: list[str] | None = None) -> int:
    """Chat; the exit code says whether every question was answered."""
    arguments = parser().parse_args(argv)
    if arguments.greedy and (arguments.temperature is not None or arguments.seed is not None):
        raise ConfigError("--greedy does not sample, and --temperature or --seed is given.", fix="Leave one out.")
    if arguments.temperature is not None and not 0 < arguments.temperature < 100:
        raise ConfigError(f"--temperature {arguments.temperature} is not between 0 and 100.", fix="For 0 say --greedy.")
    tools = read_tools(arguments.tools) if arguments.tools else ()
    pictures = [Picture.from_file(file) for file in arguments.image]
    interactive = on_terminal() and arguments.prompt is None
    texts = [] if interactive else arguments.prompt or [standard_input()]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sampling = Sampling(arguments.greedy, arguments.max_tokens, arguments.temperature, seed=arguments.seed)
    system = [Turn("system", (arguments.system,))] if arguments.system else []
    if sys.stderr.isatty() and not is_address(arguments.model):
        note(f"loading {arguments.model}")
    with open_model(
        arguments.model,
        served_name=arguments.served_name,
        key_variable=arguments.key_variable,
        device=arguments.device,
    ) as model:
        chat = Chat(model, Question(system, tools, sampling), not arguments.hide_reasoning, pictures)
        return converse(chat) if interactive else answer_all(chat, texts)


if __name__ == "__main__":
    sys.exit(run_command(main))
