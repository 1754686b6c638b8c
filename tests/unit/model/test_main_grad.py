"""Placeholder gradients: Transformer Engine has a model's own weights for them, and none of a model that is gone."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from megatron_apriel.model.main_grad import share_placeholders


@pytest.fixture
def placeholders(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[object, ...], torch.Tensor]:
    """Those of a module in Transformer Engine's place."""
    names = ["transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    base = ModuleType(f"{names[-1]}.base")
    monkeypatch.setattr(sys.modules[names[-1]], "base", base, raising=False)
    base._dummy_wgrads = {}  # type: ignore[attr-defined]
    return base._dummy_wgrads  # type: ignore[attr-defined,no-any-return]


def model_in_one_buffer(width: int) -> tuple[nn.Module, StorageWeakRef]:
    """Whose weights are parts of one tensor, as Megatron's data parallelism has them."""
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2 * width))
    parameters = list(model.parameters())
    buffer = torch.empty(sum(parameter.numel() for parameter in parameters))
    for parameter, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return model, StorageWeakRef(buffer.untyped_storage())


def test_weights_stand_in_for_gradients_of_their_shape(placeholders: dict[tuple[object, ...], torch.Tensor]) -> None:
    placeholders[(9, 9, torch.float32)] = torch.empty(9, 9)  # of a model before, on other devices maybe
    model, buffer = model_in_one_buffer(4)
    share_placeholders([model])
    assert placeholders.keys() == {
        (4, 4, torch.float32), (4, torch.float32), (8, 4, torch.float32), (8, torch.float32)
    }  # fmt: skip
    for (*shape, dtype), tensor in placeholders.items():
        assert (list(tensor.shape), tensor.dtype, tensor.requires_grad) == (shape, dtype, False)
        assert StorageWeakRef(tensor.untyped_storage()).cdata == buffer.cdata


def test_they_go_with_their_model(placeholders: dict[tuple[object, ...], torch.Tensor]) -> None:
    model, buffer = model_in_one_buffer(4)
    share_placeholders([model])
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None and not placeholders and buffer.expired()


def test_those_of_a_later_model_stay(placeholders: dict[tuple[object, ...], torch.Tensor]) -> None:
    """Also where some have the shapes of the model before, which ends only then."""
    former, _ = model_in_one_buffer(4)
    share_placeholders([former])
    parts = [model_in_one_buffer(4), model_in_one_buffer(8)]
    share_placeholders([model for model, _ in parts])
    expected = dict(placeholders)
    del former
    gc.collect()
    assert placeholders == expected and len(expected) == 7
    parts.pop()
    gc.collect()
    assert placeholders.keys() == {
        (4, 4, torch.float32), (4, torch.float32), (8, 4, torch.float32)
    }  # fmt: skip
