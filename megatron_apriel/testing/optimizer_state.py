"""Everything that an update changes on a rank, by name, so that tests can compare it to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_apriel.testing.weights import named_parameters
from megatron_apriel.train.adamw import AdamW
from megatron_apriel.train.state_tensors import StateTensors
from megatron_apriel.train.trainer import Trainer


def optimizer_state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of this rank's weights, of its part of the masters and moments, and of the updates' numbers."""
    found = _weights_and_numbers(trainer)
    for place, own, parameter in _parameters(trainer):
        for state, numbers in own.numbers(parameter).items():
            found[f"{state} {place}"] = numbers.read(0, len(numbers))
    return {name: tensor.clone() for name, tensor in found.items()}


def kept_states(trainer: Trainer) -> dict[str, Tensor]:
    """The same with the states as they are kept, all on the weights' device: soon made of billions of numbers too."""
    found = {name: tensor.clone() for name, tensor in _weights_and_numbers(trainer).items()}
    for place, own, parameter in _parameters(trainer):
        parts = own.states.parts(parameter)
        for state in StateTensors._fields:
            kept = [tensor for part in parts if (tensor := getattr(part.states, state)) is not None]
            if kept:
                found[f"{state} {place}"] = torch.cat([tensor.to(parameter.device) for tensor in kept])
    return found


def _weights_and_numbers(trainer: Trainer) -> dict[str, Tensor]:
    with trainer.gathered_parameters():
        found = {f"weight {name}": parameter.detach() for name, parameter in named_parameters(trainer.chunks).items()}
    for number, own in _optimizers(trainer):
        for of_group, group in enumerate(own.param_groups):
            found[f"updates {number} {of_group}"] = torch.tensor(group.get("step", 0))
    return found


def _parameters(trainer: Trainer) -> Iterator[tuple[str, AdamW, Tensor]]:
    """Of each parameter that this rank updates, which one it is, its optimizer, and itself."""
    for number, own in _optimizers(trainer):
        for of_group, group in enumerate(own.param_groups):
            for place, parameter in enumerate(group["params"]):
                yield f"{number} {of_group} {place}", own, parameter


def _optimizers(trainer: Trainer) -> Iterator[tuple[int, AdamW]]:
    for number, part in enumerate(getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])):
        if not getattr(part, "is_stub_optimizer", False):
            yield number, part.optimizer
