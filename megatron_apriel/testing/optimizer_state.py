"""Everything that an update changes on a rank, by name, so that tests can compare it to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_apriel.testing.weights import named_parameters
from megatron_apriel.train.trainer import Trainer


def optimizer_state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of this rank's weights, of its part of the masters and moments, and of the updates' numbers."""
    with trainer.gathered_parameters():
        found = {f"weight {name}": parameter.detach() for name, parameter in named_parameters(trainer.chunks).items()}
    for number, part in enumerate(getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])):
        if getattr(part, "is_stub_optimizer", False):
            continue
        for of_group, group in enumerate(part.optimizer.param_groups):
            found[f"updates {number} {of_group}"] = torch.tensor(group.get("step", 0))
            for place, parameter in enumerate(group["params"]):
                for state, numbers in part.optimizer.numbers(parameter).items():
                    found[f"{state} {number} {of_group} {place}"] = numbers.read(0, len(numbers))
    return {name: tensor.clone() for name, tensor in found.items()}
