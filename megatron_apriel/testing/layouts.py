"""The table of parallel layouts that every test of layouts goes through, and the batches that their ranks see.

On CPUs over gloo (``tests/distributed``) and on GPUs over NCCL (``tests/gpu``).
A layout that the trainer offers belongs in :data:`LAYOUTS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.testing.weights import load_full
from megatron_apriel.train.objectives.objective import Objective
from megatron_apriel.train.step_result import StepResult
from megatron_apriel.train.trainer import Trainer


class Setup(NamedTuple):
    """One row of the table."""

    layout: Layout
    overlap: bool = False
    recompute: str = "none"
    tensor_overlap: bool = False
    """On GPUs only, and not with every recipe of FP8."""

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Of a stage that runs so."""
        layout = self.layout
        parallel = {
            "tensor": layout.tensor, "sequence": layout.sequence, "pipeline": layout.pipeline,
            "virtual": layout.virtual, "context": layout.context, "layers_per_stage": layout.layers_per_stage,
            "overlap": self.overlap, "tensor_overlap": self.tensor_overlap,
        }  # fmt: skip
        return {"parallel": parallel, "recompute": {"mode": self.recompute}}

    @property
    def overrides(self) -> list[str]:
        """The same as words of a command line."""
        return [
            f"{section}.{key}={json.dumps(value)}"
            for section, values in self.settings.items()
            for key, value in values.items()
        ]


ALONE = Setup(Layout())
"""What every row is compared with: one process."""

LAYOUTS = {
    "TP2": Setup(Layout(2, tensor=2)),
    "TP2 SP": Setup(Layout(2, tensor=2, sequence=True)),
    "PP2": Setup(Layout(2, pipeline=2)),
    "PP2 uneven": Setup(Layout(2, pipeline=2, layers_per_stage=(1, 3))),
    "PP2 VP2": Setup(Layout(2, pipeline=2, virtual=2)),
    "PP2 VP2 overlap": Setup(Layout(2, pipeline=2, virtual=2), overlap=True),
    "DP2": Setup(Layout(2)),
    "DP2 overlap": Setup(Layout(2), overlap=True),
    "TP2 SP DP2 overlap": Setup(Layout(4, tensor=2, sequence=True), overlap=True),
    "TP2 SP PP2 recompute": Setup(Layout(4, tensor=2, pipeline=2, sequence=True), recompute="full"),
    "PP4": Setup(Layout(4, pipeline=4)),
    "CP2": Setup(Layout(2, context=2)),
    "CP4": Setup(Layout(4, context=4)),
    "CP2 DP2 overlap": Setup(Layout(4, context=2), overlap=True),
    "TP2 SP CP2": Setup(Layout(4, tensor=2, sequence=True, context=2)),
    "CP2 PP2 recompute": Setup(Layout(4, context=2, pipeline=2), recompute="full"),
}

GPU_LAYOUTS = {
    "TP2 SP PP2 CP2": Setup(Layout(8, tensor=2, sequence=True, pipeline=2, context=2)),
    "TP4 SP DP2 overlap": Setup(Layout(8, tensor=4, sequence=True), overlap=True),
    "PP2 VP2 CP2 DP2 overlap": Setup(Layout(8, pipeline=2, virtual=2, context=2), overlap=True),
    "DP8 overlap": Setup(Layout(8), overlap=True),
    "TP2 SP overlapped": Setup(Layout(2, tensor=2, sequence=True), tensor_overlap=True),
    "TP2 SP overlapped recompute": Setup(Layout(2, tensor=2, sequence=True), recompute="full", tensor_overlap=True),
    "TP2 SP overlapped DP2": Setup(Layout(4, tensor=2, sequence=True), overlap=True, tensor_overlap=True),
    "TP4 SP overlapped": Setup(Layout(4, tensor=4, sequence=True), tensor_overlap=True),
    "TP2 SP overlapped PP2 VP2": Setup(Layout(4, 2, 2, 2, sequence=True), tensor_overlap=True),
    "TP2 SP overlapped CP2": Setup(Layout(4, tensor=2, sequence=True, context=2), tensor_overlap=True),
}
"""Layouts of eight ranks, too many processes for the tests on CPUs, and those that no CPU can run."""


def layout_of(name: str) -> Layout:
    """The layout of a row of the table, or of ``one`` process."""
    return (ALONE if name == "one" else LAYOUTS[name]).layout


class Case(NamedTuple):
    """What trains, and the images of each of a step's sequences: per document the grids of its images."""

    train: TrainedParts
    images: list[list[list[tuple[int, int]]]]


EVERYTHING = TrainedParts(tower=1, projector=1, decoder=1)
TEXT: list[list[list[tuple[int, int]]]] = [[[]], [[], []], [[]], [[]]]
# With two shares: both have images; none has any; none; only the first has one. With two data-parallel ranks one runs
# the first and third sequence, the other the second and fourth, so that ranks with and without images meet.
MIXED: list[list[list[tuple[int, int]]]] = [[[(2, 3), (1, 2), (3, 1)]], [[]], [[], []], [[(3, 3)], []]]
IMAGES: list[list[list[tuple[int, int]]]] = [[[(4, 5), (3, 2)]], [[(2, 8)], [(2, 2)]], [[(5, 4)]], [[(4, 4), (1, 6)]]]

CASES = {
    "all, text": Case(EVERYTHING, TEXT),
    "all, mixed": Case(EVERYTHING, MIXED),
    "projector, mixed": Case(TrainedParts(projector=1), MIXED),
    "projector, text": Case(TrainedParts(projector=1), TEXT),
    "projector and decoder, mixed": Case(TrainedParts(projector=1, decoder=1), MIXED),
    "decoder, mixed": Case(TrainedParts(decoder=1), MIXED),
    "tower and projector, images": Case(TrainedParts(tower=1, projector=1), IMAGES),
}


def batches(
    architecture: Architecture, case: Case, step: int, layout: Layout, sequence_length: int, text: int
) -> Iterator[Batch]:
    """This rank's micro-batches of a step: sequence m * d + r for data rank r of d, with its share of the images.

    Args:
        architecture: gives vocabulary and patch size.
        case: the images of each sequence, and so how many sequences and documents there are.
        step: number of the step; each has other tokens and pixels.
        layout: the layout whose process groups exist.
        sequence_length: of every sequence, padded at its end.
        text: tokens of text of each document.
    """
    place = DataPlace.of(layout, dist.get_rank())
    for number in place.sequences(0, len(case.images)):
        generator = torch.Generator().manual_seed(1000 * step + number)
        documents = [random_document(architecture, text, grids, generator) for grids in case.images[number]]
        yield make_batch(
            architecture,
            documents,
            sequence_length=sequence_length,
            place=place,
            sequence=number,
        )


class LayoutRun:
    """The trainer on a row of the table, on this rank, from given weights.

    Args:
        architecture: of the model.
        case: what trains, on what.
        setup: the row.
        weights: of the whole model, by the names of ``testing/weights.py``.
        sequence_length: of every sequence.
        text: tokens of text of each document.
        objective: see :class:`~megatron_apriel.train.trainer.Trainer`.
        changes: further settings of the stage, such as ``precision``.
    """

    def __init__(
        self,
        architecture: Architecture,
        case: Case,
        setup: Setup,
        weights: Mapping[str, Tensor],
        sequence_length: int,
        text: int,
        objective: Objective | None = None,
        **changes: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "train": case.train.model_dump(),
            "optimizer": {"peak": 1e-3},
            **setup.settings,
        }
        self.config = small_stage(sequence_length, len(case.images), **(settings | changes))
        self.trainer = Trainer(
            architecture, self.config, setup.layout, lambda chunks: load_full(chunks, weights), objective
        )
        self._case, self._text = case, text

    def step(self, number: int) -> StepResult:
        """Train on the tokens and images of step ``number``, at the peak learning rate."""
        return self.trainer.step(self._batches(number), self.config.optimizer.peak)

    def evaluate(self, number: int) -> StepResult:
        """The objective on the tokens and images of step ``number``."""
        return self.trainer.evaluate(self._batches(number), self.trainer.micro_batches)

    def _batches(self, number: int) -> Iterator[Batch]:
        trainer, device = self.trainer, groups.current_device()
        length = self.config.sequence_length
        for batch in batches(trainer.architecture, self._case, number, trainer.layout, length, self._text):
            yield (batch.pin_memory() if device.type == "cuda" else batch).to(device)
