"""The activation's kernels as Triton's interpreter runs them on a CPU; on a GPU ``tests/gpu`` has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

SIZES = (1.0, 1e-20, 1e-35, 1e-37)
QUANTISE = """
import sys, torch
from megatron_apriel.model.activation_kernels import quantised_swiglu_gradient
rows = torch.load(sys.argv[1])
torch.save([quantised_swiglu_gradient(*one, torch.float8_e5m2, None) for one in rows], sys.argv[2])
"""


def test_gradients_that_are_all_nearly_0_stay_numbers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    gate_up_RF = torch.randn(4, 64, generator=generator).bfloat16()
    grads = [(size * torch.randn(4, 32, generator=generator)).bfloat16() for size in SIZES]
    for grad_RF in grads:
        grad_RF[0] = 0  # as of tokens without a loss
    given, made = tmp_path / "given.pt", tmp_path / "made.pt"
    torch.save([(grad_RF, gate_up_RF) for grad_RF in grads], given)
    # In a process of its own: Triton asks for the interpreter when it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", QUANTISE, str(given), str(made)], env=environment, check=True)

    gate, up = gate_up_RF.double().chunk(2, dim=1)
    opened = gate.sigmoid()
    for grad_RF, (numbers, inverse) in zip(grads, torch.load(made), strict=True):
        of_gate = grad_RF.double() * up * opened * (1 + gate * (1 - opened))
        expected = torch.cat([of_gate, grad_RF.double() * gate * opened], dim=1)
        found = numbers.double() * inverse.double()
        assert found.isfinite().all()
        assert (found - expected).abs().max() <= expected.abs().max() / 4  # two bits behind the point
