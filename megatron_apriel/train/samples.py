"""What the model in training says to a few fixed prompts, greedily, on whatever layout it is trained.

No second copy of the weights, no cache of keys and values, no other code for generation: the training model itself runs
forward over prompt and answer so far, once for each token, through the same pipeline schedule as held-out loss. That is
slow for long texts, and right on every layout by what makes the loss right on it. The operation of the head is an
objective whose "sum" is the number of the likeliest token, given by the one rank that has the prompt's last position
and 0 by all others; so the sum over all ranks that a step's losses take tells every rank which token it is.

Nothing is drawn at random and no gradient is made: training continues to the bit as without samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.config.output_sections import SamplesSection
from megatron_apriel.data.loading.prompts import Prompts
from megatron_apriel.errors import printable, printable_lines
from megatron_apriel.model.sharing import await_parameters
from megatron_apriel.parallel.context_parts import blocks_of_rank
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.train.objectives.objective import Counted
from megatron_apriel.train.signals import StopRequest
from megatron_apriel.train.trainer import Trainer


@dataclass
class LikeliestToken:
    """The objective that names the next token of each prompt.

    Attributes:
        place: this rank's part of the data.
        length: tokens of a prompt's whole sequence.
        asked: the position of each prompt that predicts its next token; a prompt that is not in it counts nothing.
    """

    place: DataPlace
    length: int
    asked: dict[int, int]
    figures: tuple[str, ...] = ()

    def __call__(self, head: ColumnParallelLinear, hidden_S1H: Tensor, batch: Batch) -> Counted:
        await_parameters(head)
        if head.sequence_parallel:
            hidden_S1H = gather_from_sequence_parallel_region(hidden_S1H, group=head.tp_group)
        index = self._own_index(self.asked.pop(batch.sequence, None))
        # Every rank takes part in gathering the vocabulary; what it gives for a position that is not its own is unused.
        part_1V = torch.nn.functional.linear(hidden_S1H[index or 0], head.weight)
        logits_1V = gather_from_tensor_model_parallel_region(part_1V, group=head.tp_group)
        token = logits_1V.float().argmax(-1)[0].double()
        counts = index is not None and self.place.data_rank == 0
        return Counted(token if counts else torch.zeros_like(token), int(counts))

    def _own_index(self, position: int | None) -> int | None:
        """Where the position is among this rank's tokens; None if it is another's."""
        if position is None or self.place.contexts == 1:
            return position
        offset = 0
        for block in blocks_of_rank(self.length, self.place.contexts, self.place.context):
            if position in block:
                return offset + position - block.start
            offset += len(block)
        return None


class Sampler:
    """Continues the prompts of a stage; every rank makes one, and takes part in all that it does."""

    def __init__(self, section: SamplesSection, prompts: Prompts, place: DataPlace, multiple: int) -> None:
        """``multiple``: what the number of micro-batches must be a multiple of (interleaved pipelines)."""
        self.section, self.prompts, self._place, self._multiple = section, prompts, place, multiple

    def record(self, trainer: Trainer, device: torch.device, stop: StopRequest) -> Mapping[str, Any] | None:
        """The texts as ``metrics.jsonl`` gets them; None where the run is asked to stop meanwhile. Collective."""
        started = time.perf_counter()
        answers = self._answers(trainer, device, stop)
        if answers is None:
            return None
        tokenizer, end = self.prompts.table.tokenizer, self.prompts.table.eos_id
        samples = [
            {
                "prompt": printable_lines(prompt.text),
                "image": printable(prompt.image) if prompt.image is not None else None,
                "text": printable_lines(tokenizer.decode([token for token in answer if token != end])),
                "tokens": len(answer),
                "ended": answer[-1] == end,
            }
            for prompt, answer in zip(self.section.prompts, answers, strict=True)
        ]
        return {"samples": samples, "seconds": time.perf_counter() - started}

    def _answers(self, trainer: Trainer, device: torch.device, stop: StopRequest) -> list[list[int]] | None:
        answers: list[list[int]] = [[] for _ in self.section.prompts]
        running = list(range(len(answers)))
        for _ in range(self.section.max_tokens):
            if stop.agreed():
                return None
            asked = {number: self.prompts.last_position(number, answers[number]) for number in running}
            objective = LikeliestToken(self._place, self.prompts.length, asked)
            # Where the schedule wants more micro-batches than there are prompts, the last is run again and not counted.
            numbers = running + [running[-1]] * (-len(running) % self._multiple)
            batches = (self.prompts.batch(number, answers[number]).to(device) for number in numbers)
            result = trainer.evaluate(
                batches,
                len(numbers),
                sources=len(answers),
                objective=objective,
                sequence_length=self.prompts.length,
            )
            for number in running:
                answers[number].append(round(result.source_sums[number]))
            running = [number for number in running if answers[number][-1] != self.prompts.table.eos_id]
            if not running:
                break
        return answers
