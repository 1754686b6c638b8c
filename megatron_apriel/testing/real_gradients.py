"""Gradients as training gives them: of a small language model that learns the text of a module of Python's own.

A plain torch model, so that what is tested on its gradients has no part in making them.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_apriel.planning.state_forms import Kind

WIDTH, HEADS, VOCABULARY, LENGTH, SEQUENCES = 64, 4, 128, 64, 16
BETAS = (0.9, 0.95)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 8 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        size, length, _ = hidden.shape
        heads = self.qkv(self.norm(hidden)).view(size, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(size, length, WIDTH))
        gate, value = self.up(self.mlp_norm(hidden)).chunk(2, -1)
        changed: Tensor = hidden + self.down(functional.silu(gate) * value)
        return changed


class Recorded(NamedTuple):
    """A model's weights before the first of some steps, and the gradients of all of them, by the weights' names."""

    weights: dict[str, Tensor]
    gradients: list[dict[str, Tensor]]


def kind_of(name: str) -> Kind:
    """Of a parameter of the small model."""
    if "norm" in name:
        return "vector"
    return "vocabulary" if name.startswith(("embedding", "head")) else "matrix"


def class_of(name: str) -> str:
    """Parameters that do the same in all layers: ``layers.1.down.weight`` is one of ``down``."""
    return name.split(".")[-2]


@cache
def real_gradients() -> Recorded:
    """Of the first 44 steps of training, clipped to a norm of 1, the same in every process."""
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential()
    model.add_module("embedding", nn.Embedding(VOCABULARY, WIDTH))
    model.add_module("layers", nn.Sequential(_Layer(), _Layer()))
    model.add_module("norm", nn.RMSNorm(WIDTH))
    model.add_module("head", nn.Linear(WIDTH, VOCABULARY, bias=False))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=BETAS)
    gradients = []
    for _ in range(44):
        starts = torch.randint(0, len(text) - LENGTH - 1, (SEQUENCES,), generator=generator)
        tokens = torch.stack([text[start : start + LENGTH + 1] for start in starts])
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        given = {name: parameter.grad for name, parameter in model.named_parameters()}
        gradients.append({name: gradient.clone() for name, gradient in given.items() if gradient is not None})
        optimizer.step()
    return Recorded(weights, gradients)
