"""What an engine is: a program that serves a model in OpenAI's protocol, and how to start and ask it.

A new engine is a class in a file of this folder and a line in ``table.py``; the command line, the wait until it answers
and the comparison with transformers are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.conversation import Question


@dataclass(frozen=True)
class Service:
    """A model to be served, and how.

    Attributes:
        directory: of the model.
        kind: its form.
        architecture: its shapes; without a tower it reads no images.
        name: that clients ask for.
        host, port: where.
        gpus: that the model is divided over; 0 serves on the CPU.
        dtype: name of the torch dtype that is computed in.
        context: most tokens of a conversation.
        further: options for the program, as they are.
    """

    directory: Path
    kind: Kind
    architecture: Architecture
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    gpus: int = 0
    dtype: str = "float32"
    context: int = 4096
    further: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Of the protocol, for a client on this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


@dataclass(frozen=True)
class Launch:
    """A program to start.

    Attributes:
        command: the program and its arguments.
        variables: of its environment, beside those of the caller.
        remarks: what a person should know of this choice, a sentence each.
        called: the program's name in messages, where that of its file says nothing.
    """

    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    called: str = ""

    @property
    def name(self) -> str:
        """The program's, for messages."""
        return self.called or Path(self.command[0]).name


@dataclass(frozen=True)
class Asked:
    """A question of the comparison, as the reference puts it.

    Attributes:
        name: for the table.
        question: asked greedily, with the most tokens of its answer in its sampling.
        prompt_ids: tokens of the reference's prompt, those of images included.
        prompt_text: the same before images became tokens of their own.
    """

    name: str
    question: Question
    prompt_ids: tuple[int, ...]
    prompt_text: str


@dataclass(frozen=True)
class GreedyReply:
    """What an engine answered.

    Attributes:
        prompt_ids: tokens of its prompt; None where it does not return them.
        ids: tokens of its answer, the one that ended it included; None where it does not return them.
        text: of the answer, where ``ids`` is None; as in :attr:`~megatron_apriel.generate.answer.Answer.text`.
    """

    prompt_ids: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None
    text: str = ""


class Engine(ABC):
    """A program that serves models.

    Attributes:
        name: on the command line.
        summary: what it is for, in a few words.
        setup: the command that makes its environment.
        ready_path: answers with 200 once the model can be asked.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    setup: ClassVar[str]
    ready_path: ClassVar[str] = "/v1/models"

    @abstractmethod
    def check(self, service: Service) -> None:
        """Raise what stands against starting it.

        Raises:
            ConfigError: the program is not installed, or cannot do what is asked.
            CheckpointError: it cannot serve such a model.
        """

    def steps(self, service: Service) -> Sequence[Launch]:
        """Programs that are to run first, one after another, each to its end: what it needs made of the model."""
        return ()

    @abstractmethod
    def launch(self, service: Service) -> Launch:
        """The program that serves, whether it is installed or not."""

    def served_name(self, service: Service) -> str:
        """The model's name, as clients must say it."""
        return service.name

    @abstractmethod
    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        """Ask a running service. Raises ServerError."""
