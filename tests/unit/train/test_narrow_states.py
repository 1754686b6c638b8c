"""Moments and masters of fewer bits against float64, on the gradients of a real model; and that broken forms fail here.

Three ways to keep states that are known to spoil training are written down beside the ones that are used: moments in
one E4M3 scale a tensor, in 8 linear bits, and weights in bf16 without a master.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from drawn_updates import everything, trained
from torch import Tensor

from megatron_apriel.config.choices import Moments
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.planning.state_forms import StateForm, form_of
from megatron_apriel.testing.marks import needs_gpu, on_each_device
from megatron_apriel.testing.real_gradients import BETAS, class_of, kind_of, real_gradients
from megatron_apriel.train.adamw import AdamW

SETTLED = 20
"""Steps after which updates are compared."""
EPS = 1e-8
MATRICES = ("qkv", "out", "up", "down")


def updates(optimizer: AdamW, parameters: dict[str, Tensor], gradients: list[dict[str, Tensor]]) -> Iterator[dict]:  # type: ignore[type-arg]
    """How each step moves the masters."""

    def masters() -> dict[str, Tensor]:
        numbers = {name: optimizer.numbers(parameter)["param"] for name, parameter in parameters.items()}
        return {name: each.read(0, len(each)).double().cpu() for name, each in numbers.items()}

    before = masters()
    for of_step in gradients:
        for name, parameter in parameters.items():
            parameter.decoupled_grad = of_step[name].view(-1).to(parameter.device)  # type: ignore[attr-defined]
        optimizer.step()
        after = masters()
        yield {name: after[name] - before[name] for name in after}
        before = after


def in_form(moments: Moments, low_bits: int, rate: float, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
    weights, gradients = real_gradients()
    dtype = torch.bfloat16 if low_bits else torch.float32
    made = {name: torch.nn.Parameter(weight.flatten().to(device, dtype, copy=True)) for name, weight in weights.items()}
    optimizer = AdamW(list(made.values()), lr=rate, betas=BETAS, eps=EPS)
    section = OptimizerSection(peak=rate, moments=moments, master="24bit" if low_bits == 8 else "float32")
    forms = {parameter: form_of(section, bool(low_bits), kind_of(name)) for name, parameter in made.items()}
    optimizer.make_states(forms=forms)
    return updates(optimizer, made, gradients)


def in_float64(
    rate: float, mean_as: Callable[[Tensor], Tensor] = torch.clone, square_as: Callable[[Tensor], Tensor] = torch.clone
) -> Iterator[dict[str, Tensor]]:
    """AdamW by its formulas, with moments kept as the functions leave them."""
    weights, gradients = real_gradients()
    means, squares = ({name: torch.zeros_like(weight).double() for name, weight in weights.items()} for _ in range(2))
    for step, of_step in enumerate(gradients, 1):
        moved = {}
        for name, gradient in of_step.items():
            mean = BETAS[0] * means[name] + (1 - BETAS[0]) * gradient.double()
            square = BETAS[1] * squares[name] + (1 - BETAS[1]) * gradient.double() ** 2
            root = (square / (1 - BETAS[1] ** step)).sqrt() + EPS
            moved[name] = -rate * mean / (1 - BETAS[0] ** step) / root
            means[name], squares[name] = mean_as(mean), square_as(square)
        yield moved


def errors(found: Iterator[dict[str, Tensor]]) -> dict[str, tuple[float, float]]:
    """Of all updates from the settled step on, by class of parameter: relative L2 and the cosine."""
    sums: dict[str, list[float]] = {}
    for number, (one, exact) in enumerate(zip(found, in_float64(1e-2), strict=True)):
        if number < SETTLED:
            continue
        for name, expected in exact.items():
            change, wanted = one[name].flatten(), expected.flatten()
            parts = ((change - wanted).square().sum(), change @ wanted, change @ change, wanted @ wanted)
            kept = sums.setdefault(class_of(name), [0.0] * 4)
            sums[class_of(name)] = [old + float(new) for old, new in zip(kept, parts, strict=True)]
    return {
        name: (math.sqrt(off / wanted) if math.isfinite(off) else math.inf, both / math.sqrt(own * wanted))
        for name, (off, both, own, wanted) in sums.items()
    }


def e4m3(numbers: Tensor) -> Tensor:
    scale = numbers.abs().max() / 448
    return (numbers / scale).to(torch.float8_e4m3fn).double() * scale


def linear(numbers: Tensor) -> Tensor:
    grouped = numbers.view(-1, 32)
    scale = grouped.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, (grouped / scale).round() * scale, 0.0).view_as(numbers)


@on_each_device
@pytest.mark.parametrize(("moments", "most"), [("float32", 1e-4), ("bfloat16", 0.005), ("int8", 0.03)])
def test_updates_are_those_of_exact_moments(moments: Moments, most: float, device: str) -> None:
    found = errors(in_form(moments, 0, 1e-2, device))
    assert set(found) == {"embedding", "qkv", "out", "up", "down", "norm", "mlp_norm", "head"}
    assert all(error <= most and cosine >= 0.999 for error, cosine in found.values()), found
    if moments == "int8":
        assert all(found[name][0] > 0.005 for name in MATRICES), found


@pytest.mark.parametrize("broken", [e4m3, linear])
@pytest.mark.parametrize("which", ["both", "second"])
def test_broken_moments_would_be_seen(broken: Callable[[Tensor], Tensor], which: str) -> None:
    mean_as = broken if which == "both" else torch.clone
    found = errors(in_float64(1e-2, mean_as, broken))
    assert all(found[name][0] > 0.03 for name in MATRICES), found


def share_that_moves(found: Iterator[dict[str, Tensor]], within: int) -> float:
    """Of matrices' numbers, those that move in any of so many steps; the mean over all such spans."""
    moved = count = 0
    span: dict[str, Tensor] = {}
    for number, one in enumerate(found):
        if number < SETTLED:
            continue
        for name, change in one.items():
            if kind_of(name) == "matrix":
                span[name] = span.get(name, torch.zeros_like(change, dtype=torch.bool)) | (change != 0)
        if (number - SETTLED) % within == within - 1:
            moved += sum(int(moves.sum()) for moves in span.values())
            count += sum(moves.numel() for moves in span.values())
            span = {}
    return moved / count


def bf16_alone(rate: float) -> Iterator[dict[str, Tensor]]:
    """Weights without masters, moved by exact updates and rounded to the nearest."""
    weights = {name: weight.bfloat16() for name, weight in real_gradients().weights.items()}
    for of_step in in_float64(rate):
        after = {name: (weight.double() + of_step[name]).bfloat16() for name, weight in weights.items()}
        yield {name: after[name].double() - weights[name].double() for name in weights}
        weights = after


def share_that_unbiased_rounding_moves(rate: float, low_bits: int) -> float:
    """The mean chance that an exact update moves a master: what is less than the last bit, by its part of that bit."""
    weights = {name: weight.double().abs() for name, weight in real_gradients().weights.items()}
    moved = count = 0.0
    for number, of_step in enumerate(in_float64(rate)):
        for name in (each for each in of_step if number >= SETTLED and kind_of(each) == "matrix"):
            last_bit = torch.exp2(weights[name].log2().floor() - 7 - low_bits)
            moved += float((of_step[name].abs() / last_bit).clamp(max=1.0).sum())
            count += last_bit.numel()
    return moved / count


def test_no_master_stands_still_at_a_small_rate() -> None:
    """Nearly all move in every step; of those in 24 bits, some wait for another one, and nearly all move within eight.

    The least that 24 bits can show of a weight of 0.02 is a fifth of what an update moves it by in the mean here.
    """
    assert share_that_moves(in_form("bfloat16", 16, 1e-5), 1) >= 0.98 * share_that_moves(in_float64(1e-5), 1)
    assert share_that_moves(in_form("int8", 16, 1e-5), 1) >= 0.98 * share_that_moves(in_float64(1e-5), 1)
    assert share_that_moves(in_form("int8", 8, 1e-5), 8) >= 0.98 * share_that_moves(in_float64(1e-5), 8)
    assert share_that_moves(in_form("int8", 8, 1e-5), 1) == pytest.approx(
        share_that_unbiased_rounding_moves(1e-5, 8), abs=0.002
    )
    assert share_that_moves(bf16_alone(1e-5), 1) < 0.1 and share_that_moves(bf16_alone(1e-5), 8) < 0.5


@pytest.mark.parametrize("low_bits", [0, 8, 16])
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_bytes_are_as_they_are_counted(moments: Moments, low_bits: int) -> None:
    form = StateForm(moments, low_bits)  # type: ignore[arg-type]
    parameter = torch.nn.Parameter(torch.zeros(3200, dtype=torch.bfloat16 if low_bits else torch.float32))
    optimizer = AdamW([parameter])
    optimizer.make_states(forms={parameter: form})
    assert sum(tensor.nbytes for tensor in optimizer.states.tensors()) == 3200 * form.bytes


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("low_bits", [0, 8, 16])
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_a_gpu_gives_the_bits_of_a_cpu(moments: Moments, low_bits: int) -> None:
    form = StateForm(moments, low_bits)  # type: ignore[arg-type]
    found, expected = (everything(trained(form, 0.0, 1, device)) for device in ("cuda", "cpu"))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_a_skipped_update_leaves_every_byte(moments: Moments) -> None:
    optimizer = trained(StateForm(moments, 8), 0.5, 100, "cpu")
    before = [tensor.clone() for tensor in optimizer.states.tensors()]
    optimizer.factor = torch.tensor(math.nan)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(before, optimizer.states.tensors(), strict=True))


@on_each_device
@pytest.mark.parametrize("form", [StateForm("bfloat16", 16), StateForm("int8", 8), StateForm("int8", 0)])
def test_what_is_read_can_be_written_again_in_any_cut(form: StateForm, device: str) -> None:
    """As a checkpoint does it: the same bytes, also where a cut runs through a group."""
    optimizer = trained(form, 0.5, 100, device)
    for cuts in ((400,), (1, 2, 37, 64, 65, 300, 400), tuple(range(1, 401))):
        fresh = trained(form, 0.8, 64, device, steps=0)
        of_fresh, of_old = fresh.param_groups[0]["params"][1], optimizer.param_groups[0]["params"][1]
        for name, numbers in fresh.numbers(of_fresh).items():
            read = optimizer.numbers(of_old)[name].read(0, 400).cpu()
            for start, stop in zip((0, *cuts), cuts, strict=False):
                numbers.write(start, read[start:stop])
            assert torch.equal(numbers.read(0, 400).cpu(), read), name
        assert torch.equal(of_fresh.detach(), of_old.detach())
