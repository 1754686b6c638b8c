"""Sums of gradients in 24 bits in every layout: as those in float32 but for their last bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from training_run import ARCHITECTURE, SEQUENCE_LENGTH, SEQUENCES, Run

from megatron_apriel.checkpoint.training_state import distributed_parts
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.parallel import groups
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train import step as step_module
from megatron_apriel.train.trainer import Trainer

BF16 = torch.bfloat16


class Overlapping(Run):
    """With reductions beside the backward pass."""

    def __init__(self, name: str, **optimizer: Any) -> None:
        self.layout = layout_of(name)
        self.trainer = Trainer(ARCHITECTURE, overlapping(**optimizer), self.layout)
        self.optimizer = self.trainer.optimizer


def overlapping(**optimizer: Any) -> StageConfig:
    return small_stage(
        SEQUENCE_LENGTH,
        SEQUENCES,
        train={"tower": 1, "projector": 1, "decoder": 1},
        parallel={"overlap": True},
        optimizer={"peak": 1e-3, **optimizer},
        precision={"compute": "bf16"},
    )


def gradients(run: Run) -> dict[str, torch.Tensor]:
    """As the optimizers read them, of all data-parallel ranks together, by the model's names."""
    ranks = parallel_state.get_data_parallel_group(with_context_parallel=True)
    found = {}
    for part in distributed_parts(run.optimizer):
        for number, chunk in enumerate(part.model_chunks):
            for name, parameter in chunk.named_parameters():
                if not parameter.requires_grad or f"{number} {name}" in found:
                    continue
                whole = torch.zeros(parameter.numel())
                if parameter in part.model_param_group_index_map:
                    group, place = part.model_param_group_index_map[parameter]
                    own = part.optimizer.param_groups[group]["params"][place]
                    sums = getattr(own, "gradient_sums", None)
                    start = part._get_model_param_range_map(parameter)["param"].start
                    numbers = own.decoupled_grad if sums is None else sums.read()
                    whole[start : start + own.numel()] = numbers.view(-1)
                torch.distributed.all_reduce(whole, group=ranks)
                found[f"{number} {name}"] = whole
    return found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ["one", "DP2", "TP2 SP", "PP2", "PP2 VP2"])
def test_sums_are_those_in_float32(name: str, overlap: bool) -> None:
    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of(name)):
            found = []
            for form in ("float32", "24bit"):
                groups.seed_all(7)
                run = Overlapping(name, gradients=form) if overlap else Run(layout_of(name), dtype=BF16, gradients=form)
                # Twice: with overlapping reductions, the first step is another than those after it.
                results = [run.trainer.step(run._batches(step), 0.0) for step in range(2)]
                narrow = [
                    parameter
                    for chunk in run.trainer.chunks
                    for parameter in chunk.parameters()
                    if hasattr(parameter, "gradient_sums")
                ]
                assert bool(narrow) == (form == "24bit")
                assert not any(parameter.main_grad.any() for parameter in narrow)
                found.append((results, gradients(run)))
            (exact, expected), (narrow_results, sums) = found
            for one, other in zip(exact, narrow_results, strict=True):
                assert one.loss == other.loss and other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
            assert sums.keys() == expected.keys()
            for key, numbers in expected.items():
                assert (sums[key] - numbers).norm() <= 3e-5 * numbers.norm(), key
                is_layers = "decoder.layers." in key and key.endswith("weight") and "norm" not in key
                assert torch.equal(sums[key], numbers) != is_layers, key

    run_ranks(layout_of(name).world_size, on_rank)


@pytest.mark.parametrize("name", ["one", "DP2"])
def test_everything_narrow_trains_as_everything_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with states on the host, to the bit; and a step that is skipped leaves every byte."""
    narrow = {"moments": "int8", "master": "24bit", "gradients": "24bit"}

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of(name)):
            found = []
            for forms in ({}, narrow, narrow | {"host": 0.5}):
                groups.seed_all(7)
                run = Run(layout_of(name), dtype=BF16, **forms)
                found.append((run.steps(0, 5), optimizer_state(run.trainer)))
            exact, here, away = found
            assert here[0] == away[0] and all(torch.equal(here[1][key], away[1][key]) for key in here[1])
            assert here[0] == pytest.approx(exact[0], rel=2e-3) and here[0][2:] != exact[0][2:]
            before, real = optimizer_state(run.trainer), step_module.gradient_factor
            monkeypatch.setattr(step_module, "gradient_factor", lambda *given: real(*given) * math.nan)
            assert not run.trainer.step(run._batches(5), 1e-3).applied
            assert all(torch.equal(tensor, before[key]) for key, tensor in optimizer_state(run.trainer).items())

    run_ranks(layout_of(name).world_size, on_rank)


def test_24_bits_need_weights_in_bf16() -> None:
    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of("one")):
            for form in ("gradients", "master"):
                with pytest.raises(ConfigError, match=rf"optimizer\.{form}=24bit needs weights in bf16, not in fp32"):
                    Trainer(
                        ARCHITECTURE,
                        small_stage(SEQUENCE_LENGTH, SEQUENCES, optimizer={"peak": 1e-3, form: "24bit"}),
                        layout_of("one"),
                    )

    run_ranks(1, on_rank)
    with pytest.raises(ValueError, match=r"optimizer\.master=24bit needs precision\.compute=bf16"):
        small_stage(64, 4, optimizer={"peak": 1e-3, "master": "24bit"}, precision={"compute": "fp32"})
