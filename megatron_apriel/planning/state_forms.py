"""In what form the optimizer keeps its states of each kind of parameter, and what that takes. No torch.

Matrices of layers are nearly all of a model, and take the smallest forms. Two kinds of parameters are spared some:

* the vocabulary's matrices keep moments in bfloat16 where others have 8 bits: a token's rows are trained as often as
  the token comes, and their second moments lie decades apart (Dettmers et al. 2021, arXiv 2110.02861);
* vectors (norms, biases) do so too, and always keep whole masters: a norm's weight is near 1, where 24 bits cannot show
  an update of 1e-5. They are less than a ten-thousandth of all numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_apriel.config.choices import Moments
from megatron_apriel.config.training_sections import OptimizerSection

FORMS = ("moments", "master", "gradients")
"""Settings of the optimizer that say how its numbers are kept."""
GROUP = 32
"""Numbers that share a scale in 8 bits."""

type Kind = Literal["matrix", "vocabulary", "vector"]
"""Of a parameter: matrices of layers and projector, embedding and head, norms and biases."""


@dataclass(frozen=True)
class StateForm:
    """How the states of a parameter are kept.

    Attributes:
        moments: form of both.
        low_bits: what is kept of a master beside its bf16 weight: 16 bits are all, 8 make 24 in all; none beside a
            float32 weight, which is its own master.
    """

    moments: Moments = "float32"
    low_bits: Literal[0, 8, 16] = 16

    @property
    def group(self) -> int:
        """Numbers that can only be kept together."""
        return GROUP if self.moments == "int8" else 1

    @property
    def bytes(self) -> float:
        """Of a number."""
        return {"float32": 8, "bfloat16": 4, "int8": 2 + 4 / GROUP}[self.moments] + self.low_bits / 8


def form_of(optimizer: OptimizerSection, bf16: bool, kind: Kind) -> StateForm:
    """The form in which the states of a parameter are kept.

    Args:
        optimizer: the stage's, with its ``moments`` chosen.
        bf16: whether weights are in it.
        kind: of the parameter.
    """
    moments = optimizer.moments
    if moments == "auto":
        raise AssertionError("moments=auto is resolved before states are made")
    if moments == "int8" and kind != "matrix":
        moments = "bfloat16"
    if not bf16:
        return StateForm(moments, 0)
    return StateForm(moments, 8 if optimizer.master == "24bit" and kind != "vector" else 16)
