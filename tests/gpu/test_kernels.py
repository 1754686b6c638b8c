"""The layers' own GPU kernels against the same written out in double precision, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_apriel.testing.marks import needs_gpu

pytestmark = [pytest.mark.gpu, needs_gpu]

Function = Callable[..., tuple[Tensor, ...]]


def compare(fused: Function, reference: Function, *inputs: Tensor, rounding: float) -> None:
    """Outputs and gradients of both, given random gradients of the outputs."""
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    rounded = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    expected, found = reference(*exact), fused(*rounded)
    generator = torch.Generator(device="cuda").manual_seed(1)
    grads = [torch.randn(out.shape, generator=generator, device="cuda", dtype=out.dtype) for out in found]
    expected_grads = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
    found_grads = torch.autograd.grad(found, rounded, grads)
    for one, other in zip([*found, *found_grads], [*expected, *expected_grads], strict=True):
        assert one.dtype == inputs[0].dtype
        assert float((one.double() - other).norm() / other.norm()) < rounding


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device="cuda").manual_seed(0), device="cuda").to(dtype)


TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)]


@pytest.mark.parametrize(("dtype", "rounding"), TYPES)
@pytest.mark.parametrize("shape", [(700, 1, 5120), (3, 1, 1024), (5, 200)])
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, rounding: float) -> None:
    from megatron_apriel.model.norm import BranchNorm

    config = SimpleNamespace(transformer_impl="transformer_engine", params_dtype=dtype, sequence_parallel=False)
    norm = BranchNorm(config, shape[-1], 1e-5)

    def fused(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(norm, {"weight": weight}, (hidden,))

    def reference(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-5) * weight, hidden * 1.0

    compare(fused, reference, draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype), rounding=rounding)


@pytest.mark.parametrize(("dtype", "rounding"), TYPES)
@pytest.mark.parametrize("size", [14336, 300])
def test_swiglu(size: int, dtype: torch.dtype, rounding: float) -> None:
    from megatron_apriel.model.activation import SwiGLU

    def reference(gate_up: Tensor) -> tuple[Tensor, ...]:
        gate, up = gate_up.chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up,)

    compare(lambda x: (SwiGLU(None)(x),), reference, draw(130, 1, 2 * size, dtype=dtype), rounding=rounding)


@pytest.mark.parametrize(("dtype", "rounding"), TYPES)
@pytest.mark.parametrize(("groups", "queries", "size"), [(8, 4, 128), (16, 1, 64), (1, 3, 16)])
def test_split_and_rotate(groups: int, queries: int, size: int, dtype: torch.dtype, rounding: float) -> None:
    from megatron_apriel.model.rotary import decoder_rotary, split_and_rotate

    positions = torch.cat([torch.arange(70), torch.arange(49000, 49090)]).cuda()
    cosine, sine = decoder_rotary(positions, size, 1e9)

    def reference(projected: Tensor) -> tuple[Tensor, ...]:
        return split_and_rotate(projected, queries, (cosine.double(), sine.double()), fused=False)

    compare(
        lambda x: split_and_rotate(x, queries, (cosine, sine), fused=True),
        reference,
        draw(160, 1, groups, (queries + 2) * size, dtype=dtype),
        rounding=rounding,
    )


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("scaling", ["given", "own"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(("rows", "size"), [(130, 300), (256, 1024)])
def test_quantised_swiglu(rows: int, size: int, dtype: torch.dtype, scaling: str, backward: bool) -> None:
    from megatron_apriel.model.activation_kernels import quantised_swiglu, quantised_swiglu_gradient

    gate_up = draw(rows, 2 * size, dtype=torch.bfloat16)
    grad = draw(rows, size, dtype=torch.bfloat16).flip(0)
    leaf = gate_up.double().requires_grad_()
    gate, up = leaf.chunk(2, dim=-1)
    product = torch.nn.functional.silu(gate) * up
    exact = torch.autograd.grad(product, leaf, grad.double())[0] if backward else product.detach()
    limit, largest = torch.finfo(dtype).max, float(exact.abs().max())
    # Too large for the largest numbers: those become the largest that the type has.
    given = torch.tensor([1.5 * limit / largest], device="cuda"), torch.zeros(1, device="cuda")
    scale = given if scaling == "given" else None
    numbers, inverse = (
        quantised_swiglu_gradient(grad, gate_up, dtype, scale) if backward else quantised_swiglu(gate_up, dtype, scale)
    )
    factor = float(given[0]) if scaling == "given" else limit / largest
    assert float(inverse) == pytest.approx(1 / factor, rel=1e-5)
    if scaling == "given":
        assert float(given[1]) == pytest.approx(largest, rel=1e-5)
    expected = (exact * factor).clamp(-limit, limit).float().to(dtype)
    # Computed in float32: a number beside the middle between two of 8 bits may fall to the other side.
    assert float((numbers.float() != expected.float()).float().mean()) < 1e-3


def test_quantised_swiglu_keeps_what_is_not_a_number() -> None:
    from megatron_apriel.model.activation_kernels import quantised_swiglu

    gate_up = draw(64, 256, dtype=torch.bfloat16)
    gate_up[3, 5] = float("nan")
    for scale in (None, (torch.ones(1, device="cuda"), torch.zeros(1, device="cuda"))):
        numbers, _ = quantised_swiglu(gate_up, torch.float8_e4m3fn, scale)
        assert numbers.float().isnan().nonzero().tolist() == [[3, 5]]
