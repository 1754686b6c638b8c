"""The optimizer against torch's AdamW on gradients that were scaled beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_apriel.testing.marks import on_each_device
from megatron_apriel.train.adamw import AdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}


@on_each_device
@pytest.mark.parametrize(("weight_decay", "factor"), [(0.0, 1.0), (0.1, 1.0), (0.1, 1 / 300)])
def test_is_torchs_adamw_of_scaled_gradients(weight_decay: float, factor: float, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # More than one of the kernel's blocks, and a size that does not fill the last.
    shapes = [(7, 3), (5001,)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().double()) for parameter in ours]
    optimizer = AdamW(ours, **SETTINGS, weight_decay=weight_decay)
    reference = torch.optim.AdamW(theirs, **SETTINGS, weight_decay=weight_decay)
    optimizer.factor = torch.tensor(factor, device=device)
    for _ in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            mine.decoupled_grad = torch.randn(mine.shape, generator=generator).to(device)
            its.grad = mine.decoupled_grad.double() * factor
        kept = [mine.decoupled_grad.clone() for mine in ours]
        optimizer.step()
        reference.step()
        assert all(torch.equal(mine.decoupled_grad, before) for mine, before in zip(ours, kept, strict=True))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=1e-5, atol=1e-6)


@on_each_device
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_rounds_each_operation_exactly_wherever_a_number_stands(offset: int, device: str) -> None:
    """Against the formulas in NumPy's float32: equal to the bit, from the tiniest numbers to large ones."""
    draw = np.random.default_rng(0)
    single = np.float32
    size = 5001 + offset
    initial = (draw.standard_normal(size) * 10.0 ** draw.integers(-9, 4, size)).astype(single)
    parameter = torch.nn.Parameter(torch.from_numpy(initial.copy()).to(device)[offset:])
    optimizer = AdamW([parameter], **SETTINGS, weight_decay=0.1)
    optimizer.factor = torch.tensor(1 / 300, device=device)
    value, mean, square = initial[offset:].copy(), np.zeros(5001, single), np.zeros(5001, single)
    for step in range(1, 201):
        gradient = (draw.standard_normal(5001) * 10.0 ** draw.integers(-25, 3, 5001)).astype(single)
        parameter.decoupled_grad = torch.from_numpy(gradient).to(device)
        optimizer.step()
        scaled = gradient * single(1 / 300)
        mean = mean + (scaled - mean) * single(1 - 0.9)
        square = square + (scaled * scaled - square) * single(1 - 0.95)
        size_of_mean = np.sqrt(square * single(1 / (1 - 0.95**step))) + single(1e-8)
        value = value * single(1 - 1e-2 * 0.1) - mean * single(1e-2 / (1 - 0.9**step)) / size_of_mean
    assert np.array_equal(parameter.detach().cpu().numpy().view(np.int32), value.view(np.int32))


@on_each_device
def test_without_a_factor_an_update_is_none(device: str) -> None:
    """Also not where gradients are no numbers; the update after it is the one that would have come anyway."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5001, generator=generator).to(device) for _ in range(3)]
    nothing = torch.full((5001,), float("nan"), device=device)
    results = []
    for given in (gradients, [gradients[0], nothing, *gradients[1:]]):
        parameter = torch.nn.Parameter(torch.ones(5001, device=device))
        optimizer = AdamW([parameter], **SETTINGS, weight_decay=0.1)
        for gradient in given:
            parameter.decoupled_grad = gradient.clone()
            optimizer.factor = torch.tensor(float("nan") if gradient is nothing else 0.5, device=device)
            optimizer.step()
            if gradient is nothing:
                optimizer.take_back()
        results.append([parameter.detach(), *optimizer.states.tensors()])
        assert optimizer.param_groups[0]["step"] == 3
    assert all(torch.equal(found, expected) for found, expected in zip(*results, strict=True))


def test_updates_what_has_a_gradient_and_keeps_states_by_their_names_in_a_checkpoint() -> None:
    parameter, idle = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter, idle], **SETTINGS)
    parameter.decoupled_grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1
    numbers = optimizer.numbers(parameter)
    assert set(numbers) == {"param", "exp_avg", "exp_avg_sq"}
    assert torch.equal(numbers["param"].read(0, 3), parameter) and not torch.equal(parameter, torch.ones(3))
    assert torch.equal(idle, torch.ones(2)) and not any(part.states.mean.any() for part in optimizer.states.parts(idle))


def test_refuses_what_it_has_not() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(ValueError, match="knows no master_weights"):
        AdamW(parameters, master_weights=True, capturable=False)
    with pytest.raises(ValueError, match="knows no L2 regularisation"):
        AdamW(parameters, adam_w_mode=False)
