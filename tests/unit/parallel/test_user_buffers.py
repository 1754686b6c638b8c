"""Transformer Engine's user buffers: what is asked of it, once for all models, and what they take by hand."""

from __future__ import annotations

import enum
import os
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel import user_buffers
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture.from_preset("apriel-15b")


class Modes(enum.Enum):
    NONE, FP8 = "none", "fp8"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In Transformer Engine's place, one that notes what is made of it and given back."""
    calls: list[Any] = []
    names = ["transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"]
    base = ModuleType(f"{names[-1]}.base")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setattr(sys.modules[names[-1]], "base", base, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(user_buffers._Made, "as_asked", ())
    monkeypatch.delenv("UB_SKIPMC", raising=False)

    def initialize(shape: list[int], tp_size: int, **options: Any) -> None:
        calls.append((shape, tp_size, options, os.environ.get("UB_SKIPMC")))

    base.UserBufferQuantizationMode = Modes  # type: ignore[attr-defined]
    base.initialize_ub = initialize  # type: ignore[attr-defined]
    base.destroy_ub = lambda: calls.append("given back")  # type: ignore[attr-defined]
    base.is_ub_initialized = lambda: bool(calls) and calls[-1] != "given back"  # type: ignore[attr-defined]
    return calls


@pytest.mark.parametrize("in_8_bits", [False, True])
def test_what_is_asked_for(made: list[Any], in_8_bits: bool) -> None:
    user_buffers.make((64, 32), 2, torch.bfloat16, in_8_bits)
    ((shape, tensor, options, without_multicast),) = made
    assert (shape, tensor, options["dtype"], options["bootstrap_backend"]) == ([64, 32], 2, torch.bfloat16, "gloo")
    assert options["quantization_modes"] == [Modes.FP8 if in_8_bits else Modes.NONE]
    assert {name: entry["method"] for name, entry in options["ub_cfgs"].items()} == {
        "proj_fprop": "ring_exchange",
        "fc2_fprop": "ring_exchange",
    }
    assert without_multicast == "1"


def test_one_set_for_all_models_of_a_kind(made: list[Any]) -> None:
    for _ in range(2):
        user_buffers.make((64, 32), 2, torch.bfloat16, in_8_bits=False)
    assert len(made) == 1
    user_buffers.make((128, 32), 2, torch.bfloat16, in_8_bits=False)
    assert made[1] == "given back" and made[2][0] == [128, 32]
    user_buffers.release()
    user_buffers.release()
    assert made[3:] == ["given back"]
    user_buffers.make((128, 32), 2, torch.bfloat16, in_8_bits=False)
    assert len(made) == 5


def test_nothing_is_given_back_where_there_is_nothing() -> None:
    user_buffers.release()


@pytest.mark.parametrize(("fp8", "units"), [("none", 13), ("tensorwise", 9)])
def test_their_memory_is_planned(fp8: str, units: int) -> None:
    """Over two ranks, in units of a micro-batch's hidden states in bfloat16, of all its tokens."""

    def stage(overlapped: bool) -> StageConfig:
        parallel = {"tensor": 2, "sequence": True, "tensor_overlap": overlapped}
        return small_stage(16384, 2, parallel=parallel, precision={"compute": "bf16", "fp8": fp8})

    layout = Layout(2, tensor=2, sequence=True)
    without, beside = (rank_memory(stage(on), APRIEL, layout, 0) for on in (False, True))
    assert beside.total - without.total == units * 2 * 16384 * 5120
