"""Megatron Core on a CPU: what it answers, and that switching it on twice or beside CUDA does nothing."""

from __future__ import annotations

import pytest
import torch

from megatron_apriel.parallel import cpu
from megatron_apriel.testing.ranks import run_ranks


def test_nothing_changes_where_cuda_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.cuda.current_device
    assert cpu.enable() is False
    assert torch.cuda.current_device is before


def test_tensors_asked_of_cuda_are_on_the_cpu() -> None:
    def probe(rank: int, size: int) -> None:
        assert cpu.enable() and cpu.enable()
        for tensor in (
            torch.zeros(2, device="cuda"),
            torch.zeros(2, device=torch.cuda.current_device()),
            torch.zeros(2).cuda(),
            torch.zeros(2).to("cuda"),
            torch.zeros(2, pin_memory=True),
        ):
            assert tensor.device.type == "cpu"
            assert tensor.type() == "torch.cuda.FloatTensor"

    run_ranks(1, probe)


def test_random_states_are_apart_and_go_on() -> None:
    def probe(rank: int, size: int) -> None:
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

        states = CudaRNGStatesTracker()
        states.add("model", 5)
        with pytest.raises(ValueError, match="'model' or its seed 6"):
            states.add("model", 6)
        torch.manual_seed(1)
        with states.fork("model"):
            first = torch.rand(3)
        outside = torch.rand(3)
        with states.fork("model"):
            second = torch.rand(3)
        generator = torch.Generator().manual_seed(5)
        assert torch.equal(torch.cat([first, second]), torch.rand(6, generator=generator))
        torch.manual_seed(1)
        assert torch.equal(outside, torch.rand(3))

    run_ranks(1, probe)
