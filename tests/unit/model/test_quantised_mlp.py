"""When the MLP's activation writes 8 bits itself, and that nothing changes where it does not."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.mlp import MLP

from megatron_apriel.model.quantised_mlp import QuantisedMLP, _dtype, _quantisers, _scale


class Delayed:
    """As Transformer Engine's ``Float8Quantizer``."""

    def __init__(self) -> None:
        self.scale, self.amax, self.dtype = torch.ones(1), torch.zeros(1), SimpleNamespace(name="kFloat8E4M3")


class Current:
    """As its ``Float8CurrentScalingQuantizer``."""

    def __init__(self, **changes: Any) -> None:
        self.force_pow_2_scales, self.amax_epsilon, self.with_amax_reduction = False, 0.0, False
        self.dtype = SimpleNamespace(name="kFloat8E5M2")
        self.__dict__.update(changes)


class Blockwise:
    """A quantiser of another kind."""


@pytest.fixture(autouse=True)
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that are asked of it."""
    places = {
        "transformer_engine.pytorch.constants": {
            "FP8FwdTensorIdx": SimpleNamespace(GEMM1_INPUT=0),
            "FP8BwdTensorIdx": SimpleNamespace(GRAD_OUTPUT1=0),
        },
        "transformer_engine.pytorch.tensor.float8_tensor": {
            "Float8Quantizer": Delayed,
            "Float8CurrentScalingQuantizer": Current,
        },
    }
    for place, names in places.items():
        module = ModuleType(place)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, place, module)


def linear(forward: Any = None, backward: Any = None, *, fp8: bool = True, trained: bool = True) -> SimpleNamespace:
    quantizers = {"scaling_fwd": [forward] if forward else {}, "scaling_bwd": [backward] if backward else {}}
    return SimpleNamespace(fp8=fp8, weight=SimpleNamespace(requires_grad=trained), quantizers=quantizers)


@pytest.mark.parametrize("kind", [Delayed, Current])
def test_of_the_second_input_and_the_first_gradient(kind: type) -> None:
    of_input, of_gradient = kind(), kind()
    first, second = linear(kind(), of_gradient), linear(of_input, kind())
    assert _quantisers(first, second) == (of_input, of_gradient)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(linear(), linear(), id="first pass"),
        pytest.param(linear(Delayed(), Delayed(), fp8=False), linear(Delayed(), Delayed()), id="layer in bfloat16"),
        pytest.param(
            linear(Delayed(), Delayed(), trained=False), linear(Delayed(), Delayed(), trained=False), id="frozen"
        ),
        pytest.param(linear(Blockwise(), Blockwise()), linear(Blockwise(), Blockwise()), id="blockwise"),
        pytest.param(
            linear(Current(), Current(force_pow_2_scales=True)), linear(Current(), Current()), id="powers of two"
        ),
        pytest.param(linear(Current(), Current()), linear(Current(amax_epsilon=1e-3)), id="smallest scale"),
    ],
)
def test_the_ordinary_way_is_taken(first: Any, second: Any) -> None:
    assert _quantisers(first, second) is None


def test_the_ordinary_way_is_taken_without_gradients() -> None:
    layer = linear(Delayed(), Delayed())
    with torch.no_grad():
        assert _quantisers(layer, layer) is None
    assert _quantisers(layer, layer) is not None


def test_number_format_and_scale_are_the_quantisers() -> None:
    delayed, current = Delayed(), Current()
    assert (_dtype(delayed), _dtype(current)) == (torch.float8_e4m3fn, torch.float8_e5m2)
    assert _scale(delayed) == (delayed.scale, delayed.amax)
    assert _scale(current) is None


def test_without_the_fused_activation_it_is_megatrons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLP, "forward", lambda self, hidden, *_, **__: (hidden + 1, None))
    mlp = QuantisedMLP.__new__(QuantisedMLP)
    torch.nn.Module.__init__(mlp)
    mlp.config = SimpleNamespace(use_te_activation_func=False)
    assert torch.equal(mlp.forward(torch.zeros(2))[0], torch.ones(2))
