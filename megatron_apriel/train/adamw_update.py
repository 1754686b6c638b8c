"""One AdamW update of a run of numbers: on a GPU by one kernel, elsewhere the same written in torch, equal to the bit.

Every operation rounds exactly, so that what a number becomes does not depend on where it stands in a tensor, into what
pieces tensors are cut, or which device works it out.
"""

from __future__ import annotations

from torch import Tensor

from megatron_apriel.train.adamw_coefficients import Coefficients
from megatron_apriel.train.split_master import join, split


def update(
    parameter: Tensor,
    remainder: Tensor | None,
    gradient: Tensor,
    factor: Tensor,
    mean: Tensor,
    square: Tensor,
    how: Coefficients,
) -> None:
    """Update parameters and their moments in place; nothing where ``factor`` is not a number.

    Args:
        parameter: float32, or bf16 with a remainder.
        remainder: int16, what bf16 weights lack of their masters; None for float32, which are their own masters.
        gradient: float32, of as many numbers.
        factor: the gradient is multiplied by it as it is read.
        mean, square: float32.
        how: the rest.
    """
    if parameter.is_cuda:
        from megatron_apriel.train.adamw_kernel import update

        update(parameter, remainder, gradient, factor, mean, square, how)
    elif not factor.isnan():
        _update(parameter, remainder, gradient * factor, mean, square, how)


def _update(
    parameter: Tensor, remainder: Tensor | None, gradient: Tensor, mean: Tensor, square: Tensor, how: Coefficients
) -> None:
    """In the kernel's order; without torch's joined operations (lerp, addcdiv), which may round once for two.

    On a CPU torch's square root of float32 is off by a bit here and there; that of float64, rounded, is not.
    """
    mean.add_((gradient - mean).mul_(how.mean_rate))
    square.add_((gradient * gradient).sub_(square).mul_(how.square_rate))
    divisor = (square * how.square_scale).double().sqrt_().float().add_(how.eps)
    change = (mean * how.rate).div_(divisor)
    if remainder is None:
        parameter.mul_(how.keep).sub_(change)
    else:
        weight, rest = split(join(parameter, remainder).mul_(how.keep).sub_(change))
        parameter.copy_(weight)
        remainder.copy_(rest)
