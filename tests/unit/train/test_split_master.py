"""Masters as bf16 weights and remainders: back to the bit, rounded as integers, and updated as whole ones are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megatron_apriel.testing.marks import on_each_device
from megatron_apriel.train.adamw import AdamW
from megatron_apriel.train.split_master import join, split

SETTINGS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def bits_of(numbers: Tensor) -> np.ndarray:
    return numbers.cpu().view(torch.int32).numpy().astype(np.int64) & 0xFFFFFFFF


def rounded(bits: np.ndarray) -> np.ndarray:
    """The nearest bf16 number's 16 bits, halves away from zero: by Python's whole numbers, sign and size apart."""
    size = ((bits & 0x7FFFFFFF) + 0x8000) >> 16
    return ((bits >> 31) << 15) | size


def numbers_of(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32))


@on_each_device
def test_every_number_comes_back_to_the_bit(device: str) -> None:
    """All upper halves, with the lower ones at and beside every seam: zeros, denormals, infinities, numbers of all
    sizes. What is no number stays none."""
    upper = np.arange(2**16, dtype=np.int64) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234, 0xABCD):
        bits = upper | lower
        numbers = numbers_of(bits).to(device)
        weight, remainder = split(numbers)
        assert (weight.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
        nothing = np.isnan(numbers.cpu().numpy())
        back = bits_of(join(weight, remainder))
        assert np.array_equal(back[~nothing], bits[~nothing])
        assert (back[nothing] == 0x7FC00000).all() and weight[torch.from_numpy(nothing).to(device)].isnan().all()
        halves = weight.cpu().view(torch.int16).numpy().astype(np.int64) & 0xFFFF
        assert np.array_equal(halves[~nothing], rounded(bits)[~nothing])


def test_weights_are_a_conversions_but_for_ties() -> None:
    draw = np.random.default_rng(0)
    numbers = numbers_of(draw.integers(0, 0x7F000000, 200_000))
    weight, remainder = split(numbers)
    other = weight != numbers.bfloat16()
    assert bool((remainder[other] == -0x8000).all())
    ties = numbers_of((np.arange(1000, dtype=np.int64) + 0x3F80) << 16 | 0x8000)
    apart = split(ties)[0].view(torch.int16) - ties.bfloat16().view(torch.int16)
    assert set(apart.tolist()) == {0, 1}


@on_each_device
def test_is_updated_as_a_whole_master_is(device: str) -> None:
    """200 tiny steps, most of which no bf16 number could tell: masters and moments equal to the bit."""
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(5001, generator=generator).bfloat16()
    whole = torch.nn.Parameter(initial.float().to(device))
    half = torch.nn.Parameter(initial.clone().to(device))
    optimizers = [AdamW([parameter], **SETTINGS) for parameter in (whole, half)]
    moved = 0
    for _ in range(200):
        gradient = torch.randn(5001, generator=generator).to(device)
        before = half.detach().clone()
        for parameter, optimizer in zip((whole, half), optimizers, strict=True):
            parameter.decoupled_grad = gradient
            optimizer.factor = torch.tensor(1 / 300, device=device)
            optimizer.step()
        moved += int((half != before).sum())
    expected, found = (
        {name: numbers.read(0, 5001) for name, numbers in optimizer.numbers(parameter).items()}
        for parameter, optimizer in zip((whole, half), optimizers, strict=True)
    )
    assert all(torch.equal(found[name], expected[name]) for name in ("param", "exp_avg", "exp_avg_sq"))
    assert torch.equal(half, split(whole.detach())[0])
    assert 0 < moved < 0.1 * 200 * 5001 and not torch.equal(found["param"], half.float())


@on_each_device
def test_a_skipped_update_leaves_every_byte(device: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(5001).bfloat16().to(device))
    optimizer = AdamW([parameter], **SETTINGS)
    for factor in (0.5, float("nan")):
        parameter.decoupled_grad = torch.randn(5001, device=device)
        optimizer.factor = torch.tensor(factor, device=device)
        kept = [tensor.clone() for tensor in (parameter.detach(), *optimizer.states.tensors())]
        optimizer.step()
        now = [parameter.detach(), *optimizer.states.tensors()]
        same = [torch.equal(tensor, before) for tensor, before in zip(now, kept, strict=True)]
        assert all(same) if factor != factor else not any(same)


def test_a_master_of_a_checkpoint_is_split_by_the_same_rule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    optimizer = AdamW([parameter], **SETTINGS)
    masters = torch.randn(40)
    optimizer.numbers(parameter)["param"].write(30, masters)
    assert torch.equal(optimizer.numbers(parameter)["param"].read(30, 70), masters)
    assert torch.equal(parameter[30:70], split(masters)[0]) and not parameter[:30].any() and not parameter[70:].any()
