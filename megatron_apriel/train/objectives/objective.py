"""What every objective is: an operation of the model's head whose result is a sum over what it counts.

The model gives hidden states; what is made of them belongs to the objective, the head's matrix product included, since
the cheapest way to a loss rarely makes all logits. A step adds the sums and the counts of all micro-batches and
ranks and divides one by the other: the mean over the **global** batch, however it was cut.

Shape letters: S this rank's tokens of a micro-batch, H hidden, F figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from megatron_apriel.batch import Batch


@dataclass(frozen=True)
class Counted:
    """An objective's result for one micro-batch on this rank.

    Attributes:
        sum: what is minimised, summed over what is counted; a scalar with a gradient.
        count: how many are counted here (tokens, pairs, ...). Known on the host, so that nothing waits for the device.
        figures_F: sums over the same, for the log; float, without a gradient. None where the objective has none.
    """

    sum: Tensor
    count: int
    figures_F: Tensor | None = None


class Objective(Protocol):
    """What a stage optimises.

    Attributes:
        figures: names of its figures, in the order of ``Counted.figures_F``.
    """

    figures: tuple[str, ...]

    def __call__(self, head: ColumnParallelLinear, hidden_S1H: Tensor, batch: Batch) -> Counted:
        """The result for a micro-batch, on the model's last chunk.

        Every tensor-parallel rank gives the same result. Under context parallelism a rank counts its own tokens only.

        Args:
            head: from hidden states to this rank's part of the vocabulary; see ``model/head.py`` for its operations.
            hidden_S1H: output of the last layer's norm; divided over the ranks under sequence parallelism.
            batch: the micro-batch.
        """
        ...
