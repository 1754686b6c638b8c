"""One AdamW update of a run of numbers: on a GPU by one kernel, elsewhere the same written in torch, equal to the bit.

Every operation rounds exactly, so that what a number becomes does not depend on where it stands in a tensor, into what
pieces tensors are cut, or which device works it out. Moments and masters of fewer bits are read into float32, updated
there, used, and rounded as they are stored: a moment's rounding is met by the next update, not by this one.
"""

from __future__ import annotations

from torch import Tensor

from megatron_apriel.train.adamw_coefficients import Coefficients
from megatron_apriel.train.companded_moments import decode_mean, decode_square, encode_mean, encode_square
from megatron_apriel.train.numbers_in_24_bits import Sums
from megatron_apriel.train.split_master import drawn_to_24_bits, join, split
from megatron_apriel.train.state_tensors import StateTensors


def update(parameter: Tensor, states: StateTensors, gradient: Tensor | Sums, factor: Tensor, how: Coefficients) -> None:
    """Update parameters and their states in place; nothing where ``factor`` is not a number.

    Args:
        parameter: float32, or bf16 with a remainder among the states.
        states: of as many numbers; in 8 bits their groups begin where the parameter does.
        gradient: float32 or in 24 bits, of as many numbers.
        factor: the gradient is multiplied by it as it is read.
        how: the rest.
    """
    if parameter.is_cuda:
        from megatron_apriel.train.adamw_kernel import update

        update(parameter, states, gradient, factor, how)
    elif not factor.isnan():
        gradient = gradient.read() if isinstance(gradient, Sums) else gradient
        _update(parameter, states, gradient * factor, how)


def read_moments(states: StateTensors) -> tuple[Tensor, Tensor]:
    """Both in float32; the states' own tensors where these are."""
    if states.mean_scales is None or states.square_scales is None:
        return states.mean.float(), states.square.float()
    return decode_mean(states.mean, states.mean_scales), decode_square(states.square, states.square_scales)


def write_moments(states: StateTensors, mean: Tensor, square: Tensor) -> None:
    """Round float32 moments to the form of the states."""
    if states.mean_scales is None or states.square_scales is None:
        states.mean.copy_(mean)
        states.square.copy_(square)
        return
    for kept, made in zip((states.mean, states.mean_scales), encode_mean(mean), strict=True):
        kept.copy_(made)
    for kept, made in zip((states.square, states.square_scales), encode_square(square), strict=True):
        kept.copy_(made)


def _update(parameter: Tensor, states: StateTensors, gradient: Tensor, how: Coefficients) -> None:
    """In the kernel's order; without torch's joined operations (lerp, addcdiv), which may round once for two.

    On a CPU torch's square root of float32 is off by a bit here and there; that of float64, rounded, is not.
    """
    mean, square = read_moments(states)
    mean = mean + (gradient - mean).mul_(how.mean_rate)
    square = square + (gradient * gradient).sub_(square).mul_(how.square_rate)
    divisor = (square * how.square_scale).double().sqrt_().float().add_(how.eps)
    change = (mean * how.rate).div_(divisor)
    if states.remainder is None:
        parameter.mul_(how.keep).sub_(change)
    else:
        master = join(parameter, states.remainder).mul_(how.keep).sub_(change)
        low_bits = 8 * states.remainder.dtype.itemsize
        weight, rest = split(drawn_to_24_bits(master, mean, how.step) if low_bits == 8 else master, low_bits)
        parameter.copy_(weight)
        states.remainder.copy_(rest)
    write_moments(states, mean, square)
